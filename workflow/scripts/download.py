"""Download a file that others published, and check it."""

from mscd.config.loading import load_config
from mscd.files.event_log import EventLog
from mscd.launch.script import script_log
from mscd.provenance.fetch import fetch
from mscd.provenance.licenses import license_text

with script_log(snakemake.log.text) as tell:
    settings = load_config(snakemake.config).files()[snakemake.params.key]
    terms = license_text(settings.source, settings.license)
    tell(f"downloading {settings.source}; licence: {terms}; progress: {snakemake.log.text}")
    origin = fetch(settings.source, settings.sha256, settings.license)[1]
    events = EventLog(snakemake.log.events)
    events.start()
    events.params(origin)
