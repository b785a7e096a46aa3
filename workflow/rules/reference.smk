if run.reference.detector == "classifier":

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

else:

    rule inception_detector:
        input:
            downloaded("reference.inception"),
        output:
            detector_file,
        log:
            text=logs / "inception_detector/inception.log",
            events=logs / "inception_detector/inception.events.jsonl",
        conda:
            "../envs/mscd.yaml"
        params:
            identity=detector_identity,
        script:
            "../scripts/inception_detector.py"


if run.reference.statistics is None:

    rule reference_statistics:
        input:
            data=data_zip,
            detector=detector_file,
        output:
            reference_file,
        log:
            text=logs / "reference_statistics/reference.log",
            events=logs / "reference_statistics/reference.events.jsonl",
        conda:
            "../envs/mscd.yaml"
        params:
            identity=detector_identity,
        script:
            "../scripts/reference_statistics.py"

else:

    rule published_reference:
        input:
            downloaded("reference.statistics"),
            summary=data_summary,
            detector=detector_file,
        output:
            reference_file,
        log:
            text=logs / "published_reference/reference.log",
            events=logs / "published_reference/reference.events.jsonl",
        conda:
            "../envs/mscd.yaml"
        params:
            identity=detector_identity,
        script:
            "../scripts/published_reference.py"
