"""Compute a detector's features of training images."""

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.config.loading import load_config
    from mscd.evaluation.training_features import make_training_features
    from mscd.parallel.group import default_device

with script_log(snakemake.log.text):
    config, name = load_config(snakemake.config), snakemake.wildcards.detector
    make_training_features(
        snakemake.input.data,
        snakemake.input.detector,
        snakemake.output[0],
        images=config.reference.images,
        outputs=["features", "spatial"] if "sfid" in config.metrics_of(name) else ["features"],
        device=default_device(),
        detector_sha256=config.reference.detector_sha256(name),
    )
    record_events(snakemake.log.events)
