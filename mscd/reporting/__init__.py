"""The presentation of a run: its scores as a table and curves, pictures, the export of a student, and what a file is.

`scores` reads a run's score files; `score_table`, `curves` and `comparison` present them. `training_cost` adds to the
table by which methods its networks were trained, and at what cost. `export` makes a student usable elsewhere, with a
`model_card` and the `standalone_sampler`. `file_info` is behind `mscd info`.

May import everything below training: evaluation, sampling, checkpoints, data, config and the packages below them
(`make lint` checks this). Only the command line, the workflow and, on access to `mscd.export_student`, mscd/__init__
import it.
"""
