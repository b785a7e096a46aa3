"""Networks by others become network files of ours, from pickled checkpoints or from network files made elsewhere."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping

from mscd.checkpoints.edm_pickle import EDMCheckpoint, read_edm_pickle
from mscd.checkpoints.metadata import read_metadata
from mscd.checkpoints.network_file import is_pickle, load_network, save_network
from mscd.diffusion.sigmas import STUDENT_GRID
from mscd.errors import UserError
from mscd.networks import EDMPrecond
from mscd.networks.precond import UNETS

TEACHER = "teacher"


def convert(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    model: str | None = None,
    snapshot_kimg: int | None = None,
    ema: str | None = None,
    segments: int | None = None,
    origin: Mapping | None = None,
    expected: Mapping | None = None,
) -> dict:
    """Write the network of `source` (a pickle of EDM's form, or a file of ours) to `dest`; returns its metadata.

    model: "teacher", or the student's name; None: "student" for what has segments, else "teacher". A student needs
    segments, here or in the file, and a teacher may have none.
    snapshot_kimg, ema ("ema", "phema-0.050", ...) and segments count instead of what the file says of itself; a teacher
    has no snapshot_kimg from it.
    origin: where the file came from ("source", "sha256", "license"); what a file of ours says of its own stays.
    expected: EDMPrecond's keyword arguments that the network must have been made with.
    The same file gives the same bytes. Raises UserError naming the file when it doesn't hold such a network.
    """
    net, metadata = _of_pickle(source) if is_pickle(source) else _of_ours(source)
    if expected:
        _check_expected(source, net, expected)
    if model is None:
        model = "student" if segments or metadata["student"] else TEACHER
    if model == TEACHER:
        metadata["snapshot_kimg"] = None
    given = {"snapshot_kimg": snapshot_kimg, "ema": ema}
    metadata |= {"model": model} | {name: value for name, value in given.items() if value is not None}
    if segments is not None:
        metadata["student"] = {**STUDENT_GRID, **(metadata["student"] or {}), "segments": segments}
    _check_kind(source, model, metadata["student"])
    if origin is not None:
        metadata.setdefault("origin", dict(origin))
    return {**metadata, "digest": save_network(dest, net, metadata)}


def pickle_metadata(pickled: EDMCheckpoint) -> dict:
    """What a pickled checkpoint says of itself, as metadata of our network files; its model is not known (None)."""
    net = pickled.network
    return {
        "model": None,
        "snapshot_kimg": None if pickled.nimg is None else round(pickled.nimg / 1000),
        "ema": pickled.average,
        "data": {
            "digest": None,
            "resolution": net.img_resolution,
            "channels": net.img_channels,
            "label_dim": net.label_dim,
        },
        "student": pickled.student,
        **({} if pickled.nimg is None else {"nimg": pickled.nimg}),
    }


def _of_pickle(source: str | os.PathLike) -> tuple[EDMPrecond, dict]:
    pickled = read_edm_pickle(source)
    return pickled.network, pickle_metadata(pickled)


def _of_ours(source: str | os.PathLike) -> tuple[EDMPrecond, dict]:
    net = load_network(source)
    written_anew = ("format", "network", "digest")
    return net, {name: value for name, value in read_metadata(source).items() if name not in written_anew}


def _check_kind(source: str | os.PathLike, model: str, student: Mapping | None) -> None:
    if model == TEACHER and student is not None:
        raise UserError(f"{source}: a student of {student['segments']} segments, which cannot be the teacher of others")
    if model != TEACHER and student is None:
        raise UserError(f"{source}: does not say how many segments {model!r} is a student of; give segments")


def _check_expected(source: str | os.PathLike, net: EDMPrecond, expected: Mapping) -> None:
    """Raise UserError for the first of `expected` that the network was not made with, defaults included."""
    has = _defaults(EDMPrecond) | _defaults(UNETS[net.init_kwargs["model_type"]]) | net.init_kwargs
    for name, wanted in expected.items():
        found = has.get(name)
        if _comparable(found) != _comparable(wanted):
            raise UserError(f"{source}: its network has {name} {found}, and {name} {wanted} is expected")


def _defaults(constructor: type) -> dict:
    parameters = inspect.signature(constructor).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _comparable(value: object) -> object:
    return tuple(value) if isinstance(value, (list, tuple)) else value
