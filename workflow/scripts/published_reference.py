"""Check published reference statistics and adopt them for scoring."""

import json
from pathlib import Path

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.config.loading import load_config
    from mscd.evaluation.reference import adopt_reference
    from mscd.provenance.fetch import fetch

with script_log(snakemake.log.text):
    settings, images = load_config(snakemake.config).reference, json.loads(Path(snakemake.input.summary).read_text())
    statistics = settings.statistics
    path, origin = fetch(statistics.source, statistics.sha256, statistics.license)
    adopt_reference(
        path,
        snakemake.input.detector,
        snakemake.output[0],
        detector_sha256=settings.detector_sha256("inception"),
        resolution=images["resolution"],
        channels=images["channels"],
        origin=origin,
    )
    record_events(snakemake.log.events, params=origin)
