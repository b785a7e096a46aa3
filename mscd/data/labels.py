"""Classes of images, from a dataset.json or else from their folders."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np

from mscd.data.archives import DamagedFile, FileTree
from mscd.errors import UserError

_OUR_NAME = re.compile(r"(\d{5,})/img(\d{8,})\.png")
MAX_CLASSES = 1_000_000  # a larger class is a mistake, and would take that much memory in every count


def image_name(index: int) -> str:
    """Name of image number `index` in a packed data set."""
    return f"{index // 1000:05d}/img{index:08d}.png"


def named_as_packed(names: list[str]) -> bool:
    """Whether all names are ones that a packed data set uses, with or without gaps."""
    found = map(_OUR_NAME.fullmatch, names)
    return all(match and match[0] == image_name(int(match[2])) for match in found)


def read_labels(files: FileTree, names: list[str], folder: str = "") -> tuple[bool, np.ndarray | None]:
    """Read whether `folder` has a dataset.json and, from it, the class [N] of each of `names` (None: no classes).

    folder: ends with a slash or is empty; `names` are relative to it. Raises UserError if the file is damaged or does
    not match the names.
    """
    if f"{folder}dataset.json" not in files.names:
        return False, None
    where = f"{files.path}: {folder}dataset.json"
    try:
        entries = json.loads(files.read(files.names.index(f"{folder}dataset.json")))["labels"]
        if entries is None:
            return True, None
        labels = {name: label for name, label in entries}
    except (DamagedFile, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{where} is not {{"labels": [[name, class], ...]}} or {{"labels": null}} ({error})') from error
    for name, label in entries:
        if type(label) is not int or not 0 <= label < MAX_CLASSES:
            raise UserError(f"{where} gives {name} the class {label!r}: classes are integers from 0")
    if len(labels) < len(entries):
        name = Counter(name for name, _ in entries).most_common(1)[0][0]
        raise UserError(f"{where} names {name} more than once")
    del entries  # for a million images, most of the memory
    if len(labels) != len(names) or not all(name in labels for name in names):
        without_label, without_image = sorted(set(names) - labels.keys()), sorted(labels.keys() - set(names), key=str)
        first = (without_label or without_image)[0]
        raise UserError(
            f"{where} does not match the images: {len(without_label)} images without a label and {len(without_image)} "
            f"labels without an image (first: {first})"
        )
    return True, np.fromiter((labels[name] for name in names), np.int64, len(names))


def labels_of_folders(names: list[str]) -> np.ndarray | None:
    """Class [N] of each image: the rank of its top folder ('' for none) in sorted order; None if there is only one."""
    tops = (name.split("/")[0] if "/" in name else "" for name in names)
    classes = {top: number for number, top in enumerate(sorted(set(tops)))}
    if len(classes) < 2:
        return None
    tops = (name.split("/")[0] if "/" in name else "" for name in names)
    return np.fromiter((classes[top] for top in tops), np.int64, len(names))
