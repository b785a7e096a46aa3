"""Images: decoding, cropping to a training resolution, and PNGs whose bytes depend on the pixels alone."""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from mscd.data.archives import DamagedFile

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # Pillow would also hand PostScript to a program
_PNG_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
_PACKED_HEAD, _PACKED_TAIL = 48, 8 + len(_PNG_END)  # bytes before and after the rows of a PNG of one block
_LARGEST_BLOCK = 65535  # of a stored zlib stream


def is_image(name: str) -> bool:
    """Whether a file has the suffix of an image."""
    return name.lower().endswith(SUFFIXES)


def decode(content: bytes, drop_alpha: bool = False) -> Image.Image:
    """The 8-bit grey ("L") or "RGB" image in a file's content. Raises DamagedFile when there is none in it.

    Palettes, CMYK and YCbCr become RGB. An alpha channel is refused unless it is to be dropped. Of several frames it is
    the first, as stored: a rotation in the EXIF data is not applied.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        image.load()
    except UnidentifiedImageError as error:  # whose text is the address of our buffer
        raise DamagedFile("its content is no image") from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise DamagedFile(" ".join(str(error).split()) or type(error).__name__) from error
    if image.mode in ("L", "RGB"):
        return image
    has_alpha = image.mode in ("LA", "PA", "RGBA") or (image.mode == "P" and "transparency" in image.info)
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "CMYK", "YCbCr") and not has_alpha or has_alpha and drop_alpha:
        return image.convert("RGB")
    kind = (
        "an alpha channel: flatten it first" if has_alpha else f"pixels of kind {image.mode}: convert to 8 bits first"
    )
    raise DamagedFile(f"it has {kind}")


def packed_pixels(content: bytes) -> np.ndarray | None:
    """Pixels [H, W, 1 or 3], not copied, of an intact PNG of up to 64 KB by `encode_png`; None of all others.

    `decode` takes ten times as long for the same pixels.
    """
    if len(content) < _PACKED_HEAD + _PACKED_TAIL:
        return None
    width, height, _, kind = struct.unpack_from(">IIBB", content, 16)
    channels = 3 if kind == 2 else 1
    size = height * (1 + width * channels)
    if not 0 < size <= _LARGEST_BLOCK or len(content) != _PACKED_HEAD + size + _PACKED_TAIL:
        return None
    if not content.startswith(_packed_head(height, width, channels)) or not content.endswith(_PNG_END):
        return None
    (crc,) = struct.unpack_from(">I", content, len(content) - _PACKED_TAIL + 4)
    rows = np.frombuffer(content, np.uint8, size, _PACKED_HEAD).reshape(height, -1)
    if zlib.crc32(memoryview(content)[37 : -len(_PNG_END) - 4]) != crc or rows[:, 0].any():
        return None
    return rows[:, 1:].reshape(height, width, channels)


@functools.lru_cache(maxsize=8)
def _packed_head(height: int, width: int, channels: int) -> bytes:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return encode_png(np.zeros(shape, np.uint8))[:_PACKED_HEAD]


def transformed(image: Image.Image, transform: str | None, size: tuple[int, int] | None) -> Image.Image | None:
    """`image` brought to `size` (width, height) by one of TRANSFORMS, or None if it is too small for the transform.

    None as transform resizes (Lanczos) whatever the aspect, and not at all when the size fits or none is given, as the
    crops need one. They make RGB of grey.
    """
    if size is None:
        return image
    if transform is None:
        return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
    image = image.convert("RGB")
    if transform == "center-crop":
        side = min(image.size)
        return _crop_center(image, side, side).resize(size, Image.Resampling.LANCZOS)
    return _center_crop_wide(image, *size) if transform == "center-crop-wide" else _center_crop_dhariwal(image, size[0])


def _crop_center(image: Image.Image, width: int, height: int) -> Image.Image:
    """The central width × height pixels. An odd pixel too many is cut from the right or bottom."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, (image.width + width) // 2, (image.height + height) // 2))


def _center_crop_wide(image: Image.Image, width: int, height: int) -> Image.Image | None:
    """Central rows squeezed to width × height, on a black square of the width; None for an image too small."""
    rows = round(width * image.height / image.width)
    if image.width < width or rows < height:
        return None
    cropped = _crop_center(image, image.width, rows).resize((width, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (width, width))
    canvas.paste(cropped, (0, (width - height) // 2))
    return canvas


def _center_crop_dhariwal(image: Image.Image, size: int) -> Image.Image:
    """Halve by box filter while at least twice too large, then bicubic to the short side, then crop (ADM's way)."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def encode_png(pixels: np.ndarray) -> bytes:
    """An uncompressed PNG of uint8 pixels [H, W] (grey) or [H, W, 3] (RGB).

    Written out here, as Pillow's bytes change with its version and the zlib it is built with.
    """
    height, width = pixels.shape[:2]
    rows = np.zeros((height, pixels.nbytes // height + 1), np.uint8)  # each row is led by its filter type, 0 for none
    rows[:, 1:] = pixels.reshape(height, -1)
    colour_type = 0 if pixels.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", _stored_zlib(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _stored_zlib(data: bytes) -> bytes:
    """A zlib stream (RFC 1950) of stored blocks."""
    blocks = [data[start : start + _LARGEST_BLOCK] for start in range(0, len(data), _LARGEST_BLOCK)]
    stored = (
        struct.pack("<BHH", block_number == len(blocks), len(block), len(block) ^ 0xFFFF) + block
        for block_number, block in enumerate(blocks, start=1)
    )
    return b"\x78\x01" + b"".join(stored) + struct.pack(">I", zlib.adler32(data))
