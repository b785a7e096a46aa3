rule fid_table:
    "Collect all scores in one table."
    input:
        **{detector: all_score_files(detector) for detector in detectors[1:]},
        scores=first_detector_scores,
    output:
        csv=report(
            paths.table,
            caption="../report/fid_table.rst",
            category="Scores",
            labels={"figure": "Table of all scores", "student": "all"},
        ),
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
        scores=first_detector_scores,
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
        teacher=paths.teacher(),
        scores=first_detector_scores,
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


rule precision_recall:
    "Plot precision against recall for teacher, students and real images."
    input:
        scores=first_detector_scores,
    output:
        report(
            paths.figure("precision-recall"),
            caption="../report/precision_recall.rst",
            category="Scores",
            labels={"figure": "Precision against recall", "student": "all"},
        ),
    log:
        text=paths.log("precision_recall", "figure"),
        events=paths.events("precision_recall", "figure"),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=scores_identity,
    script:
        "../scripts/precision_recall.py"


rule nearest_images:
    "Draw the generated images that are closest to a training image beside it."
    input:
        data=paths.data,
        teacher=paths.teacher(),
        scores=first_detector_scores,
    output:
        report(
            paths.figure("nearest"),
            caption="../report/nearest.rst",
            category="Images",
            labels={"figure": "Nearest training images", "student": "all"},
        ),
    log:
        text=paths.log("nearest_images", "images"),
        events=paths.events("nearest_images", "images"),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=scores_identity,
    script:
        "../scripts/nearest_images.py"
