"""Pack the images into the data set that everything is trained on."""

import json
from pathlib import Path

from mscd.config import load_config
from mscd.data import pack
from mscd.download import fetch_for
from mscd.events import EventLog
from mscd.job import logged

with logged(snakemake.log.text):
    settings = load_config(snakemake.config).data
    source = settings.source if settings.source == "digits" else fetch_for(settings)[0]
    summary = pack(source, snakemake.output.zip, workers=snakemake.threads, **settings.packing())
    Path(snakemake.output.summary).write_text(json.dumps(summary, indent=1) + "\n")
    events = EventLog(snakemake.log.events)
    events.start()
    del summary["class_counts"]  # of a thousand classes: too long to be a parameter
    events.params({**summary, "skipped": len(summary["skipped"])})
