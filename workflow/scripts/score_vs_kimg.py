"""Plot a student's score against training length, and record its metrics as curves for the run database."""

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.reporting.curves import score_vs_kimg
    from mscd.reporting.scores import read_scores
    from mscd.reporting.summary import curves_of

with script_log(snakemake.log.text):
    scores, student = read_scores(snakemake.input.scores), snakemake.wildcards.student
    score_vs_kimg(scores, snakemake.output[0], student)
    record_events(snakemake.log.events, metrics=curves_of(scores, student), artifacts=snakemake.output)
