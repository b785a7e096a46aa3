"""Check the Inception network used to compare images, and copy it into the run's folder."""

import shutil

from mscd.config.loading import load_config
from mscd.files.atomic import atomic_write
from mscd.launch.script import record_events, script_log
from mscd.provenance.fetch import fetch

with script_log(snakemake.log.text):
    settings = load_config(snakemake.config).reference.inception
    path, origin = fetch(settings.source, settings.sha256, settings.license)
    with open(path, "rb") as source, atomic_write(snakemake.output[0]) as file:
        shutil.copyfileobj(source, file)
    record_events(snakemake.log.events, params=origin)
