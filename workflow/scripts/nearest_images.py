"""Draw the generated images that are closest to a training image beside it."""

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.config.loading import load_config
    from mscd.parallel.group import default_device
    from mscd.reporting.nearest import nearest_images
    from mscd.reporting.scores import read_scores

with script_log(snakemake.log.text):
    config = load_config(snakemake.config)
    nearest_images(
        read_scores(snakemake.input.scores),
        config.paths.root,
        snakemake.input.data,
        config.scoring.teacher_samplers,
        snakemake.output[0],
        device=default_device(),
    )
    record_events(snakemake.log.events, artifacts=snakemake.output)
