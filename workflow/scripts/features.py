"""Compute a detector's features of generated images."""

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.config.loading import load_config
    from mscd.evaluation.detector import load_detector
    from mscd.evaluation.features import outputs_for, write_features
    from mscd.parallel.group import default_device

with script_log(snakemake.log.text):
    config, name = load_config(snakemake.config), snakemake.wildcards.detector
    detector = load_detector(snakemake.input.detector, default_device(), config.reference.detector_sha256(name))
    write_features(
        [snakemake.input.samples],
        detector,
        snakemake.output[0],
        outputs=outputs_for(config.metrics_of(name)),
        batch_size=config.scoring.batch_size,
    )
    record_events(snakemake.log.events, params={"detector": detector.digest})
