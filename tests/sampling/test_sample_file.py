"""Sample files: damage is detected, and files of jobs that share seeds are read as if one job had made them."""

import io
import json
import tracemalloc

import numpy as np
import pytest

from mscd.errors import UserError
from mscd.sampling.sample_file import (
    count_images,
    joint_provenance,
    read_batches,
    read_samples,
    stream_samples,
    write_samples,
)

CHURN = {"S_churn": 1.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}
MADE = {"network": {"digest": "n" * 64}, "sampler": "euler", "steps": 4, "churn": None, "device": "cpu"}


def write_parts(folder, *parts, **changed):
    """Write a sample file per range in `parts`, each image filled with its seed; provenance: MADE with `changed`."""
    files = []
    for seeds in parts:
        files.append(folder / f"{seeds[0]}.npz")
        images = np.broadcast_to(np.array(seeds, np.uint8)[:, None, None, None], [len(seeds), 2, 3, 1])
        write_samples(files[-1], images, {**MADE, "seeds": [seeds[0], seeds[-1]], **changed})
    return files


@pytest.mark.parametrize("cuts", [[], [1], [5], [4, 8], [2, 3, 4, 11], [12], list(range(1, 13))])
@pytest.mark.parametrize("size", [1, 4, 5, 13, 20])
def test_batches_hold_the_same_images_however_files_split_them(tmp_path, cuts, size):
    files = write_parts(tmp_path, *(range(a, b) for a, b in zip([0, *cuts], [*cuts, 13], strict=True)))
    batches = [images[:, 0, 0, 0].tolist() for images in read_batches(files, size)]
    assert batches == [list(range(start, min(start + size, 13))) for start in range(0, 13, size)]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_images_in_batches_give_the_bytes_that_numpy_writes_for_all(size):
    images = np.random.default_rng(0).integers(0, 256, [7, 3, 5, 3], dtype=np.uint8)
    whole, parts = io.BytesIO(), io.BytesIO()
    np.savez(whole, arr_0=images, provenance=np.array(json.dumps(MADE, sort_keys=True)))
    stream_samples(parts, (images[first : first + size] for first in range(0, 7, size)), 7, MADE)
    assert parts.getvalue() == whole.getvalue()


def test_images_are_counted_without_reading_them(tmp_path):
    assert count_images(write_parts(tmp_path, range(3, 7), range(7, 8), range(8, 20))) == 17
    assert count_images(write_parts(tmp_path, range(4))) == 4


def test_reading_takes_the_memory_of_one_batch_not_of_a_file(tmp_path):
    images = np.zeros([2000, 32, 32, 3], np.uint8)
    write_samples(tmp_path / "a.npz", images, {**MADE, "seeds": [0, 1999]})
    tracemalloc.start()
    try:
        assert sum(map(len, read_batches([tmp_path / "a.npz"] * 3, 100))) == 6000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < images.nbytes / 2


def test_a_flipped_bit_is_detected_when_batches_are_read(tmp_path):
    images = np.full([600, 4, 4, 1], 77, np.uint8)
    write_samples(tmp_path / "a.npz", images, MADE)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(images.tobytes()) + 9000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="a.npz: damaged"):
        list(read_batches([tmp_path / "a.npz"], 100))


def test_images_of_any_memory_layout_are_read_as_written(tmp_path):
    images = np.asfortranarray(np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3, 1))
    write_samples(tmp_path / "a.npz", images, MADE)
    assert np.array_equal(np.concatenate(list(read_batches([tmp_path / "a.npz"], 2))), images)


def test_batches_hold_whole_uint8_images(tmp_path):
    (images,) = read_batches(write_parts(tmp_path, range(3), range(3, 5)), 8)
    assert images.dtype == np.uint8 and images.shape == (5, 2, 3, 1) and (images == images[:, :1, :1]).all()


def test_joint_provenance_covers_the_seeds_of_all_parts(tmp_path):
    files = write_parts(tmp_path, range(3, 7), range(7, 8), range(8, 20))
    assert joint_provenance(files) == {**MADE, "seeds": [3, 19]}
    assert joint_provenance(files[1:2]) == {**MADE, "seeds": [7, 7]}


