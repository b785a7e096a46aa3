"""Where a leg is trained: in this process, in several of this machine, or as a Slurm job; and how jobs end.

`run_leg` is the entry: it trains by `local` or by `slurm`, which talks to Slurm through `slurm_commands`; `resources`
is what a profile asks for, `record` what a launcher notes of its job, `signals` what asks it to stop. `worker` is what
each process of a job does, `outcome` how they ended. `script` serves the workflow's scripts.

Loads no torch: only the processes that train do (`worker`, and `local` for training in this process). May import
training and what is below it, and mscd.errors, as `make lint` checks; not cli, not planning.
"""
