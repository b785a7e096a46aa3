"""Denoising networks that can load the weights of published EDM checkpoints.

`precond` wraps a U-Net in EDM's preconditioning. `song` and `dhariwal` contain the two families of U-Nets; `unet` and
`layers` contain what they share, and `group_norm` their normalisation. `precision` selects the number formats that they
compute in, `compile` compiles their blocks, and `meta` builds them without memory, for their shapes.

This package imports only torch and mscd.errors, because exports copy it. `make lint` checks that it imports no other
package of mscd.
"""

from mscd.networks.precond import EDMPrecond

__all__ = ["EDMPrecond"]
