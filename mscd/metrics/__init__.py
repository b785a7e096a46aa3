"""Metrics: functions of the features of images, each with its paper's name and equation.

`frechet` is the Fréchet distance between two Gaussians and `extrapolation` its value for infinitely many images.
`kernel` holds KID and CMMD, `manifold` what nearest neighbours say (precision, recall, density, coverage, memorised
images) on top of the exact searches of `neighbours`, and `inception_score` the Inception Score. `resampling` estimates
how sure a number is.

May import only mscd.errors, torch, numpy and scipy, as `make lint` checks.
"""
