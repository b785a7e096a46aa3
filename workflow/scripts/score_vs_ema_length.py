"""Draw the score of a student against the length of its average."""

from mscd.launch.script import imports_without_gc, script_log

with imports_without_gc():
    from mscd.files.event_log import EventLog
    from mscd.reporting.curves import score_vs_ema_length
    from mscd.reporting.scores import read_scores

with script_log(snakemake.log.text):
    student = snakemake.wildcards.student
    score_vs_ema_length(read_scores(snakemake.input.scores), snakemake.output[0], student)
    events = EventLog(snakemake.log.events)
    events.start()
    events.artifact(snakemake.output[0])
