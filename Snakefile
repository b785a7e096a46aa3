include: "workflow/rules/common.smk"


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        table_files,
        figure_files,
        exports,


include: "workflow/rules/download.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/reference.smk"
include: "workflow/rules/teacher.smk"
include: "workflow/rules/distill.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/posthoc.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/export.smk"
