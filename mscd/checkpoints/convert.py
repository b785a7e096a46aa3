"""Conversion of third-party networks to mscd's network files, from pickles or from network files made elsewhere."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any, cast

from mscd.checkpoints.edm_pickle import is_pickle, read_edm_pickle
from mscd.checkpoints.metadata import NetworkFacts, NetworkMetadata, StudentFacts
from mscd.checkpoints.network_file import load_network, save_network
from mscd.checkpoints.student_sampling import stated_sampling
from mscd.config.run_paths import TEACHER
from mscd.config.training import check_nodes
from mscd.diffusion.sigmas import STUDENT_GRID
from mscd.diffusion.solvers import Solver
from mscd.errors import UserError
from mscd.networks import EDMPrecond
from mscd.provenance.licenses import Origin

SET_BY_SAVING = ("format", "network", "digest")  # metadata that save_network sets itself


def convert(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    model: str | None = None,
    snapshot_kimg: int | None = None,
    ema: str | None = None,
    segments: int | None = None,
    nodes: str | list[float] | None = None,
    sampler: Solver | None = None,
    origin: Origin | None = None,
    expected: Mapping[str, object] | None = None,
) -> NetworkMetadata:
    """Write the network in `source` (a pickle in EDM's format, or a network file) to `dest` and return its metadata.

    model: "teacher" or the student's name; None means "student" if the file states segments or if segments, nodes or
    sampler are given, otherwise "teacher". A student needs segments, given here (as such or by the length of nodes) or
    stated in the file; a teacher must not have any. snapshot_kimg, ema ("ema", "phema-0.050", ...), segments, nodes (as
    in sigmas.node_sigmas) and sampler override what the file states. For a teacher, the snapshot_kimg in the file is
    ignored.
    origin: where the file came from; a network file that states its own origin keeps it.
    expected: EDMPrecond's keyword arguments that the network must have been built with.
    The same file gives the same bytes. Raises UserError naming the file if it does not hold such a network.
    """
    net, facts = _of_pickle(source) if is_pickle(source) else _of_network_file(source)
    if expected:
        _check_expected(source, net, expected)
    changed = segments is not None or nodes is not None or sampler is not None
    if model is None:
        model = "student" if changed or facts["student"] else TEACHER
    if model == TEACHER:
        facts["snapshot_kimg"] = None
    facts["model"] = model
    if snapshot_kimg is not None:
        facts["snapshot_kimg"] = snapshot_kimg
    if ema is not None:
        facts["ema"] = ema
    if changed:
        facts["student"] = _student(source, model, facts["student"], segments, nodes, sampler)
    _check_kind(source, model, facts["student"])
    if origin is not None:
        facts.setdefault("origin", origin)
    return {**facts, "digest": save_network(dest, net, facts)}


def _of_pickle(source: str | os.PathLike[str]) -> tuple[EDMPrecond, NetworkFacts]:
    pickled = read_edm_pickle(source)
    return pickled.network, pickled.facts(model="student" if pickled.student else TEACHER)


def _of_network_file(source: str | os.PathLike[str]) -> tuple[EDMPrecond, NetworkFacts]:
    net, metadata = load_network(source)
    return net, cast(NetworkFacts, {name: value for name, value in metadata.items() if name not in SET_BY_SAVING})


def _student(
    source: str | os.PathLike[str],
    model: str,
    stated: StudentFacts | None,
    segments: int | None,
    nodes: str | list[float] | None,
    sampler: Solver | None,
) -> StudentFacts:
    """Return the facts of a student with what is given in place of what its file states."""
    facts: dict[str, Any] = {**STUDENT_GRID, **(stated or {})}
    if segments is None:
        segments = len(nodes) if isinstance(nodes, list) else facts.get("segments")
    if segments is None or model == TEACHER:
        kind = "a teacher has no nodes or sampler of its own" if model == TEACHER else "give segments"
        raise UserError(f"{source}: does not state the number of segments of a student; {kind}")
    for name in [name for name, given in {"nodes": nodes, "sampler": sampler}.items() if given is not None]:
        facts.pop(name, None)
    try:
        check_nodes(nodes or "karras", segments)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    facts |= {"segments": segments, **stated_sampling(nodes or "karras", segments, sampler or "euler")}
    if len(facts.get("nodes", range(segments))) != segments:
        raise UserError(
            f"{source}: its student has {len(facts['nodes'])} nodes; segments must be as many, not {segments}"
        )
    return cast(StudentFacts, facts)


def _check_kind(source: str | os.PathLike[str], model: str, student: StudentFacts | None) -> None:
    if model == TEACHER and student is not None:
        raise UserError(f"{source}: a student with {student['segments']} segments cannot be used as a teacher")
    if model != TEACHER and student is None:
        raise UserError(f"{source}: does not state the number of segments of the student {model!r}; give segments")


def _check_expected(source: str | os.PathLike[str], net: EDMPrecond, expected: Mapping[str, object]) -> None:
    """Raise UserError for the first of `expected` that the network was not built with, defaults included."""
    has = _defaults(EDMPrecond) | _defaults(type(net.model)) | net.init_kwargs
    for name, wanted in expected.items():
        found = has.get(name)
        if _comparable(found) != _comparable(wanted):
            raise UserError(f"{source}: its network has {name} {found}, but {name} {wanted} is expected")


def _defaults(constructor: type) -> dict[str, object]:
    parameters = inspect.signature(constructor).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _comparable(value: object) -> object:
    return tuple(value) if isinstance(value, (list, tuple)) else value
