rule train_detector:
    input:
        data=data_zip,
    output:
        detector=detector_file,
        summary=detector_file.with_suffix(".json"),
    log:
        text=logs / "train_detector/classifier.log",
        events=logs / "train_detector/classifier.events.jsonl",
    conda:
        "../envs/mscd.yaml"
    params:
        identity=detector_identity,
    script:
        "../scripts/train_detector.py"


rule reference_statistics:
    input:
        data=data_zip,
        detector=detector_file,
    output:
        reference_file,
    log:
        text=logs / "reference_statistics/classifier.log",
        events=logs / "reference_statistics/classifier.events.jsonl",
    conda:
        "../envs/mscd.yaml"
    params:
        identity=detector_identity,
    script:
        "../scripts/reference_statistics.py"
