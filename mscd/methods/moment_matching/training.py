"""Training by moment matching: auxiliary denoiser and student take turns."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mscd.diffusion.denoising import denoised_from, output_scale
from mscd.diffusion.losses import loss_weight
from mscd.diffusion.steps import per_image, posterior_step
from mscd.methods.interface import MAIN, InTraining, Losses, Mean, MicroBatch, Part, StudentMethod
from mscd.methods.moment_matching.loss import auxiliary_loss, level_pairs, student_loss, sum_of_squares
from mscd.methods.moment_matching.settings import MomentMatchingSettings

AUXILIARY = "auxiliary"


class MomentMatching(StudentMethod[MomentMatchingSettings]):
    """Even steps train the auxiliary denoiser, odd steps the student."""

    def parts(self) -> dict[str, Part]:
        return {AUXILIARY: Part(self.copy_of_teacher(), self.settings.optimizer_options())}

    def updated(self, step: int) -> list[str]:
        return [MAIN] if step % 2 else [AUXILIARY]

    def losses(self, networks: Mapping[str, InTraining], batch: MicroBatch) -> dict[str, Losses]:
        seed, students_turn = self.settings.seed, MAIN in self.updated(batch.step)
        uniform = (batch.uniform(seed, "time"), batch.uniform(seed, "gap"))
        sigma_s, sigma_t = level_pairs(*uniform, self.settings.segments)
        z_t = batch.images.double() + per_image(sigma_t) * batch.noise(seed).double()
        student = networks[MAIN].wrapped if students_turn else networks[MAIN].net
        with torch.set_grad_enabled(students_turn):
            x_tilde = batch.masked(student, seed)(z_t, sigma_t, batch.labels).double()
        z_s = posterior_step(z_t, x_tilde.detach(), sigma_t, sigma_s, batch.noise(seed, "posterior noise"))
        auxiliary = networks[AUXILIARY].net if students_turn else networks[AUXILIARY].wrapped
        with torch.set_grad_enabled(not students_turn):
            F_phi = batch.masked(auxiliary, seed)(z_s, sigma_s, batch.labels, raw=True)
        with torch.no_grad():
            F_theta = self.teacher(z_s, sigma_s, batch.labels, raw=True)
        # D_phi - D_theta: taken from denoised images, it would be rounded away at low noise.
        difference = per_image(output_scale(sigma_s, self.teacher.sigma_data)) * (F_phi - F_theta).double()
        weight = loss_weight(self.settings.weight, sigma_s, sigma_s, self.teacher.sigma_data)
        shown = {"discrepancy": Mean(sum_of_squares(difference.detach()))}
        if students_turn:
            return {MAIN: Losses(student_loss(x_tilde, difference, weight), sigma_s, shown)}
        D_phi = denoised_from(F_phi, z_s, sigma_s, self.teacher.sigma_data)
        return {AUXILIARY: Losses(auxiliary_loss(x_tilde, D_phi, difference, weight), sigma_s, shown)}
