rule export:
    "Export a student's best network for use elsewhere: weights, settings, model card and sampling code."
    input:
        table=paths.table,
    output:
        directory(paths.export("{student}")),
    log:
        text=paths.log("export", "{student}"),
        events=paths.events("export", "{student}"),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=scores_identity,
    script:
        "../scripts/export.py"
