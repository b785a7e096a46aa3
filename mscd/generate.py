"""Sample batches from a network file: images that are functions of their seeds, and how they were made."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mscd import samplers
from mscd.checkpoint import load_network, read_metadata
from mscd.errors import UserError
from mscd.networks import EDMPrecond
from mscd.samples import made_by, write_samples


def nfe(sampler: str, steps: int) -> int:
    """Network evaluations an image: `steps` for "euler", 2 steps - 1 for "heun"."""
    return {"euler": steps, "heun": 2 * steps - 1}[sampler]


def generate(
    network_path: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    seeds: range,
    sampler: str,
    steps: int,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
) -> dict:
    """Sample the network for each seed and write the images (uint8 [N, H, W, C]) and their provenance to `dest`.

    The image of a seed does not depend on the other seeds, and on batch_size only as far as the machine's kernels round
    differently by it (single pixels by one level, below fp32). A student is sampled on the grid it was trained on, with
    one evaluation a segment.
    Progress goes to stderr. Returns the provenance. Raises UserError for settings that make no sample of this network,
    for an unreadable network and for a file that could not be written.
    """
    metadata = read_metadata(network_path)
    churn = {"S_churn": S_churn, "S_min": S_min, "S_max": S_max, "S_noise": S_noise} if S_churn > 0 else None
    student = metadata.get("student")
    _check(network_path, student, seeds, sampler, steps, churn)
    net = load_network(network_path, device)
    grid = {name: student[name] for name in ("sigma_min", "sigma_max", "rho")} if student else {}
    images = np.empty([len(seeds), net.img_resolution, net.img_resolution, net.img_channels], np.uint8)
    with tqdm(total=len(seeds), desc=f"{Path(network_path).name}, {sampler} {steps}", unit="img") as progress:
        for start in range(0, len(seeds), batch_size):
            batch = seeds[start : start + batch_size]
            images[start : start + len(batch)] = sample(net, batch, sampler, steps, churn, grid).cpu().numpy()
            progress.update(len(batch))
    provenance = {
        "format": "mscd-samples-1",
        "network": metadata,
        "sampler": sampler,
        "steps": steps,
        "nfe": nfe(sampler, steps),
        "churn": churn and {name: None if value == math.inf else value for name, value in churn.items()},
        "seeds": [seeds[0], seeds[-1]],
        "device": torch.device(device).type,
        "made_by": made_by(),
    }
    write_samples(dest, images, provenance)
    return provenance


def _check(
    path: str | os.PathLike, student: Mapping | None, seeds: range, sampler: str, steps: int, churn: Mapping | None
) -> None:
    if sampler not in ("euler", "heun"):
        raise UserError(f"unknown sampler {sampler!r}: choose euler or heun")
    if steps < 1:
        raise UserError(f"a sampler takes at least 1 step (asked for {steps})")
    if not seeds or seeds.step != 1:
        raise UserError(f"seeds must be consecutive and at least one (asked for {seeds})")
    if churn and sampler != "heun":
        raise UserError(f"churn belongs to the heun sampler (asked for {sampler} with S_churn={churn['S_churn']:g})")
    if student and (sampler, steps) != ("euler", student["segments"]):
        raise UserError(
            f"{path}: a student of {student['segments']} segments is sampled with exactly {student['segments']} "
            f"euler steps (asked for {sampler}, {steps})"
        )


def sample(
    net: EDMPrecond, seeds: range, sampler: str, steps: int, churn: Mapping | None, grid: Mapping[str, float]
) -> torch.Tensor:
    """Images of the seeds, uint8 [N, H, W, C] on the network's device.

    A seed's generator draws its latent, its class (uniform over label_dim), then the noise of each churned step.
    churn: keywords S_churn, S_min, S_max, S_noise of samplers.heun, or None; grid: sigma_min, sigma_max, rho where
    they are not the usual ones.
    """
    draws = samplers.SeededDraws(seeds, next(net.parameters()).device)
    shape = [net.img_channels, net.img_resolution, net.img_resolution]
    noise, labels = draws.noise_and_labels(shape, net.label_dim)
    if sampler == "euler":
        images = samplers.euler(net, noise, labels, steps=steps, **grid)
    else:
        images = samplers.heun(net, noise, labels, steps=steps, randn_like=draws.randn_like, **grid, **(churn or {}))
    return samplers.to_uint8(images).permute(0, 2, 3, 1)
