"""Files of tensors: bytes as safetensors writes them, one tensor at a time, and a length that is known in advance."""

import json

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.checkpoints.metadata import METADATA_KEY
from mscd.checkpoints.tensor_file import (
    FORMATS,
    TensorDigest,
    TensorLayout,
    content_digest,
    load_tensors,
    open_tensors,
    save_tensors,
    stream_rows,
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


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_rows_that_come_in_batches_make_the_file_of_whole_tensors(sizes, tmp_path_factory):
    folder, count = tmp_path_factory.mktemp("rows"), sum(sizes)
    whole = {"a": torch.randn(count, 3), "b": torch.randn(count, 2, 2).double(), "c": torch.arange(count)}
    parts = {name: tensor.split(sizes) for name, tensor in whole.items()}
    batches = ({name: part[number] for name, part in parts.items()} for number in range(len(sizes)))
    assert stream_rows(folder / "rows", count, batches, METADATA) == save_tensors(folder / "whole", whole, METADATA)
    assert (folder / "rows").read_bytes() == (folder / "whole").read_bytes()


@pytest.mark.parametrize("count", [4, 6])
def test_a_file_of_rows_needs_the_number_of_rows_that_was_said(count, tmp_path):
    with pytest.raises(ValueError, match=f"5 rows for a file of {count}"):
        stream_rows(tmp_path / "rows", count, [{"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 2)}], METADATA)
    assert list(tmp_path.iterdir()) == []
