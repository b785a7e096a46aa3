"""What images are compared by, and how far apart they are: detectors, reference statistics, Fréchet distances, scores.

A detector (classifier.py, inception.py; detector.py loads either) turns images into features, feature_statistics.py
sums these up, frechet.py compares two such sums, reference.py keeps those of real images in files, score.py scores
files of samples and validation.py a network while it trains. May import sampling, checkpoints, data, config and what is
below them; never training or reporting.
"""
