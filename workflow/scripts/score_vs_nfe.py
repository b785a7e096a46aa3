"""Draw score against network evaluations, teacher and students in one figure."""

from mscd.launch.script import imports_without_gc, script_log

with imports_without_gc():
    from mscd.files.event_log import EventLog
    from mscd.reporting.curves import score_vs_nfe
    from mscd.reporting.scores import read_scores

with script_log(snakemake.log.text):
    score_vs_nfe(read_scores(snakemake.input.scores), snakemake.output[0])
    events = EventLog(snakemake.log.events)
    events.start()
    events.artifact(snakemake.output[0])
