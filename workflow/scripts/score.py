"""Score the samples of a seed block against the reference."""

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.config.loading import load_config
    from mscd.evaluation.score import score
    from mscd.parallel.group import default_device

with script_log(snakemake.log.text):
    files = snakemake.input
    result = score(
        files.samples,
        files.reference,
        files.detector,
        snakemake.output[0],
        device=default_device(),
        detector_sha256=load_config(snakemake.config).reference.detector_sha256,
    )
    shown = {name: result[name] for name in ("metric", "nfe", "images", "network_digest", "reference_digest")}
    record_events(snakemake.log.events, params=shown, metrics=[({"score": result["value"]}, result["snapshot_kimg"])])
