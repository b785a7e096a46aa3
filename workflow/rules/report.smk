rule fid_table:
    input:
        scores=all_score_files(),
    output:
        csv=report(table_files[0], caption="../report/fid_table.rst", category="Scores"),
        md=table_files[1],
    log:
        text=logs / "fid_table/table.log",
        events=logs / "fid_table/table.events.jsonl",
    conda:
        "../envs/mscd.yaml"
    params:
        identity=scores_identity,
    script:
        "../scripts/fid_table.py"


rule score_vs_kimg:
    input:
        scores=kimg_scores,
    output:
        report(
            results / "figures/score-vs-kimg-{student}.png",
            caption="../report/score_vs_kimg.rst",
            category="Scores",
            labels={"figure": "Score against training", "student": "{student}"},
        ),
    log:
        text=logs / "score_vs_kimg/{student}.log",
        events=logs / "score_vs_kimg/{student}.events.jsonl",
    conda:
        "../envs/mscd.yaml"
    params:
        identity=scores_identity,
    script:
        "../scripts/score_vs_kimg.py"


rule score_vs_nfe:
    input:
        scores=all_score_files(),
    output:
        report(
            results / "figures/score-vs-nfe.png",
            caption="../report/score_vs_nfe.rst",
            category="Scores",
            labels={"figure": "Score against cost", "student": "all"},
        ),
    log:
        text=logs / "score_vs_nfe/figure.log",
        events=logs / "score_vs_nfe/figure.events.jsonl",
    conda:
        "../envs/mscd.yaml"
    params:
        identity=scores_identity,
    script:
        "../scripts/score_vs_nfe.py"


rule image_grid:
    input:
        teacher=teacher_file,
        scores=all_score_files(),
    output:
        report(
            results / "figures/images.png",
            caption="../report/images.rst",
            category="Images",
            labels={"figure": "The same seeds", "student": "all"},
        ),
    log:
        text=logs / "image_grid/images.log",
        events=logs / "image_grid/images.events.jsonl",
    conda:
        "../envs/mscd.yaml"
    params:
        identity=scores_identity,
        images=run.scoring.grid_images,
    script:
        "../scripts/image_grid.py"
