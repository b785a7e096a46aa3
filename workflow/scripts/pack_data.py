"""Pack the images into the data set for training."""

import json
import tempfile
from pathlib import Path

from mscd.config.loading import load_config
from mscd.data.packing import pack
from mscd.data.splitting import split_dataset
from mscd.files.atomic import write_whole
from mscd.launch.script import record_events, script_log
from mscd.provenance.urls import is_address

with script_log(snakemake.log.text):
    config = load_config(snakemake.config)
    settings, share = config.data, config.reference.held_out_share
    source, origin = "digits", None
    if settings.source != "digits":
        from mscd.provenance.fetch import fetch  # imported here because it is slow to load

        source, origin = fetch(settings.source, settings.sha256, settings.license)
    dest, how = snakemake.output.zip, {"workers": snakemake.threads, **settings.packing()}
    if share is None:
        summary = pack(source, dest, **how)
    else:
        with tempfile.TemporaryDirectory(dir=Path(dest).parent) as scratch:
            whole = Path(scratch, "all.zip")
            summary = split_dataset(whole, dest, snakemake.output.holdout, share, pack(source, whole, **how))
    # Local data without a stated licence has no origin to record.
    summary["origin"] = origin if settings.license or is_address(settings.source) else None
    write_whole(snakemake.output.summary, (json.dumps(summary, indent=1) + "\n").encode())
    del summary["class_counts"]  # too long for a parameter when there are a thousand classes
    origin = summary.pop("origin") or {}
    record_events(snakemake.log.events, params={**summary, **origin, "skipped": len(summary["skipped"])})
