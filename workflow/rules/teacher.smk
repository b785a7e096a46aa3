# The rules here and in distill.smk start their processes themselves, so they run where Snakemake runs.
# Detector and reference only watch the training (validate_kimg): changed ones retrain nothing.
if run.trained_teacher:

    localrules:
        train_teacher,
        teacher_network,

    rule train_teacher:
        input:
            data=data_zip,
            summary=ancient(data_summary),
            detector=ancient(detector_file),
            reference=ancient(reference_file),
            before=teacher_leg_before,
        output:
            expand(results / "teacher/{{kimg}}/{ema}.safetensors", ema=run.teacher.emas()),
        log:
            text=logs / "train_teacher/{kimg}.log",
            events=logs / "train_teacher/{kimg}.events.jsonl",
        priority: 10
        retries: 0  # a leg resumes by itself where that can help
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
        input:
            results / f"teacher/{run.teacher.duration_kimg}/ema.safetensors",
        output:
            network=teacher_file,
            source=results / "teacher/source.json",
        log:
            text=logs / "teacher_network/teacher.log",
            events=logs / "teacher_network/teacher.events.jsonl",
        priority: 10
        conda:
            "../envs/mscd.yaml"
        params:
            identity=teacher_identity,
        script:
            "../scripts/teacher_network.py"

else:

    rule published_teacher:
        input:
            downloaded("teacher"),
        output:
            network=teacher_file,
            source=results / "teacher/source.json",
        log:
            text=logs / "published_teacher/teacher.log",
            events=logs / "published_teacher/teacher.events.jsonl",
        priority: 10
        conda:
            "../envs/mscd.yaml"
        params:
            identity=teacher_identity,
        script:
            "../scripts/published_teacher.py"


rule published_student:
    input:
        downloaded_student,
    output:
        results / "students/{published}/{kimg}/ema.safetensors",
    log:
        text=logs / "published_student/{published}.{kimg}.log",
        events=logs / "published_student/{published}.{kimg}.events.jsonl",
    conda:
        "../envs/mscd.yaml"
    params:
        identity=published_student_identity,
    script:
        "../scripts/published_student.py"
