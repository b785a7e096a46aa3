"""What images are compared by, and how far apart they are: detectors, reference statistics, Fréchet distances, scores.

A detector turns images into features: `inception`, or the small `classifier`; `detector` loads either.
`feature_statistics` sums features up, `frechet` compares two such sums, `reference` keeps those of real images in
files. `score` scores files of samples, `validation` a network while it trains.

May import sampling, checkpoints, data, networks, config and what is below them, as `make lint` checks; never training
or reporting.
"""
