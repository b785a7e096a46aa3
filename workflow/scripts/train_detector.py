"""Train the classifier whose features are used to compare images."""

from mscd.launch.script import imports_without_gc, script_log

with imports_without_gc():
    from mscd.config.loading import load_config
    from mscd.evaluation.classifier import train_detector
    from mscd.files.event_log import EventLog

with script_log(snakemake.log.text):
    settings = load_config(snakemake.config).reference.classifier
    train_detector(
        snakemake.input.data,
        settings,
        snakemake.output.detector,
        snakemake.output.summary,
        events=EventLog(snakemake.log.events),
    )
