"""Sample images from a network for a range of seeds, and compute their features if the images are not kept."""

import tempfile
from pathlib import Path

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.config.loading import load_config
    from mscd.evaluation.detector import load_detector
    from mscd.evaluation.features import outputs_for, write_features
    from mscd.parallel.group import default_device
    from mscd.sampling.generate import generate

with script_log(snakemake.log.text), tempfile.TemporaryDirectory() as scratch:
    config, wildcards, files = load_config(snakemake.config), snakemake.wildcards, snakemake.output
    how = config.scoring.sampling(wildcards.model, wildcards.sampler)
    seeds = range(int(wildcards.first), int(wildcards.last) + 1)
    samples, batch_size = files.get("samples", Path(scratch, "samples.npz")), config.scoring.batch_size
    made = generate(
        snakemake.input.network,
        samples,
        seeds=seeds,
        batch_size=batch_size,
        device=default_device(),
        **how.model_dump(),
    )
    if "features" in files.keys():
        for name, path, dest in zip(
            config.reference.detectors(), snakemake.input.detectors, files.features, strict=True
        ):
            detector = load_detector(path, default_device(), config.reference.detector_sha256(name))
            outputs = outputs_for(config.metrics_of(name))
            write_features([samples], detector, dest, outputs=outputs, batch_size=batch_size)
    record_events(snakemake.log.events, params={"nfe": made["nfe"], "network": made["network"]["digest"]})
