"""Plot a student's score against training length, and record it as a curve for the run database."""

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.reporting.curves import score_vs_kimg
    from mscd.reporting.scores import emas, read_scores, score_curve

with script_log(snakemake.log.text):
    scores, student = read_scores(snakemake.input.scores), snakemake.wildcards.student
    score_vs_kimg(scores, snakemake.output[0], student)
    curves = [
        ({f"score/{ema}": score}, kimg)
        for ema in emas(scores, student)
        for kimg, score in score_curve(scores, student, ema)
    ]
    record_events(snakemake.log.events, metrics=curves, artifacts=snakemake.output)
