# The best network of a student as others can use it: weights, settings, model card and the code that samples it.
rule export:
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
