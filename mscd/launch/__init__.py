"""Launching a leg: in this process, in several processes on this machine, or as a Slurm job; and how jobs end.

`run_leg` is the entry point. It trains through `local` or `slurm`, which controls Slurm through `slurm_commands`.
`resources` describes what a profile requests, `record` what a launcher notes about its job, and `signals` the signals
that stop a launcher. `worker` runs in each process of a job, and `outcome` finds out how the processes ended. `script`
serves the workflow's scripts.

The package does not load torch; only processes that train do (`worker`, and `local` for training in this process). It
may import mscd.training, the layers below it and mscd.errors, but not cli or planning; `make lint` checks this.
"""
