"""Evaluation: detectors, reference statistics, Fréchet distances and scores.

A detector turns images into features: `inception` or the small `classifier`; `detector` loads either.
`feature_statistics` accumulates the mean and covariance of features, and
`reference` stores those of real images in files. `score` scores sample files, `validation` a network in training.

May import sampling, checkpoints, data, networks, config and what is below them, as `make lint` checks; never training
or reporting.
"""
