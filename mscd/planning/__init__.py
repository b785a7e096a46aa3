"""What a run will cost, from its settings alone: behind `mscd plan`.

`plan` counts the work, with `cost` for the FLOPs of one evaluation and `disk` for the bytes; `tables` writes it down.

May import training, evaluation, sampling, checkpoints, data, config and what is below them, as `make lint` checks. In
mscd nothing imports it but the command line, and mscd/__init__ when `mscd.plan` is asked for.
"""
