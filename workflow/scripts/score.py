"""Score a sample batch."""

from mscd.launch.script import imports_without_gc, script_log

with imports_without_gc():
    from mscd.config.loading import load_config
    from mscd.evaluation.score import score
    from mscd.files.event_log import EventLog
    from mscd.parallel.group import default_device

with script_log(snakemake.log.text):
    files = snakemake.input
    result = score(
        files.samples,
        files.reference,
        files.detector,
        snakemake.output[0],
        device=default_device(),
        detector_sha256=load_config(snakemake.config).reference.detector_sha256,
    )
    events = EventLog(snakemake.log.events)
    events.start()
    events.params({name: result[name] for name in ("metric", "nfe", "images", "network_digest", "reference_digest")})
    events.metrics({"score": result["value"]}, result["snapshot_kimg"])
