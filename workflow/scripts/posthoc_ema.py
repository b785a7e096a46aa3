"""Reconstruct a student's EMA of another length at a snapshot."""

from mscd.launch.script import imports_without_gc, record_events, script_log

with imports_without_gc():
    from mscd.checkpoints.posthoc_ema import reconstruct_ema

with script_log(snakemake.log.text):
    std, kimg = float(snakemake.wildcards.std), int(snakemake.wildcards.kimg)
    made = reconstruct_ema(list(snakemake.input), snakemake.output[0], std=std, kimg=kimg)
    record_events(snakemake.log.events, params={"std": std, "snapshot_kimg": kimg}, tags={"network": made["digest"]})
