"""Multistep consistency distillation of diffusion models."""

__version__ = "0.1.0"
