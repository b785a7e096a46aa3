localrules:
    distill,


rule distill:
    "Train one leg of a student."
    input:
        data=paths.data,
        summary=ancient(paths.data_summary),
        teacher=paths.teacher(),
        detector=ancient(detector_file(detectors[0])),
        reference=ancient(paths.reference(detectors[0])),
        before=student_leg_before,
    output:
        [paths.snapshot("{student}", "{kimg}", ema) for ema in run.student_emas()],
    log:
        text=paths.log("distill", "{student}.{kimg}"),
        events=paths.events("distill", "{student}.{kimg}"),
    priority: 10
    retries: 0  # a leg resumes by itself if that can help
    conda:
        "../envs/mscd.yaml"
    threads: 1
    resources:
        launcher="local",
        processes=1,
        batch_per_process=0,
    params:
        identity=student_identity,
    script:
        "../scripts/train_leg.py"


check_resources("distill", {f"students.{name}": student for name, student in run.students.items()})
