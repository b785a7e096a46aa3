sampling = "{model}/{ema}/{sampler}/seeds-{first}-{last}"
sampling_log = "{model}.{ema}.{sampler}.seeds-{first}-{last}"
samples_file = results / f"samples/{sampling}.npz"


rule generate:
    input:
        network=network_file,
    output:
        samples_file if run.scoring.keep_samples else temp(samples_file),
    log:
        text=logs / f"generate/{sampling_log}.log",
        events=logs / f"generate/{sampling_log}.events.jsonl",
    conda:
        "../envs/mscd.yaml"
    params:
        identity=samples_identity,
    script:
        "../scripts/generate.py"


rule score:
    input:
        samples=sample_files,
        detector=detector_file,
        reference=reference_file,
    output:
        results / f"scores/{sampling}.json",
    log:
        text=logs / f"score/{sampling_log}.log",
        events=logs / f"score/{sampling_log}.events.jsonl",
    conda:
        "../envs/mscd.yaml"
    params:
        identity=score_identity,
    script:
        "../scripts/score.py"
