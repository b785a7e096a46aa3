"""Where a leg is trained: in this process, in several of this machine, or as a Slurm job; and how jobs end.

`run_leg` is the entry; resources, record, outcome and script serve it. Loads no torch: only the processes that train
do (`worker`, and `local` for training in this process). May import training and what is below it, as the layers in
pyproject.toml have it; not cli, not planning.
"""
