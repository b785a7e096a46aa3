sampled_seeds = ("{model}", "{ema}", "{sampler}", "{first}", "{last}")
sampling_log = "{model}.{ema}.{sampler}.seeds-{first}-{last}"
samples_file = paths.samples(*sampled_seeds)


rule generate:
    "Sample images from a network for a range of seeds."
    input:
        network=network_file,
    output:
        samples_file if run.scoring.keep_samples else temp(samples_file),
    log:
        text=paths.log("generate", sampling_log),
        events=paths.events("generate", sampling_log),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=samples_identity,
    script:
        "../scripts/generate.py"


rule score:
    "Score the samples of a seed block against the reference."
    input:
        samples=sample_files,
        detector=detector_file,
        reference=reference_file,
    output:
        paths.score(*sampled_seeds),
    log:
        text=paths.log("score", sampling_log),
        events=paths.events("score", sampling_log),
    conda:
        "../envs/mscd.yaml"
    params:
        identity=score_identity,
    script:
        "../scripts/score.py"
