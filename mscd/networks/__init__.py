"""Denoising networks that take the weights of published EDM checkpoints.

`precond` wraps a U-Net in EDM's preconditioning; `song` and `dhariwal` are the two families of U-Nets, `unet` and
`layers` what they share, `group_norm` their normalisation. How they compute: `precision` in which number formats,
`compile` with compiled blocks, `meta` without memory, for shapes alone.

Stands alone, as an export copies it: imports torch and mscd.errors only. `make lint` checks that it imports no other
package of mscd.
"""

from mscd.networks.precond import EDMPrecond

__all__ = ["EDMPrecond"]
