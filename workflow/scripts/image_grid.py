"""Draw images of the same seeds from the teacher and the best snapshot of each student."""

from pathlib import Path

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.config.loading import load_config
    from mscd.parallel.group import default_device
    from mscd.reporting.comparison import compare_images
    from mscd.reporting.scores import read_scores

with script_log(snakemake.log.text):
    samplers, folder = load_config(snakemake.config).scoring.teacher_samplers, Path(snakemake.output[0]).parent.parent
    compare_images(
        read_scores(snakemake.input.scores),
        folder,
        samplers,
        snakemake.output[0],
        images=snakemake.params.images,
        device=default_device(),
    )
    record_events(snakemake.log.events, artifacts=snakemake.output)
