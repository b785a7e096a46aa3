rule posthoc_ema:
    "Reconstruct a student's EMA of a length not kept in training from the EMAs that were."
    input:
        stored_averages,
    output:
        paths.snapshot("{student}", "{kimg}", "{}{{std}}".format(ema_names.POSTHOC)),
    log:
        text=paths.log("posthoc_ema", "{student}.{kimg}.{std}"),
        events=paths.events("posthoc_ema", "{student}.{kimg}.{std}"),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=student_identity,
    script:
        "../scripts/posthoc_ema.py"


rule score_vs_ema_length:
    "Plot a student's score against EMA length."
    input:
        scores=ema_length_scores,
    output:
        report(
            paths.figure("score-vs-ema-length-{student}"),
            caption="../report/score_vs_ema_length.rst",
            category="Scores",
            labels={"figure": "Score against EMA length", "student": "{student}"},
        ),
    log:
        text=paths.log("score_vs_ema_length", "{student}"),
        events=paths.events("score_vs_ema_length", "{student}"),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=scores_identity,
    script:
        "../scripts/score_vs_ema_length.py"
