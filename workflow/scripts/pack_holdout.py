"""Pack held-out images from a source of their own, like the training images."""

from mscd.config.loading import load_config
from mscd.data.packing import pack
from mscd.launch.script import record_events, script_log
from mscd.provenance.fetch import fetch

with script_log(snakemake.log.text):
    config = load_config(snakemake.config)
    settings = config.reference.held_out_source
    source, origin = fetch(settings.source, settings.sha256, settings.license)
    how = config.data.packing() | {"max_images": None, "classes": None}
    summary = pack(source, snakemake.output[0], workers=snakemake.threads, **how)
    record_events(snakemake.log.events, params={"images": summary["images"], "digest": summary["digest"], **origin})
