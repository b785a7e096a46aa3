"""The snapshot of a leg: its averaged networks and the state that the next leg starts from."""

from __future__ import annotations

import shutil
from typing import Any

from mscd.checkpoints.network_file import save_network
from mscd.config.training import StudentSettings
from mscd.data.dataset import ImageDataset
from mscd.sampling.student import student_facts
from mscd.training.attempts import Attempts
from mscd.training.leg import STATE_NAME, Leg
from mscd.training.state import StateFolder, TrainingState


def write_snapshot(
    leg: Leg,
    state: TrainingState,
    dataset: ImageDataset,
    folder: StateFolder,
    attempts: Attempts,
    inherited: dict[str, Any],
) -> None:
    """Write every averaged network and the state for the next leg; they appear in leg.finished together.

    inherited: metadata that the networks inherit from the teacher. Raises Superseded, without creating leg.finished, if
    a newer attempt at the leg has begun.
    """
    partial = leg.finished.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)  # left by an attempt that was killed here
    folder.save(state, partial / STATE_NAME)
    about = {
        "model": leg.model,
        "snapshot_kimg": leg.end_kimg,
        "nimg": state.nimg,
        "data": {
            "digest": dataset.digest,
            "resolution": dataset.resolution,
            "channels": dataset.channels,
            "label_dim": dataset.label_dim,
            **({"origin": leg.data_origin} if leg.data_origin else {}),
        },
        "student": student_facts(leg.settings) if isinstance(leg.settings, StudentSettings) else None,
        "run": folder.fingerprint,
        **inherited,
    }
    for name in leg.settings.emas():
        save_network(partial / f"{name}.safetensors", state.average(name), {**about, "ema": name})
    attempts.check_newest()
    partial.rename(leg.finished)
