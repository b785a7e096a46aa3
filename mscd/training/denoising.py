"""How a teacher is trained: by EDM's denoising loss."""

from __future__ import annotations

from collections.abc import Mapping

from mscd.config.training import TeacherSettings
from mscd.diffusion.denoising import denoising_loss
from mscd.methods.interface import MAIN, InTraining, Losses, Method, MicroBatch


class Denoising(Method[TeacherSettings]):
    """EDM's denoising loss with the settings' noise distribution."""

    def losses(self, networks: Mapping[str, InTraining], batch: MicroBatch) -> dict[str, Losses]:
        settings = self.settings
        result = denoising_loss(
            batch.masked(networks[MAIN].wrapped, settings.seed),
            batch.images,
            batch.labels,
            batch.noise(settings.seed),
            batch.normal(settings.seed, "sigma"),
            P_mean=settings.P_mean,
            P_std=settings.P_std,
            sigma_data=settings.sigma_data,
        )
        return {MAIN: Losses(result.loss, result.sigma)}
