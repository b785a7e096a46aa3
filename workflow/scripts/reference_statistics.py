"""Compute the mean and covariance of the detector's features over the data set."""

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.config.loading import load_config
    from mscd.evaluation.reference import make_reference
    from mscd.parallel.group import default_device

with script_log(snakemake.log.text):
    make_reference(
        snakemake.input.data,
        snakemake.input.detector,
        snakemake.output[0],
        device=default_device(),
        detector_sha256=load_config(snakemake.config).reference.detector_sha256(snakemake.wildcards.detector),
    )
    record_events(snakemake.log.events)
