"""What a file is, by its content and not its name: networks, states, detectors, references, samples, scores, images.

Behind `mscd info`. Only headers are read, except for a pickled checkpoint, which has none and is read without being
executed.
"""

from __future__ import annotations

import json
import os
import textwrap
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pandas as pd

from mscd.checkpoints.edm_pickle import read_edm_pickle
from mscd.checkpoints.metadata import (
    METADATA_KEY,
    NetworkFileMetadata,
    StateMetadata,
    is_network,
    is_state,
    open_safetensors,
    parse_metadata,
)
from mscd.checkpoints.tensor_file import load_tensors
from mscd.data.archives import open_files
from mscd.data.dataset import ImageDataset
from mscd.data.images import is_image
from mscd.data.zip_format import read_directory
from mscd.errors import UserError
from mscd.evaluation.classifier import is_classifier
from mscd.evaluation.features import FEATURES_FORMAT
from mscd.evaluation.inception import INCEPTION_SHA256
from mscd.evaluation.score import Score, mean_values
from mscd.evaluation.training_features import TRAINING_FEATURES_FORMAT
from mscd.files.atomic import NPZ_FAULTS, sha256_of
from mscd.networks.meta import meta_network, parameter_count
from mscd.reporting.score_table import BASIC, best_rows, ranked_by, read_table

Facts = dict[str, object]  # JSON
FEW_BYTES = 1000  # at the beginning of a file, from which its kind is identified
NETWORK_FACTS = ("model", "student", "snapshot_kimg", "nimg", "ema", "posthoc", "data", "origin", "run", "digest")
TORCHSCRIPT = "TorchScript module (code that runs when it is loaded)"
PROVENANCE = "provenance.json"  # next to images of `mscd generate`
LINE = 120  # characters
OF_SAMPLES, OF_TRAINING = "features of samples", "features of training images"
SHAPE = ("img_resolution", "img_channels", "label_dim")


