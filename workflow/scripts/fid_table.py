"""Collect all scores in one table."""

from mscd.config.loading import load_config
from mscd.launch.script import record_events, script_log
from mscd.reporting.score_table import headline, write_table
from mscd.reporting.scores import read_scores
from mscd.reporting.training_cost import trainings

with script_log(snakemake.log.text):
    files, config = snakemake.input, load_config(snakemake.config)
    scores = read_scores(files.scores)
    write_table(
        scores,
        snakemake.output.csv,
        snakemake.output.md,
        {detector: read_scores(files.get(detector)) for detector in config.reference.further_detectors},
        trainings(config),
    )
    record_events(snakemake.log.events, metrics=[(headline(scores), 0)], artifacts=snakemake.output)
