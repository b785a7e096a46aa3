"""Plot the scores of teacher and students against network evaluations per image."""

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.reporting.curves import score_vs_nfe
    from mscd.reporting.scores import read_scores

with script_log(snakemake.log.text):
    score_vs_nfe(read_scores(snakemake.input.scores), snakemake.output[0])
    record_events(snakemake.log.events, artifacts=snakemake.output)
