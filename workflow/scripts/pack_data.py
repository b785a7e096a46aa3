"""Pack the images into the data set that everything is trained on."""

import json
from pathlib import Path

from mscd.config import load_config
from mscd.data import pack
from mscd.events import EventLog
from mscd.job import logged

with logged(snakemake.log.text):
    settings = load_config(snakemake.config).data
    summary = pack(dest=snakemake.output.zip, workers=snakemake.threads, **settings.model_dump())
    Path(snakemake.output.summary).write_text(json.dumps(summary, indent=1) + "\n")
    events = EventLog(snakemake.log.events)
    events.start()
    events.params(summary)
