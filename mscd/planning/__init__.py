"""What a run will cost, computed from its settings alone. Behind `mscd plan`.

`plan` counts the work, using `cost` for the FLOPs of one evaluation, `networks` for what a training holds and `disk`
for the bytes; `tables` formats the result.

May import training, evaluation, sampling, checkpoints, data, config and the packages below them (`make lint` checks
this). Within mscd, only the command line and, on access to `mscd.plan`, mscd/__init__ import it.
"""
