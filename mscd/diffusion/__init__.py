"""The mathematics, as functions of tensors and numbers: `sigmas` are the noise grids, `edges` the jumps that a student
learns, `consistency` and `denoising` the losses, `samplers` and `solvers` the ways to sample, `ema` the averages of
weights and `ema_names` what those are called, `pixels` images as bytes and as numbers.

Imports mscd.parallel and mscd.errors alone. `solvers` and `ema_names` load no torch, so that the configuration may use
them, and `ema` only numpy.
"""
