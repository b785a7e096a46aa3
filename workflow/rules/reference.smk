if "classifier" in detectors:

    rule train_detector:
        "Train the classifier whose features are used to compare images."
        input:
            data=paths.data,
        output:
            detector=detector_file("classifier"),
            summary=detector_file("classifier").with_suffix(".json"),
        log:
            text=paths.log("train_detector", "classifier"),
            events=paths.events("train_detector", "classifier"),
        conda:
            "../envs/mscd.yaml"
        params:
            identity=detector_identities["classifier"],
        script:
            "../scripts/train_detector.py"


if "inception" in detectors:

    rule inception_detector:
        "Check the Inception network and copy it into the run's folder."
        input:
            downloaded("reference.inception"),
        output:
            detector_file("inception"),
        log:
            text=paths.log("inception_detector", "inception"),
            events=paths.events("inception_detector", "inception"),
        conda:
            "../envs/mscd.yaml"
        params:
            identity=detector_identities["inception"],
        script:
            "../scripts/inception_detector.py"


if {"dinov2", "clip"} & set(detectors):

    rule vision_detector:
        "Check a vision transformer and copy it into the run's folder."
        output:
            weights=paths.root / "reference/{detector}/model.safetensors",
            config=paths.root / "reference/{detector}/config.json",
        log:
            text=paths.log("vision_detector", "{detector}"),
            events=paths.events("vision_detector", "{detector}"),
        conda:
            "../envs/mscd.yaml"
        params:
            identity=detector_identity,
        script:
            "../scripts/vision_detector.py"


rule reference_statistics:
    "Compute the mean and covariance of a detector's features over the data set."
    input:
        data=paths.data,
        detector=detector_of,
    output:
        paths.reference("{detector}"),
    log:
        text=paths.log("reference_statistics", "{detector}"),
        events=paths.events("reference_statistics", "{detector}"),
    wildcard_constraints:
        detector=any_of(name for name in detectors if name != "inception" or run.reference.statistics is None),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=reference_identity,
    script:
        "../scripts/reference_statistics.py"


if run.reference.statistics is not None:

    rule published_reference:
        "Check published reference statistics and adopt them for scoring."
        input:
            downloaded("reference.statistics"),
            summary=paths.data_summary,
            detector=detector_file("inception"),
        output:
            paths.reference("inception"),
        log:
            text=paths.log("published_reference", "inception"),
            events=paths.events("published_reference", "inception"),
        conda:
            "../envs/mscd.yaml"
        params:
            identity=reference_identities["inception"],
        script:
            "../scripts/published_reference.py"


rule training_features:
    "Compute a detector's features of training images, for the metrics that compare single images."
    input:
        data=paths.data,
        detector=detector_of,
    output:
        paths.training_features("{detector}"),
    log:
        text=paths.log("training_features", "{detector}"),
        events=paths.events("training_features", "{detector}"),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=training_features_identity,
    script:
        "../scripts/training_features.py"
