"""Join the sample batches of the jobs that shared a block of seeds."""

from mscd.events import EventLog
from mscd.job import logged
from mscd.samples import join_samples

with logged(snakemake.log.text):
    seeds = range(int(snakemake.wildcards.first), int(snakemake.wildcards.last) + 1)
    made = join_samples(snakemake.input.parts, snakemake.output[0], seeds=seeds)
    events = EventLog(snakemake.log.events)
    events.start()
    events.params({"parts": len(snakemake.input.parts), "nfe": made["nfe"], "network": made["network"]["digest"]})
