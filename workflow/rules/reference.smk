if run.reference.detector == "classifier":

    rule train_detector:
        "Train the classifier whose features are used to compare images."
        input:
            data=paths.data,
        output:
            detector=detector_file,
            summary=detector_file.with_suffix(".json"),
        log:
            text=paths.log("train_detector", "classifier"),
            events=paths.events("train_detector", "classifier"),
        conda:
            "../envs/mscd.yaml"
        params:
            identity=detector_identity,
        script:
            "../scripts/train_detector.py"

else:

    rule inception_detector:
        "Check the Inception network and copy it into the run's folder."
        input:
            downloaded("reference.inception"),
        output:
            detector_file,
        log:
            text=paths.log("inception_detector", "inception"),
            events=paths.events("inception_detector", "inception"),
        conda:
            "../envs/mscd.yaml"
        params:
            identity=detector_identity,
        script:
            "../scripts/inception_detector.py"


if run.reference.statistics is None:

    rule reference_statistics:
        "Compute the mean and covariance of the detector's features over the data set."
        input:
            data=paths.data,
            detector=detector_file,
        output:
            reference_file,
        log:
            text=paths.log("reference_statistics", "reference"),
            events=paths.events("reference_statistics", "reference"),
        conda:
            "../envs/mscd.yaml"
        params:
            identity=detector_identity,
        script:
            "../scripts/reference_statistics.py"

else:

    rule published_reference:
        "Check published reference statistics and adopt them for scoring."
        input:
            downloaded("reference.statistics"),
            summary=paths.data_summary,
            detector=detector_file,
        output:
            reference_file,
        log:
            text=paths.log("published_reference", "reference"),
            events=paths.events("published_reference", "reference"),
        conda:
            "../envs/mscd.yaml"
        params:
            identity=detector_identity,
        script:
            "../scripts/published_reference.py"
