rule fid_table:
    "Collect all scores in one table."
    input:
        scores=all_score_files(),
    output:
        csv=report(paths.table, caption="../report/fid_table.rst", category="Scores"),
        md=paths.table_markdown,
    log:
        text=paths.log("fid_table", "table"),
        events=paths.events("fid_table", "table"),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=scores_identity,
    script:
        "../scripts/fid_table.py"


rule score_vs_kimg:
    "Plot a student's score against training length."
    input:
        scores=kimg_scores,
    output:
        report(
            paths.figure("score-vs-kimg-{student}"),
            caption="../report/score_vs_kimg.rst",
            category="Scores",
            labels={"figure": "Score against training", "student": "{student}"},
        ),
    log:
        text=paths.log("score_vs_kimg", "{student}"),
        events=paths.events("score_vs_kimg", "{student}"),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=scores_identity,
    script:
        "../scripts/score_vs_kimg.py"


rule score_vs_nfe:
    "Plot the scores of teacher and students against network evaluations per image."
    input:
        scores=all_score_files(),
    output:
        report(
            paths.figure("score-vs-nfe"),
            caption="../report/score_vs_nfe.rst",
            category="Scores",
            labels={"figure": "Score against cost", "student": "all"},
        ),
    log:
        text=paths.log("score_vs_nfe", "figure"),
        events=paths.events("score_vs_nfe", "figure"),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=scores_identity,
    script:
        "../scripts/score_vs_nfe.py"


rule image_grid:
    "Draw images of the same seeds from the teacher and the best snapshot of each student."
    input:
        teacher=paths.teacher,
        scores=all_score_files(),
    output:
        report(
            paths.figure("images"),
            caption="../report/images.rst",
            category="Images",
            labels={"figure": "The same seeds", "student": "all"},
        ),
    log:
        text=paths.log("image_grid", "images"),
        events=paths.events("image_grid", "images"),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=scores_identity,
        images=run.scoring.grid_images,
    script:
        "../scripts/image_grid.py"
