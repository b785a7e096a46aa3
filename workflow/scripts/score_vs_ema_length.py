"""Plot a student's score against EMA length."""

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.reporting.curves import score_vs_ema_length
    from mscd.reporting.scores import read_scores

with script_log(snakemake.log.text):
    student = snakemake.wildcards.student
    score_vs_ema_length(read_scores(snakemake.input.scores), snakemake.output[0], student)
    record_events(snakemake.log.events, artifacts=snakemake.output)
