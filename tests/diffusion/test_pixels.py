"""Pixels: equality with the golden numbers, and the round trip."""

import torch
from golden_data import load
from hypothesis import given
from hypothesis import strategies as st

from mscd.diffusion.pixels import to_uint8, to_unit_range

golden, _ = load("sampler")


def test_pixels_equal_golden():
    exact = to_uint8(torch.as_tensor(golden["analytic/euler8/out"])).numpy()
    assert (exact == golden["analytic/euler8/u8"]).all()


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=20))
def test_pixels_are_truncated_and_clipped_to_bytes(values):
    pixels = to_uint8(torch.tensor(values, dtype=torch.float64))
    expected = [int(min(max(v * 127.5 + 128, 0), 255)) for v in values]
    assert pixels.tolist() == expected and pixels.dtype == torch.uint8


def test_bytes_survive_the_round_trip_through_the_unit_range():
    pixels = torch.arange(256, dtype=torch.uint8)
    images = to_unit_range(pixels)
    assert images.dtype == torch.float32 and (images[0], images[-1]) == (-1, 1)
    assert torch.equal(to_uint8(images), pixels)
