"""What a run is shown by: its scores as a table and curves, pictures, the export of a student, and what a file is.

scores.py reads a run's score files back, score_table.py and curves.py and comparison.py show them, export.py with
model_card.py and standalone_sampler.py makes a student usable elsewhere, file_info.py is behind `mscd info`. May import
everything below training: evaluation, sampling, checkpoints, data, config; nothing imports it but the command line and
the workflow.
"""
