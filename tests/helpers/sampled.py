"""A student's grid, and the images that a network generates."""

from mscd.sampling.generate import generate
from mscd.sampling.sample_file import read_samples

STUDENT = {"segments": 4, "sigma_min": 0.01, "sigma_max": 40.0, "rho": 5.0}


def images_of(network, dest, **how):
    """Generate images to dest; return them, uint8 [N, H, W, C]."""
    generate(network, dest, **how)
    return read_samples(dest)[0]
