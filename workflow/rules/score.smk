sampled_seeds = ("{model}", "{ema}", "{sampler}", "{first}", "{last}")
sampling_log = "{model}.{ema}.{sampler}.seeds-{first}-{last}"
features_log = "{detector}.{model}.{ema}.{sampler}.seeds-{first}-{last}"

# Images that are not kept never leave the job that makes them.
if run.scoring.keep_samples:

    rule generate:
        "Sample images from a network for a range of seeds."
        input:
            network=network_file,
        output:
            samples=paths.samples(*sampled_seeds),
        log:
            text=paths.log("generate", sampling_log),
            events=paths.events("generate", sampling_log),
        conda:
            "../envs/mscd.yaml"
        params:
            identity=samples_identity,
        script:
            "../scripts/generate.py"

    rule features:
        "Compute a detector's features of generated images."
        input:
            samples=paths.samples(*sampled_seeds),
            detector=detector_of,
        output:
            paths.features("{detector}", *sampled_seeds),
        log:
            text=paths.log("features", features_log),
            events=paths.events("features", features_log),
        conda:
            "../envs/mscd.yaml"
        params:
            identity=features_identity,
        script:
            "../scripts/features.py"

else:

    rule generate:
        "Sample images from a network for a range of seeds, and compute their features."
        input:
            network=network_file,
            detectors=[detector_file(detector) for detector in detectors],
        output:
            features=[
                path if run.scoring.keep_features else temp(path)
                for path in (paths.features(detector, *sampled_seeds) for detector in detectors)
            ],
        log:
            text=paths.log("generate", sampling_log),
            events=paths.events("generate", sampling_log),
        conda:
            "../envs/mscd.yaml"
        params:
            identity=sampled_features_identity,
        script:
            "../scripts/generate.py"


rule score:
    "Score a network by the features of its images in all seed blocks."
    input:
        features=feature_files,
        reference=paths.reference("{detector}"),
        training=paths.training_features("{detector}"),
    output:
        paths.score("{detector}", "{model}", "{ema}", "{sampler}"),
    log:
        text=paths.log("score", "{detector}.{model}.{ema}.{sampler}"),
        events=paths.events("score", "{detector}.{model}.{ema}.{sampler}"),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=score_identity,
    script:
        "../scripts/score.py"


rule score_real_images:
    "Score real images like generated ones, to show what perfect images would score."
    input:
        **({"holdout": paths.holdout} if run.reference.holdout is not None else {}),
        data=paths.data,
        detector=detector_of,
        reference=paths.reference("{detector}"),
        training=paths.training_features("{detector}"),
    output:
        **{which.replace("-", "_"): paths.real_score("{detector}", which) for which in real_images},
    log:
        text=paths.log("score_real_images", "{detector}"),
        events=paths.events("score_real_images", "{detector}"),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=real_score_identity,
    script:
        "../scripts/score_real_images.py"
