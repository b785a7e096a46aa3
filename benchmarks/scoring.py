"""Speed of scoring relative to baselines: `python benchmarks/scoring.py`.

Compares the Fréchet distance of 2048 features with scipy.linalg.sqrtm of the product of the covariances, as scores are
often computed, and the extraction of features from a sample file with the bare detector on the same images in memory.
Compares exact searches for nearest neighbours and for images in balls with the bare products of the same tiles.
The detectors are the classifier of 8×8 digits and a stand-in for Inception with 2048 features and a hundredth of its
arithmetic.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from harness import Row, in_turns, main, medians, milliseconds

from mscd.evaluation.classifier import Classifier, save_classifier
from mscd.evaluation.detector import Detector, load_detector
from mscd.evaluation.feature_statistics import FeatureStatistics, collect_statistics
from mscd.files.atomic import sha256_of
from mscd.metrics.frechet import frechet_distance
from mscd.metrics.names import NEIGHBOURS
from mscd.metrics.neighbours import TILE, count_in_balls, kth_distances, nearest
from mscd.sampling.sample_file import read_batches, write_samples

DIM, BATCH = 2048, 500
COMPARED = 10_240  # rows of each set that neighbours are searched in: five tiles


class StandIn(torch.nn.Module):
    """2048 features of images, uint8 [N, 3, 64, 64], at 57 M multiply-adds per image; Inception takes 5.7 G."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.second = torch.nn.Conv2d(64, 92, 3, padding=1)
        self.features = torch.nn.Linear(92 * 16, DIM)

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(img.float() / 127.5 - 1))))
        return self.features(torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))


def rows() -> list[Row]:
    """The speed-up of the distance, then the extraction of features with both detectors."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        return [distance(), *neighbours(device), *extraction(Path(folder), device)]


def distance() -> Row:
    rng = np.random.default_rng(0)
    moments = [moment for _ in range(2) for moment in gaussian(rng)]
    values = {}

    def by_root() -> None:
        (mu1, sigma1, mu2, sigma2) = moments
        root = scipy.linalg.sqrtm(sigma1 @ sigma2).real
        values["sqrtm"] = np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root)

    def ours() -> None:
        values["ours"] = frechet_distance(*moments)

    slow = in_turns({"sqrtm": by_root, "ours": ours}, rounds=1, warmup=0)
    times = {**medians(slow), "ours": medians(in_turns({"ours": ours}, rounds=2, warmup=0))["ours"]}
    difference = abs(values["ours"] / values["sqrtm"] - 1)
    detail = {**milliseconds(times), "relative difference": float(f"{difference:.2g}")}
    return Row(
        "scoring", f"sqrtm / Fréchet distance, D = {DIM}", times["sqrtm"] / times["ours"], 5, "high", "x", detail
    )


def gaussian(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of 6,000 rows whose standard deviations fall from 1 to 5e-4 in random directions."""
    scale = np.geomspace(1, 5e-4, DIM)
    rows = rng.normal(size=(6000, DIM)) * scale @ np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    return rows.mean(0), np.cov(rows, rowvar=False)


def neighbours(device: str) -> list[Row]:
    """The share of a search that its matrix products take, which is the least that any exact search needs.

    Features as from a network with 64 directions that matter; real and generated ones differ a little.
    """
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(64, DIM)).astype(np.float32)
    real, fake = (
        rng.normal(scale=scale, size=(COMPARED, 64)).astype(np.float32) @ mixed
        + 0.1 * rng.normal(size=(COMPARED, DIM)).astype(np.float32)
        for scale in (1.0, 1.05)
    )
    radii = kth_distances(real, NEIGHBOURS, device=device), kth_distances(fake, NEIGHBOURS, device=device)
    tiles, others = (torch.from_numpy(rows).to(device).split(TILE) for rows in (real, fake))
    functions = {
        "products within one set": lambda: [a @ b.T for i, a in enumerate(tiles) for b in tiles[i:]],
        "products of two sets": lambda: [a @ b.T for a in tiles for b in others],
        "third neighbours": lambda: kth_distances(real, NEIGHBOURS, device=device),
        "nearest": lambda: nearest(fake, real, device=device),
        "balls": lambda: count_in_balls(real, fake, radii[0], radii[1], device=device),
    }
    times = medians(in_turns(functions, rounds=2, warmup=0))
    detail = {**milliseconds(times), "images": COMPARED}
    one, two = times["products within one set"], times["products of two sets"]
    shares = {"third neighbours": one / times["third neighbours"], "nearest training image": two / times["nearest"]}
    shares["precision, recall"] = two / times["balls"]
    return [
        Row("scoring", f"bare products / {what}, D = {DIM}", share, 0.5, "high", "x", detail)
        for what, share in shares.items()
    ]


def extraction(folder: Path, device: str) -> list[Row]:
    save_classifier(folder / "classifier.safetensors", Classifier(8, 1, 10), {})
    torch.jit.script(StandIn().eval().requires_grad_(False)).save(str(folder / "standin.pt"))
    sha256 = sha256_of(folder / "standin.pt")
    return [
        extracted(folder, load_detector(folder / "classifier.safetensors", device), device, (20_000, 8, 8, 1)),
        extracted(folder, load_detector(folder / "standin.pt", device, sha256), device, (1_000, 64, 64, 3)),
    ]


def extracted(folder: Path, detector: Detector, device: str, shape: tuple[int, ...]) -> Row:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_samples(folder / "samples.npz", images, {})
    batches = torch.from_numpy(images).permute(0, 3, 1, 2).to(device).split(BATCH)
    features = detector(batches[0]).cpu()
    statistics = FeatureStatistics(detector.dim)

    def read() -> Iterator[torch.Tensor]:
        files = read_batches([folder / "samples.npz"], BATCH)
        return detector.features(torch.from_numpy(images).permute(0, 3, 1, 2) for images in files)

    functions = {
        "bare": lambda: [detector(batch) for batch in batches],
        "read": lambda: [None for _ in read()],
        "read, with statistics": lambda: collect_statistics(read(), detector.dim, detector.device),
        "statistics": lambda: [statistics.update(features) for _ in batches],
    }
    times = medians(in_turns(functions, rounds=3))
    detail = {**milliseconds(times), "images": shape[0], "batch": BATCH}
    figure = f"features of a sample file / bare detector, {detector.name}"
    return Row("scoring", figure, times["bare"] / times["read"], 0.97, "high", "x", detail)


if __name__ == "__main__":
    main(rows, __doc__)
