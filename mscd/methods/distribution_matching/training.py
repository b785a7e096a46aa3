"""Training by distribution matching: the student's steps, and those of its critic and the head."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import torch

from mscd.diffusion.denoising import denoising_loss
from mscd.diffusion.losses import loss_weight
from mscd.diffusion.sigmas import node_sigmas
from mscd.diffusion.steps import per_image
from mscd.methods.distribution_matching.divergence import density_ratio, divergence_weight, relative_ratio
from mscd.methods.distribution_matching.head import DiscriminatorHead
from mscd.methods.distribution_matching.loss import (
    INDEX_RANGE,
    LEVELS,
    critic_loss,
    direction,
    discriminator_loss,
    generator_loss,
    matching_loss,
    noise_levels,
    sid_loss,
    sid_sigmas,
)
from mscd.methods.distribution_matching.settings import DistributionMatchingSettings
from mscd.methods.interface import MAIN, InTraining, Losses, Mean, MicroBatch, Part, StudentMethod, frozen
from mscd.networks import EDMPrecond
from mscd.parallel.prefetch import send_to

CRITIC, HEAD = "critic", "head"
BINS = 10  # of noise levels, each with its own mean density ratio
SID_SCALE = 100.0


class Heads(torch.nn.ModuleList):
    """One head per feature map of the teacher, and the mean density ratio of each bin of noise levels."""

    ratio_means: torch.Tensor

    def __init__(self, channels: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__([DiscriminatorHead(c, width) for c, width in zip(channels, widths, strict=True)])
        self.register_buffer("ratio_means", torch.ones(BINS))

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return one logit per image and head, [N, heads]."""
        return torch.cat([head(feature) for head, feature in zip(self, features, strict=True)], dim=1)


