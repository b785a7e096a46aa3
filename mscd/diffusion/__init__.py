"""The mathematics of diffusion and distillation, as functions of tensors and numbers.

`sigmas` defines the noise grids, `steps` single steps between noise levels, `samplers` the samplers and `solvers` their
names and cost. `denoising` contains a teacher's loss, `losses` weights and distances that methods share. `ema` computes
weight averages and `ema_names` names them. `pixels` converts images between bytes and numbers.

Imports only mscd.parallel and mscd.errors. `solvers` and `ema_names` do not import torch, so the configuration can use
them; `ema` imports only numpy.
"""
