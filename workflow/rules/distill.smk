localrules:
    distill,


rule distill:
    input:
        data=data_zip,
        summary=ancient(data_summary),
        teacher=teacher_file,
        detector=ancient(detector_file),
        reference=ancient(reference_file),
        before=student_leg_before,
    output:
        expand(results / "students/{{student}}/{{kimg}}/{ema}.safetensors", ema=run.student_emas()),
    log:
        text=logs / "distill/{student}.{kimg}.log",
        events=logs / "distill/{student}.{kimg}.events.jsonl",
    priority: 10
    retries: 0  # a leg resumes by itself where that can help
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
