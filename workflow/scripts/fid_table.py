"""Collect all scores in one table."""

from mscd.launch.script import record_events, script_log
from mscd.reporting.score_table import headline, write_table
from mscd.reporting.scores import read_scores

with script_log(snakemake.log.text):
    table = write_table(read_scores(snakemake.input.scores), snakemake.output.csv, snakemake.output.md)
    record_events(snakemake.log.events, metrics=[(headline(table), 0)], artifacts=snakemake.output)
