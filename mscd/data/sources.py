"""What data sets are packed from: image trees (a folder, zip or tar), and data sets that come as arrays."""

from __future__ import annotations

import importlib.util
import logging
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mscd.data import cifar10
from mscd.data.archives import FileTree, ZipFiles, looks_like_tar, open_files
from mscd.data.images import decode, is_image
from mscd.data.labels import labels_of_folders, named_as_packed, read_labels
from mscd.data.mnist import find_mnist, is_idx, read_mnist
from mscd.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Images to pack: how many, the name of image i and how to read it, and their classes [count] (None: none).

    read raises DamagedFile. packed_size: width of the images if the source is already an EDM zip.
    """

    count: int
    name: Callable[[int], str]
    read: Callable[[int], Image.Image]
    labels: np.ndarray | None
    packed_size: int | None = None

    def label_dim(self, numbers: Sequence[int] | np.ndarray) -> int:
        """Largest class + 1 of the images with these numbers; 0 without classes."""
        return 0 if self.labels is None else int(self.labels[numbers].max()) + 1


def open_source(source: str | os.PathLike[str], *, as_text: bool = False, drop_alpha: bool = False) -> Source:
    """Open the images of `source`: "digits", MNIST's idx file or its folder, CIFAR-10's tar, or an image tree.

    An image tree is a folder, zip or tar. Its images are ordered by their paths, compared folder by folder or, with
    as_text, as text. drop_alpha: accept images with an alpha channel, and drop it. Raises UserError if `source` cannot
    be read as any of these.
    """
    if source == "digits":
        return _array_source("digit", *_digits())
    if os.path.isdir(source):
        if (mnist := find_mnist(source)) is not None:
            return _array_source("image", *read_mnist(mnist))
    elif os.path.exists(source):
        if is_idx(source):
            return _array_source("image", *read_mnist(source))
        if looks_like_tar(source) and cifar10.is_cifar10(source):
            return _array_source("image", *cifar10.read_cifar10(source))
    return _tree_source(open_files(source), as_text, drop_alpha)


def _array_source(kind: str, pixels: np.ndarray, labels: np.ndarray) -> Source:
    """A source of uint8 pixels [N, H, W] or [N, H, W, 3]."""
    if not len(pixels):
        raise UserError("the data set contains no images")
    return Source(len(pixels), lambda k: f"{kind} {k}", lambda k: Image.fromarray(pixels[k]), labels)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits (8×8 grey, values 0..16 scaled to 0..255) and their classes."""
    package = importlib.util.find_spec("sklearn")  # not imported, which would take seconds
    if package is None or package.submodule_search_locations is None:
        raise UserError("the data set 'digits' comes with scikit-learn: pip install scikit-learn")
    table = np.loadtxt(Path(package.submodule_search_locations[0], "datasets/data/digits.csv.gz"), delimiter=",")
    return np.round(table[:, :-1].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8), table[:, -1].astype(np.int64)


def _tree_source(files: FileTree, as_text: bool, drop_alpha: bool) -> Source:
    positions = np.array([k for k, name in enumerate(files.names) if is_image(name)], np.int64)
    if not len(positions):
        raise UserError(f"{files.path}: contains no images")
    root = _imagenet_root(files, positions)
    positions = positions[[files.names[k].startswith(root) for k in positions]]
    names = [files.names[k][len(root) :] for k in positions]
    if not as_text:  # NUL sorts before every character that a name may have
        order = sorted(range(len(names)), key=[name.replace("/", "\0") for name in names].__getitem__)
        positions, names = positions[order], [names[k] for k in order]
    stated, labels = read_labels(files, names, root)
    as_packed = named_as_packed(names)
    if not stated and not as_packed:
        labels = labels_of_folders(names)
        if labels is None and labels_of_folders([name.partition("/")[2] for name in names]) is not None:
            top = f"{root}{names[0].partition('/')[0]}"
            log.warning(
                "%s: all images are in %s, so they have no classes; if its subfolders are classes, pack that folder",
                files.path,
                top,
            )
    packed_size = _packed_size(files, positions) if as_packed and isinstance(files, ZipFiles) else None
    return Source(
        len(names), names.__getitem__, lambda k: decode(files.read(positions[k]), drop_alpha), labels, packed_size
    )


def _imagenet_root(files: FileTree, positions: np.ndarray) -> str:
    """The folder of ImageNet's training images, ending with a slash, if the source contains it, else "".

    ImageNet has validation and test images next to it, which are not classes of their own.
    """
    above = "/" if files.path.resolve().name != "CLS-LOC" else "/CLS-LOC/"
    roots = set()
    for k in positions:
        before, found, _ = f"{above}{files.names[k]}".partition("/CLS-LOC/train/")
        if found:
            roots.add(f"{before}{found}"[len(above) :])
    if len(roots) > 1:
        raise UserError(
            f"{files.path}: contains several CLS-LOC/train folders ({', '.join(sorted(roots))}): choose one"
        )
    return roots.pop() if roots else ""


def _packed_size(files: ZipFiles, positions: np.ndarray) -> int | None:
    """Width of a zip's images if they are stored PNGs, 8-bit grey or RGB, square and alike; else None."""
    heads = {files.stored_head(k, 29) for k in positions}
    head = heads.pop()
    if heads or head is None or len(head) < 29 or not head.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"):
        return None
    width, height, depth, kind = struct.unpack_from(">IIBB", head, 16)
    return width if width == height and depth == 8 and kind in (0, 2) else None
