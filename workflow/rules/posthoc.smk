# EMA lengths that were not kept in training, reconstructed from those that were.
rule posthoc_ema:
    input:
        stored_averages,
    output:
        results / "students/{student}/{kimg}/posthoc-{std}.safetensors",
    log:
        text=logs / "posthoc_ema/{student}.{kimg}.{std}.log",
        events=logs / "posthoc_ema/{student}.{kimg}.{std}.events.jsonl",
    conda:
        "../envs/mscd.yaml"
    params:
        identity=student_identity,
    script:
        "../scripts/posthoc_ema.py"


rule score_vs_ema_length:
    input:
        scores=ema_length_scores,
    output:
        report(
            results / "figures/score-vs-ema-length-{student}.png",
            caption="../report/score_vs_ema_length.rst",
            category="Scores",
            labels={"figure": "Score against EMA length", "student": "{student}"},
        ),
    log:
        text=logs / "score_vs_ema_length/{student}.log",
        events=logs / "score_vs_ema_length/{student}.events.jsonl",
    conda:
        "../envs/mscd.yaml"
    params:
        identity=scores_identity,
    script:
        "../scripts/score_vs_ema_length.py"
