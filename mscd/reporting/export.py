"""The export of a student: one folder, ready for huggingface_hub, that needs only torch and safetensors."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from pathlib import Path

from mscd.checkpoints.metadata import NETWORK_FORMAT, is_network
from mscd.checkpoints.network_file import load_network
from mscd.diffusion.solvers import Solver
from mscd.errors import UserError
from mscd.files.atomic import atomic_write, write_whole
from mscd.provenance.code_version import PACKAGE
from mscd.reporting.model_card import model_card
from mscd.reporting.score_table import scores_of_network
from mscd.sampling.student import check_solver, student_grid, student_solver

STANDALONE_SAMPLER = Path(__file__).with_name("standalone_sampler.py")
# The code of a network, which imports nothing but torch and the standard library.
_CARRIED = ["__init__.py", "errors.py", *(f"networks/{path.name}" for path in (PACKAGE / "networks").glob("*.py"))]


def export_student(
    network: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    table: str | os.PathLike[str] | None = None,
    sampler: Solver | None = None,
) -> Path:
    """Export a student's network file to the folder `dest`; return its path.

    sampler: the student's solver, if it is not to be the one that its file states.

    The folder gets model.safetensors (the unchanged file), config.json, README.md (the model card, with the rows of
    `table`, a fid_table.csv, for this network and its teacher), sample.py and the part of mscd that it needs. An
    earlier export is replaced. Raises UserError if `network` is not an intact student, if `table` does not contain it,
    if it cannot be sampled with that solver, or if `dest` holds anything other than an earlier export.
    """
    net, metadata = load_network(network)
    if not is_network(metadata) or not (student := metadata.get("student")):
        raise UserError(f"{network}: not a student; only students define their sampler, so export one of its students")
    sigmas: list[float] = student_grid(net, student).tolist()
    solver = sampler or student_solver(student)
    check_solver(network, student, solver)
    scores = None if table is None else scores_of_network(table, metadata)
    config = {**metadata, "sampler": solver, "sigmas": sigmas, "label_dim": net.label_dim}
    dest = Path(dest)
    _check_dest(dest)
    with open(network, "rb") as original, atomic_write(dest / "model.safetensors") as copy:
        shutil.copyfileobj(original, copy)
    write_whole(dest / "config.json", (json.dumps(config, indent=1, sort_keys=True) + "\n").encode())
    write_whole(dest / "README.md", model_card(metadata, student, solver, sigmas, scores).encode())
    write_whole(dest / "sample.py", STANDALONE_SAMPLER.read_bytes())
    for name in _CARRIED:
        write_whole(dest / "mscd" / name, (PACKAGE / name).read_bytes())
    write_whole(dest / "mscd" / "LICENSE", _license().encode())
    return dest


def _check_dest(dest: Path) -> None:
    """Raise UserError if a file that is not mscd's might be replaced."""
    if not dest.exists() or dest.is_dir() and not any(dest.iterdir()):
        return
    try:
        earlier = json.loads((dest / "config.json").read_text())["format"] == NETWORK_FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        earlier = False
    if not earlier:
        raise UserError(f"{dest}: holds something other than an mscd export; give a new folder")


def _license() -> str:
    """Return the text of mscd's licence, which must accompany copies of its code."""
    files = importlib.metadata.files("mscd") or []
    return next(file for file in files if file.name == "LICENSE").read_text()
