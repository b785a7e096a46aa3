"""Score the images of a seed block by their features."""

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.config.loading import load_config
    from mscd.evaluation.score import mean_values, score_features
    from mscd.parallel.group import default_device

with script_log(snakemake.log.text):
    config, files, wildcards = load_config(snakemake.config), snakemake.input, snakemake.wildcards
    nfe, features = config.scoring.sampling(wildcards.model, wildcards.sampler).nfe, iter(files.features)
    parts = [config.scoring.parts(config.scoring.seeds(block), nfe) for block in config.scoring.seed_blocks]
    result = score_features(
        [[next(features) for _ in of_block] for of_block in parts],
        files.reference,
        snakemake.output[0],
        metrics=config.metrics_of(wildcards.detector),
        training=files.training,
        device=default_device(),
    )
    shown = {name: result[name] for name in ("metric", "nfe", "network_digest", "reference_digest")}
    record_events(snakemake.log.events, params=shown, metrics=[(mean_values(result), result["snapshot_kimg"])])
