"""The random draws of a seed: its latent, its class and its churn noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class SeededDraws:
    """Random draws in which row i depends on seeds[i] alone, at any batch size; one generator per seed modulo 2^32."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.generators = [torch.Generator(self.device).manual_seed(int(seed) % (1 << 32)) for seed in seeds]

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Draw standard normal numbers [len(seeds), *shape]."""
        draws = torch.empty([len(self.generators), *shape], dtype=dtype, device=self.device)
        for row, generator in zip(draws.unbind(), self.generators, strict=True):
            row.normal_(generator=generator)
        return draws

    def randn_like(self, x: torch.Tensor) -> torch.Tensor:
        """Draw standard normal numbers of x's shape and dtype; x has one row per seed."""
        return self.randn(x.shape[1:], x.dtype)

    def randint(self, high: int) -> torch.Tensor:
        """Draw integers uniformly from 0 .. high - 1, int64 [len(seeds)]."""
        draws = torch.empty(len(self.generators), dtype=torch.int64, device=self.device)
        for row, generator in zip(draws.unbind(), self.generators, strict=True):
            row.random_(0, high, generator=generator)
        return draws

    def noise_and_labels(self, shape: Sequence[int], label_dim: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Make the seeds' first two draws: latents [N, *shape], one-hot classes float32 [N, label_dim] (None for 0)."""
        noise = self.randn(shape)
        if not label_dim:
            return noise, None
        return noise, torch.nn.functional.one_hot(self.randint(label_dim), label_dim).float()
