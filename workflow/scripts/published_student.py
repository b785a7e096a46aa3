"""Convert a published student so that it can be scored."""

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.checkpoints.convert import convert
    from mscd.config.loading import load_config
    from mscd.provenance.fetch import fetch
    from mscd.sampling.student import check_stated_sampler

with script_log(snakemake.log.text):
    name = snakemake.wildcards.published
    settings = load_config(snakemake.config).published_students[name]
    path, origin = fetch(settings.source, settings.sha256, settings.license)
    made = convert(
        path,
        snakemake.output[0],
        model=name,
        snapshot_kimg=settings.snapshot_kimg,
        segments=settings.segments,
        nodes=None if settings.nodes == "karras" else settings.nodes,
        sampler=None if settings.sampler == "ddim" else settings.solver,
        origin=origin,
    )
    check_stated_sampler(f"published_students.{name}", made["student"], settings.solver)
    record_events(snakemake.log.events, params=origin, tags={"network": made["digest"]})
