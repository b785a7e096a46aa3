"""Download a published file and check it."""

from mscd.config.loading import load_config
from mscd.launch.script import record_events, script_log
from mscd.provenance.fetch import fetch
from mscd.provenance.licenses import license_text

with script_log(snakemake.log.text) as tell:
    settings = load_config(snakemake.config).files()[snakemake.params.key]
    terms = license_text(settings.source, settings.license)
    tell(f"downloading {settings.source}; licence: {terms}; progress: {snakemake.log.text}")
    origin = fetch(settings.source, settings.sha256, settings.license)[1]
    record_events(snakemake.log.events, params=origin)
