"""What the commands share: the layout of their help, the types of their options, and the fetching of files by URL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mscd.provenance.licenses import Origin

SHA256 = re.compile("[0-9a-fA-F]{64}")
# Help is up to 100 columns wide and shows defaults.
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


class Command(click.Command):
    """A command whose help ends with examples, each a purpose and the command line to type."""

    def __init__(self, name: str | None, *, examples: Sequence[tuple[str, str]], **options: Any) -> None:
        super().__init__(name, **options)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, with command lines unwrapped, as they are typed."""
        with formatter.section("Examples"):
            for position, (purpose, line) in enumerate(self.examples):
                formatter.write("\n" * (position > 0))
                formatter.write_text(purpose)
                formatter.write("".join(f"{'':{formatter.current_indent + 2}}{part}\n" for part in line.split("\n")))


class Count(click.IntRange):
    """An integer with a lower bound."""

    name = "n"


class Number(click.FloatRange):
    """A number with a lower bound."""

    name = "x"


class Seeds(click.ParamType[range]):
    """A range of seeds: FIRST-LAST, or a single seed."""

    name = "first-last"

    def convert(self, value: str | range, param: click.Parameter | None, ctx: click.Context | None) -> range:
        """Return the seeds as a range."""
        if isinstance(value, range):
            return value
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", value)
        if not found or int(found[2] or found[1]) < int(found[1]):
            self.fail(f"{value!r} is not a range of seeds; give a range such as 0-49999, or a single seed", param, ctx)
        return range(int(found[1]), int(found[2] or found[1]) + 1)


class Nodes(click.ParamType[str | list[float]]):
    """A student's noise levels: the name of a grid, or the levels themselves with commas between them."""

    name = "sigmas"

    def convert(
        self, value: str | list[float], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | list[float]:
        """Return the name or the levels."""
        if not isinstance(value, str) or value in ("karras", "karras-drop-last"):
            return value
        try:
            return [float(level) for level in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} are not noise levels; give karras, karras-drop-last, or e.g. 80,1.1", param, ctx)


class Size(click.ParamType[int | tuple[int, int]]):
    """A size in pixels: a width, or WIDTHxHEIGHT."""

    name = "pixels"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, int]:
        """Return the width, or (width, height)."""
        found = re.fullmatch(r"(\d+)(?:x(\d+))?", value)
        if not found:
            self.fail(f"{value!r} is not a size; give a width such as 64, or WIDTHxHEIGHT such as 512x256", param, ctx)
        width, height = int(found[1]), int(found[2] or found[1])
        if not width or not height:
            self.fail(f"{value!r} is a size without pixels; width and height must be at least 1", param, ctx)
        return (width, height) if found[2] else width


class Digest(click.ParamType[str]):
    """A sha256, given as 64 hexadecimal digits."""

    name = "hex"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the digits in lower case."""
        if not SHA256.fullmatch(value):
            self.fail(f"{value!r} is not a sha256; give 64 hexadecimal digits", param, ctx)
        return value.lower()


def existing(*, dir_okay: bool = True) -> click.Path[Path]:
    """Return the type of a path that must exist."""
    return click.Path(exists=True, path_type=Path, dir_okay=dir_okay)


def new(*, file_okay: bool = True, dir_okay: bool = True) -> click.Path[Path]:
    """Return the type of a path to write to."""
    return click.Path(path_type=Path, file_okay=file_okay, dir_okay=dir_okay)


def obtain(source: str, sha256: str | None = None, license: str | None = None) -> tuple[Path, Origin]:
    """Return the local path of a source and its origin for metadata; a URL is fetched into downloads/, once.

    Raises UserError if there is no such file, or if its sha256 is not the one given.
    """
    from mscd.errors import UserError
    from mscd.files.atomic import sha256_of
    from mscd.provenance.fetch import fetch
    from mscd.provenance.licenses import origin
    from mscd.provenance.urls import is_address

    if is_address(source) or sha256:
        return fetch(source, sha256, license)
    if not Path(source).is_file():
        raise UserError(f"{source}: no such file; give a path or an http(s) URL")
    return Path(source), origin(source, sha256_of(source), license)


DETECTOR = (
    "Network that computes the features to compare: a classifier.safetensors of mscd or the TorchScript Inception, as "
    "a path or http(s) URL."
)


DETECTOR_SHA256 = (
    "Expected sha256 of a TorchScript detector other than FID's Inception. Its code is run, so no other file is opened."
)
