"""TODO."""

from __future__ import annotations

import shutil

from mscd.checkpoints import metadata, network_file
from mscd.diffusion.sigmas import STUDENT_GRID
from mscd.training.leg import STATE_NAME
from mscd.training.setup import Run


def write_snapshot(run: Run) -> None:
    """Write every averaged network and the state to hand over; they appear in leg.finished together."""
    leg, dataset = run.leg, run.dataset
    partial = leg.finished.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)  # of an attempt that was killed here
    run.folder.save(run.state, partial / STATE_NAME)
    student = {"segments": leg.settings.segments, **STUDENT_GRID} if leg.kind == "student" else None
    about = {
        "model": leg.model,
        "snapshot_kimg": leg.end_kimg,
        "nimg": run.state.nimg,
        "data": {
            **{name: getattr(dataset, name) for name in ("digest", "resolution", "channels", "label_dim")},
            **({"origin": leg.data_origin} if leg.data_origin else {}),
        },
        "student": student,
        "run": run.folder.fingerprint,
        **(network_file.origin_of(metadata.read_metadata(leg.teacher)) if leg.teacher else {}),
    }
    for name, net in run.state.averages.items():
        network_file.save_network(partial / f"{name}.safetensors", net, {**about, "ema": name})
    run.attempts.check_newest()
    partial.rename(leg.finished)
