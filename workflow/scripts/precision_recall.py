"""Plot precision against recall for teacher, students and real images."""

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.reporting.curves import precision_vs_recall
    from mscd.reporting.scores import read_scores

with script_log(snakemake.log.text):
    precision_vs_recall(read_scores(snakemake.input.scores), snakemake.output[0])
    record_events(snakemake.log.events, artifacts=snakemake.output)
