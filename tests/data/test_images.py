"""Images other than 8-bit grey or RGB (the table in docs/reference/data.md, row by row), and the PNGs of encode_png."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mscd.data.archives import DamagedFile
from mscd.data.images import decode, encode_png, packed_pixels, transformed

GREY = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)
RED = np.zeros((12, 20, 3), np.uint8) + np.array([255, 0, 0], np.uint8)


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_grey_stays_grey_unless_cropped_to_rgb():
    image = decode(file_of(Image.fromarray(GREY)))
    assert image.mode == "L" and np.array_equal(image, GREY)
    assert transformed(image, None, (8, 8)).mode == "L"
    for transform, size in (("center-crop", (8, 8)), ("center-crop-wide", (8, 4)), ("center-crop-dhariwal", (8, 8))):
        pixels = np.asarray(transformed(image, transform, size))
        assert pixels.shape == (8, 8, 3) and (pixels == pixels[:, :, :1]).all()


def test_black_and_white_becomes_grey():
    image = decode(file_of(Image.fromarray(GREY > 100)))
    assert image.mode == "L" and np.array_equal(image, np.where(GREY > 100, 255, 0))


@pytest.mark.parametrize(
    "mode, kind", [("P", "PNG"), ("P", "GIF"), ("CMYK", "TIFF"), ("CMYK", "JPEG"), ("YCbCr", "TIFF")]
)
def test_palette_cmyk_and_ycbcr_become_rgb(mode, kind):
    image = decode(file_of(Image.fromarray(RED).convert(mode), kind))
    assert image.mode == "RGB" and np.abs(np.asarray(image).astype(int) - RED).max() <= 3


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_rotation_is_not_applied(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    plain, turned = (file_of(Image.fromarray(GREY), "JPEG", **extra) for extra in ({}, {"exif": exif}))
    assert np.array_equal(decode(turned), decode(plain)) and decode(turned).size == (20, 12)


def test_sixteen_bit_grey_is_refused():
    for image in (Image.fromarray(GREY.astype(np.uint16) * 256), Image.fromarray(GREY.astype(np.int32))):
        with pytest.raises(DamagedFile, match=r"it has pixels of mode I.*: convert to 8 bits first"):
            decode(file_of(image, "TIFF"))


def test_sixteen_bit_rgb_is_reduced_to_its_upper_eight_bits():
    ppm = b"P6 2 1 65535\n" + np.array([0x1234, 0xFFFF, 0, 0xFF00, 0x80, 0x7F80], ">u2").tobytes()
    assert np.abs(np.asarray(decode(ppm)).astype(int) - [[[0x12, 255, 0], [255, 0, 0x7F]]]).max() <= 1


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_refused_or_dropped(mode):
    image = Image.fromarray(RED).convert("RGBA" if mode != "LA" else "LA")
    image.putalpha(Image.fromarray(GREY))
    content = file_of(image if mode != "PA" else image.quantize(), "PNG")
    with pytest.raises(DamagedFile, match="alpha channel: flatten it first"):
        decode(content)
    dropped = decode(content, drop_alpha=True)
    assert dropped.mode == "RGB"
    if mode == "RGBA":
        assert np.array_equal(dropped, RED)


def test_transparent_colour_of_grey_and_rgb_is_ignored():
    content = file_of(Image.fromarray(GREY), "PNG", transparency=7)
    assert np.array_equal(decode(content), GREY)


def test_first_of_several_frames_is_read():
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
    for kind in ("GIF", "TIFF"):
        content = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
        assert (np.asarray(decode(content)) == 10).all()


def test_format_is_identified_by_content():
    assert np.array_equal(decode(file_of(Image.fromarray(RED), "BMP")), RED)
    assert np.array_equal(decode(file_of(Image.fromarray(RED), "WEBP", lossless=True)), RED)


@settings(deadline=None, max_examples=60)
@given(height=st.integers(1, 40), width=st.integers(1, 40), colour=st.booleans(), seed=st.integers(0, 99))
def test_packed_pixels_equal_decoded_ones(height, width, colour, seed):
    shape = (height, width, 3) if colour else (height, width)
    png = encode_png(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    assert np.array_equal(packed_pixels(png), np.atleast_3d(np.asarray(decode(png))))


def test_packed_pixels_reject_any_other_file():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for options in ({}, {"compress_level": 0, "optimize": False}):  # the latter is how the reference tool saves
        assert packed_pixels(file_of(Image.fromarray(pixels), **options)) is None
    assert packed_pixels(file_of(Image.fromarray(pixels), "JPEG")) is None
    assert packed_pixels(b"") is None
    png = encode_png(pixels)
    for wrong in (png[:-1], png + b"\0", png[:40], b"\0" * len(png)):
        assert packed_pixels(wrong) is None


def test_packed_pixels_reject_a_file_with_a_flipped_bit():
    png = encode_png(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    for bit in range(8 * len(png)):
        damaged = bytearray(png)
        damaged[bit // 8] ^= 1 << bit % 8
        assert packed_pixels(bytes(damaged)) is None, bit


def test_packed_pixels_leave_filtered_rows_to_decoding():
    png = bytearray(encode_png(np.full((4, 4), 7, np.uint8)))
    png[48 + 5] = 2  # the second row as the difference from the first
    data = bytes(png[41:-20]) + struct.pack(">I", zlib.adler32(bytes(png[48:-20])))
    png[41:-12] = data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    assert packed_pixels(bytes(png)) is None
    assert np.asarray(decode(bytes(png))).tolist() == [[7] * 4, [14] * 4, [7] * 4, [7] * 4]


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 40), width=st.integers(1, 40), colour=st.booleans(), seed=st.integers(0, 99))
def test_encoded_png_has_the_given_pixels(height, width, colour, seed):
    shape = (height, width, 3) if colour else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    image = Image.open(io.BytesIO(encode_png(pixels)))
    assert image.mode == ("RGB" if colour else "L")
    assert np.array_equal(image, pixels)


def test_encoded_png_of_several_stored_blocks_has_the_given_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert np.array_equal(Image.open(io.BytesIO(encode_png(pixels))), pixels)
