"""Files of tensors: bytes as safetensors writes them, one tensor at a time, and a length that is known in advance."""

import json

import pytest
import safetensors.torch
import torch

from mscd.checkpoints.metadata import METADATA_KEY
from mscd.checkpoints.tensor_file import (
    FORMATS,
    TensorDigest,
    TensorLayout,
    content_digest,
    load_tensors,
    open_tensors,
    save_tensors,
)

METADATA = {"format": "any", "text": 'ü "quoted"\n', "number": 0.1, "none": None, "nested": {"b": [1, 2], "a": {}}}
FLOATS = {
    "w": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor(7.0),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
}
EVERY_FORMAT = {
    **{f"{place}": torch.ones(3).to(dtype) for place, dtype in enumerate(FORMATS.values())},
    **{f"more{place}": torch.zeros(2, 2).to(dtype) for place, dtype in enumerate(reversed(FORMATS.values()))},
    "no elements": torch.zeros(0, 3),
    "ünicode": torch.ones(1),
}


@pytest.mark.parametrize("tensors", [{}, FLOATS, EVERY_FORMAT], ids=["none", "floats", "every format"])
def test_the_bytes_are_those_of_safetensors_and_have_the_predicted_size(tensors, tmp_path):
    digest = save_tensors(tmp_path / "file", tensors, METADATA)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**METADATA, "digest": digest}, sort_keys=True)
    assert (tmp_path / "file").read_bytes() == safetensors.torch.save(contiguous, metadata={METADATA_KEY: text})
    meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    assert TensorLayout(meta).file_size(METADATA) == (tmp_path / "file").stat().st_size


def test_tensors_are_read_back_with_their_metadata(tmp_path):
    digest = save_tensors(tmp_path / "file", FLOATS, METADATA)
    tensors, metadata = load_tensors(tmp_path / "file")
    assert metadata == {**METADATA, "digest": digest} and tensors.keys() == FLOATS.keys()
    assert all(torch.equal(tensors[name], FLOATS[name]) for name in FLOATS)


def test_the_digest_depends_on_content_alone():
    digest = TensorDigest(METADATA)
    for name in sorted(FLOATS):
        digest.add(name, FLOATS[name].clone().requires_grad_(True))
    assert digest.hexdigest() == content_digest(dict(reversed(FLOATS.items())), METADATA)
    assert digest.hexdigest() != content_digest(FLOATS, {**METADATA, "number": 0.2})


def test_an_open_file_reports_shapes_and_dtypes_without_reading_tensors(tmp_path):
    save_tensors(tmp_path / "file", EVERY_FORMAT, METADATA)
    with open_tensors(tmp_path / "file") as file:
        meta = file.meta_tensors()
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in meta.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in EVERY_FORMAT.items()
    }
    assert all(tensor.is_meta for tensor in meta.values())
