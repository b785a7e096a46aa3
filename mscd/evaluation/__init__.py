"""Evaluation: detectors, features, reference statistics and scores.

A detector turns images into features: `inception`, DINOv2 or CLIP (`vision_models`), or the small `classifier`;
`detector` loads any of them. `features` are those of sample files and `training_features` those of training images,
in files; `feature_statistics` accumulates their mean and covariance, and `reference` stores those of real images.
`measure` reads every metric off the features. `score` scores sample files, `real_scores` real images, and `validation`
a network in training.

May import sampling, checkpoints, data, networks, config, metrics and what is below them, as `make lint` checks; never
training or reporting.
"""
