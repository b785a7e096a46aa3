"""Take over the published statistics that images are scored against."""

from mscd.config import load_config
from mscd.data import ImageDataset
from mscd.download import fetch_for
from mscd.events import EventLog
from mscd.features import adopt_reference
from mscd.job import logged

with logged(snakemake.log.text):
    settings, dataset = load_config(snakemake.config).reference, ImageDataset(snakemake.input.data)
    path, origin = fetch_for(settings.statistics)
    adopt_reference(
        path,
        snakemake.input.detector,
        snakemake.output[0],
        detector_sha256=settings.detector_sha256,
        resolution=dataset.resolution,
        channels=dataset.channels,
        origin=origin,
    )
    events = EventLog(snakemake.log.events)
    events.start()
    events.params(origin)
