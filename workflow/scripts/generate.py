"""Sample images from a network for a range of seeds."""

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.config.loading import load_config
    from mscd.parallel.group import default_device
    from mscd.sampling.generate import generate

with script_log(snakemake.log.text):
    scoring, wildcards = load_config(snakemake.config).scoring, snakemake.wildcards
    how = scoring.sampling(wildcards.model, wildcards.sampler)
    seeds = range(int(wildcards.first), int(wildcards.last) + 1)
    made = generate(
        snakemake.input.network,
        snakemake.output[0],
        seeds=seeds,
        batch_size=scoring.batch_size,
        device=default_device(),
        **how.model_dump(),
    )
    record_events(snakemake.log.events, params={"nfe": made["nfe"], "network": made["network"]["digest"]})
