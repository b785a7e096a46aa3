"""Images: decoding, cropping to a training resolution, and PNGs whose bytes depend only on the pixels."""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from mscd.data.archives import DamagedFile

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # Pillow would also pass PostScript to a program
_PNG_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
_PACKED_HEAD, _PACKED_TAIL = 48, 8 + len(_PNG_END)  # bytes before and after the rows of a one-block PNG
_LARGEST_BLOCK = 65535  # bytes, in a stored zlib stream


def is_image(name: str) -> bool:
    """Whether a file has the suffix of an image."""
    return name.lower().endswith(SUFFIXES)


def decode(content: bytes, drop_alpha: bool = False) -> Image.Image:
    """Decode a file's content to an 8-bit grey ("L") or "RGB" image. Raises DamagedFile if it contains none.

    Palette, CMYK and YCbCr images become RGB. An alpha channel is refused unless `drop_alpha` is set. Of several frames
    the first is taken. It is returned as stored: a rotation in the EXIF data is not applied.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        image.load()
    except UnidentifiedImageError as error:  # its text only gives the address of the buffer
        raise DamagedFile("its content is not an image") from error
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
        "an alpha channel: flatten it first" if has_alpha else f"pixels of mode {image.mode}: convert to 8 bits first"
    )
    raise DamagedFile(f"it has {kind}")


def packed_pixels(content: bytes) -> np.ndarray | None:
    """Pixels [H, W, 1 or 3], not copied, of an intact PNG of up to 64 KB from `encode_png`; None for any other file.

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
    """Bring `image` to `size` (width, height) by one of TRANSFORMS; None if it is too small for the transform.

    If transform is None, the image is resized (Lanczos) whatever its aspect ratio, unless it has that size already. If
    size is None, which no crop allows, the image is returned unchanged. Crops convert grey to RGB.
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
    """The central width × height pixels. If the margin is odd, the extra pixel is cut from the right or bottom."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, (image.width + width) // 2, (image.height + height) // 2))


def _center_crop_wide(image: Image.Image, width: int, height: int) -> Image.Image | None:
    """The central rows squeezed to width × height, on a black square of that width; None if the image is too small."""
    rows = round(width * image.height / image.width)
    if image.width < width or rows < height:
        return None
    cropped = _crop_center(image, image.width, rows).resize((width, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (width, width))
    canvas.paste(cropped, (0, (width - height) // 2))
    return canvas


def _center_crop_dhariwal(image: Image.Image, size: int) -> Image.Image:
    """Halve by box filter while at least twice too large, resize the short side by bicubic, then crop, as ADM does."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 pixels [H, W] (grey) or [H, W, 3] (RGB) as an uncompressed PNG.

    Written out here because Pillow's bytes change with its version and the zlib it is built with.
    """
    height, width = pixels.shape[:2]
    rows = np.zeros((height, pixels.nbytes // height + 1), np.uint8)  # each row starts with its filter type, 0 for none
    rows[:, 1:] = pixels.reshape(height, -1)
    colour_type = 0 if pixels.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", _stored_zlib(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _stored_zlib(data: bytes) -> bytes:
    """A zlib stream (RFC 1950) that consists of stored blocks."""
    blocks = [data[start : start + _LARGEST_BLOCK] for start in range(0, len(data), _LARGEST_BLOCK)]
    stored = (
        struct.pack("<BHH", block_number == len(blocks), len(block), len(block) ^ 0xFFFF) + block
        for block_number, block in enumerate(blocks, start=1)
    )
    return b"\x78\x01" + b"".join(stored) + struct.pack(">I", zlib.adler32(data))
