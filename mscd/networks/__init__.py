"""Denoising networks that take the weights of published EDM checkpoints.

Stands alone, as an export copies it: imports torch and mscd.errors only.
"""

from mscd.networks.precond import EDMPrecond

__all__ = ["EDMPrecond"]
