"""Denoising networks that take the weights of published EDM checkpoints."""

from mscd.networks.precond import EDMPrecond

__all__ = ["EDMPrecond"]
