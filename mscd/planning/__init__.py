"""What a run will cost, from its settings alone: behind `mscd plan`.

cost.py counts the FLOPs of one evaluation, plan.py the work, disk.py the bytes, and tables.py writes it down. May
import training, evaluation, sampling, checkpoints, data, config and what is below them; nothing imports it but the
command line.
"""
