"""Put all scores in one table."""

from mscd.files.event_log import EventLog
from mscd.launch.script import script_log
from mscd.reporting.score_table import headline, write_table
from mscd.reporting.scores import read_scores

with script_log(snakemake.log.text):
    table = write_table(read_scores(snakemake.input.scores), snakemake.output.csv, snakemake.output.md)
    events = EventLog(snakemake.log.events)
    events.start()
    events.metrics(headline(table), 0)
    for path in snakemake.output:
        events.artifact(path)
