# The best network of a student as others can use it: weights, settings, model card and the code that samples it.
rule export:
    input:
        table=table_files[0],
    output:
        directory(results / "export/{student}"),
    log:
        text=logs / "export/{student}.log",
        events=logs / "export/{student}.events.jsonl",
    conda:
        "../envs/mscd.yaml"
    params:
        identity=scores_identity,
    script:
        "../scripts/export.py"
