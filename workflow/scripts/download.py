"""Download a file that others published, and check it."""

from mscd.config import load_config
from mscd.download import fetch_for
from mscd.events import EventLog
from mscd.job import logged

with logged(snakemake.log.text):
    settings = load_config(snakemake.config).files()[snakemake.params.key]
    origin = fetch_for(settings)[1]
    events = EventLog(snakemake.log.events)
    events.start()
    events.params(origin)
