"""The mathematics: noise grids, edges, losses, samplers, averages of weights, as functions of tensors and numbers.

Imports mscd.parallel and mscd.errors alone. `solvers` and `ema_names` load no torch, so that the configuration may use
them, and `ema` only numpy.
"""
