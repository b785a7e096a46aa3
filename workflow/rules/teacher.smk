# The training rules here and in distill.smk start their own processes, so they run where Snakemake runs.
# Detector and reference only monitor training (validate_kimg), so changing them retrains nothing.
if run.trained_teacher:

    localrules:
        train_teacher,
        teacher_network,

    rule train_teacher:
        "Train one leg of the teacher."
        input:
            data=paths.data,
            summary=ancient(paths.data_summary),
            detector=ancient(detector_file(detectors[0])),
            reference=ancient(paths.reference(detectors[0])),
            before=teacher_leg_before,
        output:
            [paths.snapshot("{teacher}", "{kimg}", ema) for ema in run.teacher.emas()],
        log:
            text=paths.log("train_teacher", "{teacher}.{kimg}"),
            events=paths.events("train_teacher", "{teacher}.{kimg}"),
        priority: 10
        retries: 0  # a leg resumes by itself if that can help
        conda:
            "../envs/mscd.yaml"
        threads: 2
        resources:
            launcher="local",
            processes=2,
            batch_per_process=0,
        params:
            identity=teacher_training_identity,
        script:
            "../scripts/train_leg.py"

    check_resources("train_teacher", {"teacher": run.teacher})

    rule teacher_network:
        "Use the teacher's last snapshot as the teacher of the students."
        input:
            last_teacher_snapshot,
        output:
            network=paths.teacher("{teacher}"),
            source=paths.teacher_source("{teacher}"),
        log:
            text=paths.log("teacher_network", "{teacher}"),
            events=paths.events("teacher_network", "{teacher}"),
        priority: 10
        conda:
            "../envs/mscd.yaml"
        params:
            identity=teacher_identity,
        script:
            "../scripts/teacher_network.py"

else:

    rule published_teacher:
        "Convert a published diffusion model into the teacher of the students."
        input:
            downloaded("teacher"),
        output:
            network=paths.teacher(),
            source=paths.teacher_source(),
        log:
            text=paths.log("published_teacher", "teacher"),
            events=paths.events("published_teacher", "teacher"),
        priority: 10
        conda:
            "../envs/mscd.yaml"
        params:
            identity=identity_of_teacher(TEACHER),
        script:
            "../scripts/published_teacher.py"


rule published_student:
    "Convert a published student so that it can be scored."
    input:
        downloaded_student,
    output:
        paths.snapshot("{published}", "{kimg}", ema_names.EMA),
    log:
        text=paths.log("published_student", "{published}.{kimg}"),
        events=paths.events("published_student", "{published}.{kimg}"),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=published_student_identity,
    script:
        "../scripts/published_student.py"
