"""Check a vision transformer used to compare images, and copy it with its config.json into the run's folder."""

import shutil
from pathlib import Path

from mscd.config.loading import load_config
from mscd.files.atomic import atomic_write
from mscd.launch.script import record_events, script_log
from mscd.provenance.fetch import fetch

with script_log(snakemake.log.text):
    settings = load_config(snakemake.config).reference.third_party(snakemake.wildcards.detector)
    weights, origin = fetch(settings.source, settings.sha256, settings.license)
    config, _ = fetch(str(Path(weights).with_name("config.json")))
    for source, dest in ((weights, snakemake.output.weights), (config, snakemake.output.config)):
        with open(source, "rb") as file, atomic_write(dest) as copy:
            shutil.copyfileobj(file, copy)
    record_events(snakemake.log.events, params=origin)
