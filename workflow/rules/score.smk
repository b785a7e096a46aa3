sampling = "{model}/{ema}/{sampler}-{steps}/seeds-{first}-{last}"
sampling_log = "{model}.{ema}.{sampler}-{steps}.seeds-{first}-{last}"
samples_file = results / f"samples/{sampling}.npz"
samples_output = samples_file if run.scoring.keep_samples else temp(samples_file)
part_output = temp(results / "samples/{model}/{ema}/{sampler}-{steps}/part-{first}-{last}.npz")


rule generate:
    input:
        network=network_file,
    output:
        part_output if run.scoring.shared_blocks else samples_output,
    log:
        text=logs / f"generate/{sampling_log}.log",
        events=logs / f"generate/{sampling_log}.events.jsonl",
    conda:
        "../envs/mscd.yaml"
    params:
        identity=samples_identity,
    script:
        "../scripts/generate.py"


# The joined file has the name of one that a single job makes, so scores do not know how a block was shared.
if run.scoring.shared_blocks:

    rule join_samples:
        input:
            parts=parts_of_samples,
        output:
            samples_output,
        log:
            text=logs / f"join_samples/{sampling_log}.log",
            events=logs / f"join_samples/{sampling_log}.events.jsonl",
        conda:
            "../envs/mscd.yaml"
        params:
            identity=samples_identity,
        script:
            "../scripts/join_samples.py"


rule score:
    input:
        samples=samples_file,
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
