"""Score real images like generated ones."""

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.config.loading import load_config
    from mscd.evaluation.real_scores import score_real_images
    from mscd.parallel.group import default_device

with script_log(snakemake.log.text):
    config, files, name = load_config(snakemake.config), snakemake.input, snakemake.wildcards.detector
    score_real_images(
        files.data,
        files.detector,
        files.reference,
        files.training,
        {which.replace("_", "-"): path for which, path in snakemake.output.items()},
        metrics=config.metrics_of(name),
        images=config.scoring.images,
        seed_blocks=config.scoring.seed_blocks,
        holdout=files.get("holdout"),
        device=default_device(),
        detector_sha256=config.reference.detector_sha256(name),
    )
    record_events(snakemake.log.events)