class DistributionMatching(StudentMethod[DistributionMatchingSettings]):
    """Every `student_every`-th step trains the student, the first one too; the others its critic and the head."""

    def __init__(
        self,
        settings: DistributionMatchingSettings,
        total: Callable[[torch.Tensor], torch.Tensor],
        teacher: EDMPrecond,
    ) -> None:
        super().__init__(settings, total, teacher)
        if teacher.precision == "fp16":  # the student's gradients pass through the teacher, and fp16 rounds them to 0
            teacher.precision = settings.precision

    @property
    def needs_whole_share(self) -> bool:
        return self.settings.divergence != "rkl"

    def parts(self) -> dict[str, Part]:
        free = dataclasses.replace(self.settings.optimizer_options(), clip_norm=None)
        parts = {CRITIC: Part(self.copy_of_teacher(), free)}
        if self.settings.has_head:
            one = next(self.teacher.parameters()).new_ones(1)
            size = (1, self.teacher.img_channels, self.teacher.img_resolution, self.teacher.img_resolution)
            features = self.teacher.features(one.new_zeros(size), one, None, self.settings.gan_widths)
            parts[HEAD] = Part(Heads([feature.shape[1] for feature in features], self.settings.gan_widths), free)
        return parts

    def updated(self, step: int) -> list[str]:
        if step % self.settings.student_every == 0:
            return [MAIN]
        return [CRITIC, HEAD] if self.settings.has_head else [CRITIC]

    def losses(self, networks: Mapping[str, InTraining], batch: MicroBatch) -> dict[str, Losses]:
        students_turn = MAIN in self.updated(batch.step)
        student = networks[MAIN].wrapped if students_turn else networks[MAIN].net
        with torch.set_grad_enabled(students_turn):
            x = self._images(student, batch)
        if students_turn:
            return self._student(networks, batch, x) if self.settings.loss == "dmd2" else self._sid(networks, batch, x)
        return self._critic_and_head(networks, batch, x)

    @functools.cached_property
    def _levels(self) -> torch.Tensor:
        """The noise levels, on the teacher's device."""
        return send_to(next(self.teacher.parameters()).device, noise_levels())

    @functools.cached_property
    def _nodes(self) -> torch.Tensor:
        """The student's nodes, on the teacher's device."""
        grid = node_sigmas(self.settings.nodes, self.settings.segments)
        return send_to(next(self.teacher.parameters()).device, grid[:-1])

    def _images(self, student: torch.nn.Module, batch: MicroBatch) -> torch.Tensor:
        """Return the student's images: of pure noise or, if it has several nodes, of noisy training images at any."""
        nodes = self._nodes
        noise = batch.noise(self.settings.seed).double()
        if len(nodes) == 1:
            sigma, z = nodes.expand(len(noise)), nodes[0] * noise
        else:
            sigma = nodes[(batch.uniform(self.settings.seed, "node") * len(nodes)).long()]
            z = batch.images.double() + per_image(sigma) * noise
        return batch.masked(student, self.settings.seed)(z, sigma, batch.labels)

    def _noisy(self, images: torch.Tensor, batch: MicroBatch, purpose: str) -> tuple[torch.Tensor, ...]:
        """Return the images with noise of a level drawn from the table, the level [n], and its index [n]."""
        low, high = INDEX_RANGE
        index = low + (batch.uniform(self.settings.seed, f"{purpose} level") * (high - low + 1)).long()
        sigma = self._levels[index]
        return images + per_image(sigma) * batch.noise(self.settings.seed, f"{purpose} noise").double(), sigma, index

    def _student(self, networks: Mapping[str, InTraining], batch: MicroBatch, x: torch.Tensor) -> dict[str, Losses]:
        """Return DMD2's loss of the student, with the adversarial loss if there is a head."""
        settings = self.settings
        z, sigma, index = self._noisy(x, batch, "student")
        shown, weight, adversarial = {}, None, torch.zeros_like(sigma)
        with torch.no_grad():
            D_fake = batch.masked(networks[CRITIC].net, settings.seed)(z, sigma, batch.labels)
        if settings.has_head:
            D_real, features = self.teacher.with_features(z, sigma, batch.labels, settings.gan_widths)
            heads = networks[HEAD].net
            assert isinstance(heads, Heads)
            logits = frozen(heads)(features)
            adversarial = generator_loss(logits)
            shown["generator_loss"] = Mean(adversarial.detach())
            weight = self._divergence(heads, logits, index)
        else:
            with torch.no_grad():
                D_real = self.teacher(z, sigma, batch.labels)
        matching = matching_loss(x, direction(x, D_real, D_fake, weight))
        shown["matching_loss"] = Mean(matching.detach())
        return {MAIN: Losses(matching + settings.gan_weight * adversarial, sigma, shown)}

    def _divergence(self, heads: Heads, logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor | None:
        """Return the weight of each image by the density ratio, whose means are over the global batch."""
        if self.settings.divergence == "rkl":
            return None
        r, means = relative_ratio(
            density_ratio(logits),
            index * BINS // LEVELS,
            heads.ratio_means,
            decay=self.settings.divergence_decay,
            total=self.total,
        )
        heads.ratio_means.copy_(means)
        return divergence_weight(self.settings.divergence, r, total=self.total)

    def _sid(self, networks: Mapping[str, InTraining], batch: MicroBatch, x: torch.Tensor) -> dict[str, Losses]:
        """Return SiD's loss of the student, whose gradient runs through both denoisers."""
        sigma = sid_sigmas(batch.uniform(self.settings.seed, "student level"))
        z = x + per_image(sigma) * batch.noise(self.settings.seed, "student noise").double()
        D_real = self.teacher(z, sigma, batch.labels)
        D_fake = batch.masked(frozen(networks[CRITIC].net), self.settings.seed)(z, sigma, batch.labels)
        loss = SID_SCALE * sid_loss(x, D_real, D_fake, self.settings.sid_alpha)
        return {MAIN: Losses(loss, sigma)}

    def _critic_and_head(
        self, networks: Mapping[str, InTraining], batch: MicroBatch, x: torch.Tensor
    ) -> dict[str, Losses]:
        """Return the losses of the critic, a denoiser of the student's images, and of the head."""
        settings, critic = self.settings, batch.masked(networks[CRITIC].wrapped, self.settings.seed)
        if settings.loss == "sid":
            normals = batch.noise(settings.seed, "critic noise"), batch.normal(settings.seed, "critic level")
            sid = denoising_loss(critic, x, batch.labels, *normals, sigma_data=self.teacher.sigma_data)
            return {CRITIC: Losses(sid.loss, sid.sigma)}
        z, sigma, _ = self._noisy(x, batch, "critic")
        weight = loss_weight(settings.critic_weight, sigma, sigma, self.teacher.sigma_data)
        losses = {CRITIC: Losses(critic_loss(critic(z, sigma, batch.labels), x, weight), sigma)}
        if settings.has_head:
            real, sigma_real, _ = self._noisy(batch.images, batch, "real")
            with torch.no_grad():
                fake_features = self.teacher.features(z, sigma, batch.labels, settings.gan_widths)
                real_features = self.teacher.features(real, sigma_real, batch.labels, settings.gan_widths)
            heads = networks[HEAD].wrapped
            losses[HEAD] = Losses(discriminator_loss(heads(real_features), heads(fake_features)), sigma)
        return losses
