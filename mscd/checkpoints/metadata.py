"""What a network or state file says about itself, and how to read that without its tensors and without torch."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, TypeGuard

import safetensors

from mscd.diffusion.solvers import Solver
from mscd.errors import UserError
from mscd.provenance.licenses import Origin

NETWORK_FORMAT = "mscd-network-1"
STATE_FORMAT = "mscd-state-2"
# There is only one entry, because safetensors writes several in random order and equal content must give equal bytes.
METADATA_KEY = "mscd"


class DataFacts(TypedDict):
    """The images that a network was trained on. digest: None if it is not known, as for a pickled checkpoint."""

    digest: str | None
    resolution: int
    channels: int
    label_dim: int
    origin: NotRequired[Origin]


class StudentFacts(TypedDict):
    """The noise levels that a student was trained for, and how it is sampled.

    nodes: the noise levels at which it is evaluated, falling, without the final 0; if they are not there, they are the
    Karras grid of `segments` levels. sampler: its solver, `euler` (DDIM) if it is not there; method: how it was
    trained, by multistep consistency distillation if it is not there.
    """

    segments: int
    sigma_min: float
    sigma_max: float
    rho: float
    nodes: NotRequired[list[float]]
    sampler: NotRequired[Solver]
    method: NotRequired[str]


class StoredAverageFacts(TypedDict):
    """One of the stored averages that were summed into a post-hoc average."""

    ema: str
    nimg: int
    digest: str
    coefficient: float


class PosthocFacts(TypedDict):
    """How a post-hoc average was made: its std, the misfit of its profile, and its parts."""

    std: float
    misfit: float
    stored: list[StoredAverageFacts]


class NetworkFacts(TypedDict):
    """What is known about a network when it is saved.

    model: "teacher" or the student's name. snapshot_kimg: thousands of images seen in training, None if not known or
    not relevant; nimg: images seen. ema: which average the weights are. student: None for a teacher. run: the
    fingerprint of the training run.
    """

    model: str
    snapshot_kimg: int | None
    ema: str
    data: DataFacts
    student: StudentFacts | None
    nimg: NotRequired[int]
    run: NotRequired[str]
    origin: NotRequired[Origin]
    posthoc: NotRequired[PosthocFacts]


class NetworkMetadata(NetworkFacts):
    """What is known about a loaded network. digest: of the content of a network file, or of a whole pickled file."""

    digest: str


class NetworkFileMetadata(NetworkMetadata):
    """Metadata of a network file. network: EDMPrecond's keyword arguments."""

    format: str
    network: dict[str, Any]


class CodeFacts(TypedDict):
    """The training code that wrote a state (mscd.provenance.code_version.CodeIdentity)."""

    version: str
    commit: str | None
    digest: str


class StateMetadata(TypedDict):
    """Metadata of a training state. fingerprint: of its run; score: its validation score, if it has one.

    steps: of the network that is sampled; further: if there are others, the steps of each network and the images seen
    when it last changed.
    """

    format: str
    fingerprint: str
    nimg: int
    steps: int
    further: NotRequired[dict[str, list[int]]]
    score: float | None
    code: CodeFacts
    digest: str


def is_network(metadata: Mapping[str, object]) -> TypeGuard[NetworkFileMetadata]:
    """Return whether a file with this metadata is a network file, judging by its format."""
    return metadata.get("format") == NETWORK_FORMAT


def is_state(metadata: Mapping[str, object]) -> TypeGuard[StateMetadata]:
    """Return whether a file with this metadata is a training state, judging by its format."""
    return metadata.get("format") == STATE_FORMAT


def read_metadata(path: str | os.PathLike[str]) -> dict[str, object]:
    """Read the metadata of a file written by `tensor_file.save_tensors`.

    Raises UserError naming the file if it is missing, not such a file, or cut short.
    """
    with open_safetensors(path, framework="np") as (_, header):
        return parse_metadata(header, path)


@contextlib.contextmanager
def open_safetensors(
    path: str | os.PathLike[str], *, framework: Literal["np", "pt"], backend: Literal["mmap", "pread"] = "mmap"
) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open a safetensors file, whether mscd's or not; yield it with the text entries of its header.

    The file is a safetensors.safe_open, whose stubs declare no types. Raises UserError naming the file if it is
    missing, not such a file, or cut short.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; check the path, or create it first")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(safetensors.safe_open(path, framework=framework, backend=backend))
            header = file.metadata() or {}
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(
                f"{path}: not a safetensors file, damaged or cut short ({error}); fetch or create it again"
            ) from error
        yield file, header


def parse_metadata(header: Mapping[str, str], path: str | os.PathLike[str]) -> dict[str, object]:
    """Return the metadata in the text entries of a safetensors header. Raises UserError if they are not mscd's."""
    if METADATA_KEY not in header:
        raise UserError(f"{path}: a safetensors file, but not one of mscd's (it has no {METADATA_KEY!r} metadata)")
    try:
        metadata: dict[str, object] = json.loads(header[METADATA_KEY])
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: damaged (its metadata is not JSON: {error})") from error
    return metadata
