"""What a run is shown by: its scores as a table and curves, pictures, the export of a student, and what a file is.

`scores` reads a run's score files back, `score_table`, `curves` and `comparison` show them. `export` makes a student
usable elsewhere, with a `model_card` and the `standalone_sampler`. `file_info` is behind `mscd info`.

May import everything below training: evaluation, sampling, checkpoints, data, config and what is below them;
`make lint` checks it. Nothing imports it but the command line, the workflow, and mscd/__init__ when
`mscd.export_student` is asked for.
"""