def describe(path: str | os.PathLike[str]) -> Facts:
    """Return what is known about a file or folder: `kind`, then JSON facts by name.

    A file of no known kind has no facts. Raises UserError if there is nothing at `path`, and for a file that begins
    like one of a known kind but is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _images(path)
    try:
        with open(path, "rb") as file:
            start = file.read(FEW_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    for begins, facts in READERS:
        if begins(start):
            return facts(path)
    return {"kind": "unrecognised file"}


def verify(path: str | os.PathLike[str]) -> str:
    """Read the whole file, check it against its own digest, and return in words what was compared.

    Raises UserError if they differ, or if the file holds nothing to compare with.
    """
    kind = describe(path)["kind"]
    if kind in ("network", "training state", "classifier", OF_SAMPLES, OF_TRAINING):
        load_tensors(path)
        return "its content matches its digest"
    if kind == TORCHSCRIPT:
        digest = sha256_of(path)
        return f"its sha256 is {digest}, {'that' if digest == INCEPTION_SHA256 else 'not that'} of FID's Inception"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise UserError(f"{path}: damaged ({damaged} does not match its CRC); make or fetch it again")
        return "every part matches its CRC"
    raise UserError(f"{path}: holds no digest to check its content against")


def as_text(path: str | os.PathLike[str], facts: Mapping[str, object]) -> str:
    """Return the facts of `describe` as readable text."""
    rest = {name.replace("_", " "): _words(value) for name, value in facts.items() if name != "kind"}
    width = max(map(len, rest), default=0)
    lines = [f"{path}: {facts['kind']}"]
    for name, value in rest.items():
        wrapped = textwrap.wrap(value, LINE - width - 4, break_long_words=False, break_on_hyphens=False)
        lines += [f"  {name:{width}}  {wrapped[0] if wrapped else ''}".rstrip()]
        lines += [f"  {'':{width}}  {more}" for more in wrapped[1:]]
    return "\n".join(lines)


def _words(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:g}"
        case Mapping():
            words = {k: f"({_words(v)})" if isinstance(v, Mapping) else _words(v) for k, v in value.items()}
            return ", ".join(f"{name} {word}" for name, word in words.items())
        case list():
            return f"{len(value)}" if value and isinstance(value[0], Mapping) else f"[{', '.join(map(_words, value))}]"
    return str(value)


# ---- one function per kind


def _safetensors(path: Path) -> Facts:
    with open_safetensors(path, framework="pt") as (file, header):
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118, not a mapping
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    if METADATA_KEY not in header:
        return {"kind": "safetensors file, not from mscd", "tensors": len(sizes), "numbers": sum(sizes.values())}
    metadata = parse_metadata(header, path)
    if is_network(metadata):
        return {"kind": "network", **_network_facts(metadata)}
    if is_state(metadata):
        return {"kind": "training state", **_state_facts(metadata, sizes)}
    if is_classifier(metadata):
        about = {"classifier": metadata["classifier"], "made_from": metadata["made_from"], "digest": metadata["digest"]}
        return {"kind": "classifier", "parameters": sum(sizes.values()), **about}
    if metadata.get("format") in (FEATURES_FORMAT, TRAINING_FEATURES_FORMAT):
        return _features(metadata, shapes)
    return {"kind": "file from another version of mscd", **metadata}


def _features(metadata: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> Facts:
    """Return the facts of a feature file: of which images, by which detector, and how many."""
    images, features = shapes["features"]
    about = {"images": images, "features": features, "detector": metadata["detector"]}
    about |= {name: shape[1] for name, shape in shapes.items() if name in ("logits", "spatial")}
    if metadata["format"] == FEATURES_FORMAT:
        return {"kind": OF_SAMPLES, **about, **_sampled(metadata["samples"]), "digest": metadata["digest"]}
    kept = {name: metadata[name] for name in ("total", "data", "memorised_baseline", "digest")}
    return {"kind": OF_TRAINING, **about, **kept}


def _network_facts(metadata: NetworkFileMetadata) -> Facts:
    stated: Mapping[str, object] = metadata
    about = {name: stated[name] for name in NETWORK_FACTS if name in stated}
    return {**_architecture(metadata["network"]), **about}


def _architecture(options: Mapping[str, Any]) -> Facts:
    """Return the architecture of a network; its parameters are counted on a network with the same options."""
    rest = {k: v for k, v in options.items() if k not in (*SHAPE, "model_type", "precision")}
    return {
        "architecture": options["model_type"],
        "images": {name.removeprefix("img_").replace("label_dim", "classes"): options.get(name, 0) for name in SHAPE},
        "parameters": parameter_count(meta_network(**options)),
        "precision": options["precision"],
        "options": rest,
    }


def _state_facts(metadata: StateMetadata, sizes: Mapping[str, int]) -> Facts:
    moments = [size for name, size in sizes.items() if "adam.exp_avg." in name]
    networks = dict.fromkeys(name.partition(".model.")[0] for name in sizes if "adam." not in name)
    kept = {name: metadata.get(name) for name in ("nimg", "steps", "score", "fingerprint", "code", "digest")}
    return {"networks": list(networks), "parameters": sum(moments), **kept}


def _pickle(path: Path) -> Facts:
    pickled = read_edm_pickle(path)
    about = {name: value for name, value in pickled.facts(path.stem).items() if name not in ("model", "data")}
    return {
        "kind": "pickled checkpoint",
        **_architecture(pickled.network.init_kwargs),
        **about,
        "dataset": pickled.dataset,
    }


def _zip(path: Path) -> Facts:
    """Return the facts of an .npz, a TorchScript module or a zip of images."""
    try:
        with open(path, "rb") as file:
            names, _ = read_directory(file)
        if names and all(name.endswith(".npy") for name in names):
            with zipfile.ZipFile(path) as archive:
                return _arrays(archive, [name.removesuffix(".npy") for name in names])
    except (*NPZ_FAULTS, KeyError) as error:
        raise UserError(f"{path}: a damaged or truncated zip ({error}); make or fetch it again") from error
    if any(name.endswith("constants.pkl") for name in names) and any("/code/" in name for name in names):
        return {"kind": TORCHSCRIPT, "bytes": path.stat().st_size}
    return _images(path) if any(map(is_image, names)) else {"kind": "zip without images", "files": len(names)}


def _arrays(archive: zipfile.ZipFile, names: list[str]) -> Facts:
    """Return the facts of reference statistics, samples or another .npz, from the headers of its arrays."""

    def shape(name: str) -> list[int]:
        with archive.open(f"{name}.npy") as file:
            return list(_npy_shape(file))

    provenance = {}
    if "provenance" in names:
        with archive.open("provenance.npy") as file:
            provenance = json.loads(str(np.load(file, allow_pickle=False)))
    if {"mu", "sigma"} <= set(names):
        known = provenance if provenance and isinstance(provenance, dict) else {"provenance": None}
        return {"kind": "reference statistics", "features": shape("mu")[0], **known}
    if "arr_0" in names:
        return {"kind": "samples", "shape": shape("arr_0"), **_sampled(provenance)}
    return {"kind": ".npz, neither samples nor reference statistics", "arrays": names}


def _npy_shape(file: IO[bytes]) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)[0]


def _sampled(provenance: object) -> Facts:
    """Return how samples were made, what identifies their network, and the origins of it and its training images."""
    if not isinstance(provenance, dict) or not isinstance(network := provenance.get("network"), dict):
        return {"provenance": None}
    named = {name: network.get(name) for name in ("model", "snapshot_kimg", "ema", "digest")}
    data = network.get("data")
    images_from = data.get("origin") if isinstance(data, dict) else None
    origins = {"origin": network.get("origin"), "data_origin": images_from}
    how = {name: value for name, value in provenance.items() if name not in ("format", "network")}
    return {**how, "network": named, **{name: origin for name, origin in origins.items() if origin}}


def _images(path: Path) -> Facts:
    dataset, files = ImageDataset(path), open_files(path)
    shape = {"resolution": dataset.resolution, "channels": dataset.channels, "classes": dataset.label_dim}
    made = {}
    if PROVENANCE in files.names:
        try:
            made = _sampled(json.loads(files.read(files.names.index(PROVENANCE))))
        except ValueError as error:
            raise UserError(f"{path}: its {PROVENANCE} is not valid JSON ({error}); make the images again") from error
    return {"kind": "images", "images": len(dataset), **shape, **made}


def _json(path: Path) -> Facts:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: begins like JSON but is not valid JSON ({error}); damaged or truncated?") from error
    if {"blocks", "pooled", "metric", "network_digest"} <= content.keys():
        return {"kind": "score", **_score_facts(cast(Score, content), path)}
    return {"kind": "JSON, not a score", "keys": list(content)}


def _score_facts(score: Score, path: Path) -> Facts:
    """Return what was measured, as means over the seed blocks, and on what."""
    try:
        values = {score["metric"] if name == "fd" else name: value for name, value in mean_values(score).items()}
        blocks = {
            "images": [block["images"] for block in score["blocks"]],
            "seeds": [block["seeds"] for block in score["blocks"]],
        }
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: a damaged score ({type(error).__name__}: {error}); score again") from error
    rest = {name: value for name, value in score.items() if name not in ("blocks", "pooled", "left_out", "nearest")}
    return {**values, **blocks, **rest}


def _table(path: Path) -> Facts:
    try:
        table = read_table(path)
        column, shown = ranked_by(table), ("snapshot_kimg", "ema", "sampler", "nfe")
        lines = {
            f"best_of_{model}": {column: float(row[column]), **{name: _plain(row[name]) for name in shown}}
            for model, row in best_rows(table).items()
        }
        metric = table["metric"].iloc[0] if len(table) else None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: a damaged or truncated table of scores ({error}); make it again") from error
    return {"kind": "table of scores", "rows": len(table), "metric": metric, **lines}


def _plain(value: Any) -> object:
    """Return a value of a table as Python's, None where it is missing."""
    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _is_safetensors(start: bytes) -> bool:
    return len(start) > 9 and start[8:10] == b'{"' and int.from_bytes(start[:8], "little") < 1 << 30


# For each kind, a test of the file's beginning and the function that reads the file.
READERS: list[tuple[Callable[[bytes], bool], Callable[[Path], Facts]]] = [
    (_is_safetensors, _safetensors),
    (lambda start: start.startswith(b"\x80"), _pickle),
    (lambda start: start.startswith(b"PK\3\4"), _zip),
    (lambda start: start.startswith(b"{"), _json),
    (lambda start: start.startswith(",".join(BASIC).encode()), _table),
]