def test_classes_of_parts_are_joined_and_a_common_class_is_kept(tmp_path):
    files = write_parts(tmp_path, range(2), classes=[4, 5]) + write_parts(tmp_path, range(2, 3), classes=[6])
    assert joint_provenance(files)["classes"] == [4, 5, 6]
    files = write_parts(tmp_path, range(2), classes=4) + write_parts(tmp_path, range(2, 3), classes=4)
    assert joint_provenance(files)["classes"] == 4


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([range(4), range(6, 9)], "0.npz ends with seed 3 and .*6.npz begins with 6: "),
        ([range(4), range(3, 9)], "0.npz ends with seed 3 and .*3.npz begins with 3: "),
        ([range(4, 9), range(4)], "4.npz ends with seed 8 and .*0.npz begins with 0: "),
        ([range(4), range(4)], "0.npz ends with seed 3 and .*0.npz begins with 0: "),
        ([range(2), range(2, 4), range(5, 6)], "2.npz ends with seed 3 and .*5.npz begins with 5: "),
    ],
)
def test_missing_or_repeated_seeds_are_refused(tmp_path, parts, said):
    with pytest.raises(UserError, match=said) as refusal:
        joint_provenance(write_parts(tmp_path, *parts))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": {"digest": "m" * 64}}, "network"),
        ({"sampler": "heun", "steps": 2}, "sampler, steps"),
        ({"churn": CHURN}, "churn"),
        ({"device": "cuda"}, "device"),
        ({"classes": 3}, "classes"),
    ],
)
def test_parts_made_in_different_ways_are_refused_naming_both(tmp_path, change, said):
    files = write_parts(tmp_path, range(2), range(2, 4)) + write_parts(tmp_path, range(4, 9), **change)
    with pytest.raises(UserError, match=f"2.npz and .*4.npz differ in {said}: ") as refusal:
        joint_provenance(files)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("fault", ["missing", "cut short", "unknown"])
def test_a_part_that_cannot_be_read_is_named(tmp_path, fault):
    first, other = write_parts(tmp_path, range(4), range(4, 9))
    content = other.read_bytes()
    other.unlink()
    if fault == "cut short":
        other.write_bytes(content[: len(content) // 2])
    if fault == "unknown":
        np.savez(other, arr_0=np.zeros([5, 2, 3, 1], np.uint8))
    for read in (joint_provenance, lambda files: list(read_batches(files, 3))):
        with pytest.raises(UserError, match=f"^{other}: "):
            read([first, other])


def test_samples_cut_short_anywhere_are_refused_by_name(tmp_path):
    path = tmp_path / "a.npz"
    write_samples(path, np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1), {"seeds": [0, 1]})
    content = path.read_bytes()
    for size in range(0, len(content), 37):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match="a.npz: damaged or cut short"):
            read_samples(path)


def test_a_flipped_bit_is_detected_when_all_images_are_read(tmp_path):
    path = tmp_path / "a.npz"
    images = np.full([2, 8, 8, 1], 77, np.uint8)
    write_samples(path, images, {"seeds": [0, 1]})
    content = bytearray(path.read_bytes())
    content[content.index(images.tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="a.npz: damaged"):
        read_samples(path)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros([2, 8, 8, 1], np.float32),
        np.zeros([2, 8, 8], np.uint8),
        np.zeros([2, 3, 8, 8], np.uint8),
        np.zeros([2, 8, 8, 4], np.uint8),
    ],
)
def test_arrays_that_are_not_images_are_refused(tmp_path, images):
    np.savez(tmp_path / "a.npz", arr_0=images, provenance=np.array(json.dumps({})))
    with pytest.raises(UserError, match="a.npz: images must be uint8"):
        read_samples(tmp_path / "a.npz")


def test_samples_without_provenance_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros([2, 8, 8, 1], np.uint8))
    with pytest.raises(UserError, match="a.npz: not an mscd sample file .*provenance"):
        read_samples(tmp_path / "a.npz")
