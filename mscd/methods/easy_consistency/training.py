"""Training by easy consistency tuning."""

from __future__ import annotations

from collections.abc import Mapping

from mscd.methods.easy_consistency.loss import (
    easy_consistency_loss,
    lognormal_times,
    lower_times,
    stage_number,
    stage_ratio,
)
from mscd.methods.easy_consistency.settings import EasyConsistencySettings
from mscd.methods.interface import MAIN, InTraining, Losses, Mean, MicroBatch, StudentMethod


class EasyConsistency(StudentMethod[EasyConsistencySettings]):
    """Pairs of noise levels from the image and noise of each training image."""

    def losses(self, networks: Mapping[str, InTraining], batch: MicroBatch) -> dict[str, Losses]:
        settings, student = self.settings, networks[MAIN]
        t = lognormal_times(batch.normal(settings.seed, "sigma"), settings.P_mean, settings.P_std)
        r = lower_times(t, stage_ratio(self._stage(batch.nimg), settings.q), k=settings.k, b=settings.b)
        result = easy_consistency_loss(
            batch.masked(student.wrapped, settings.seed),
            batch.masked(student.net, settings.seed),
            batch.images,
            batch.labels,
            batch.noise(settings.seed),
            t,
            r,
            c=settings.huber_c,
            weight_kind=settings.weight,
            sigma_data=self.teacher.sigma_data,
        )
        return {MAIN: Losses(result.loss, t, {"share/clean_target": Mean((r == 0).double())})}

    def schedules(self, nimg: int) -> dict[str, float]:
        return {"stage": self._stage(nimg)}

    def _stage(self, nimg: int) -> int:
        return stage_number(nimg, self.settings.stage_kimg)
