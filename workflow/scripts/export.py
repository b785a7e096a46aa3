"""Export the best network of a student for use elsewhere."""

from pathlib import Path

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.config.loading import load_config
    from mscd.reporting.export import export_student
    from mscd.reporting.score_table import best_network

with script_log(snakemake.log.text):
    table, student = Path(snakemake.input.table), snakemake.wildcards.student
    solver = load_config(snakemake.config).students[student].solver
    export_student(best_network(table, student), snakemake.output[0], table=table, sampler=solver)
    record_events(snakemake.log.events)
