"""What the commands share: how their help looks, what values their options take, and files from an address."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mscd.provenance.licenses import Origin

SHA256 = re.compile("[0-9a-fA-F]{64}")
# Help as wide as terminals mostly are, with defaults.
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


class Command(click.Command):
    """A command whose help ends with examples, a line each or two: what it does, and the line to type."""

    def __init__(self, name: str | None, *, examples: Sequence[tuple[str, str]], **options: Any) -> None:
        super().__init__(name, **options)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they are to be typed, unwrapped."""
        with formatter.section("Examples"):
            for position, (purpose, line) in enumerate(self.examples):
                formatter.write("\n" * (position > 0))
                formatter.write_text(purpose)
                formatter.write("".join(f"{'':{formatter.current_indent + 2}}{part}\n" for part in line.split("\n")))


class Count(click.IntRange):
    """An integer from a smallest one on."""

    name = "n"


class Number(click.FloatRange):
    """A number from a smallest one on."""

    name = "x"


class Seeds(click.ParamType[range]):
    """FIRST-LAST, or one number."""

    name = "first-last"

    def convert(self, value: str | range, param: click.Parameter | None, ctx: click.Context | None) -> range:
        """The seeds as a range."""
        if isinstance(value, range):
            return value
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", value)
        if not found or int(found[2] or found[1]) < int(found[1]):
            self.fail(f"{value!r} is no range of seeds: write for example 0-49999, or one number", param, ctx)
        return range(int(found[1]), int(found[2] or found[1]) + 1)


class Size(click.ParamType[int | tuple[int, int]]):
    """A width, or WIDTHxHEIGHT."""

    name = "pixels"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, int]:
        """The width, or width and height."""
        found = re.fullmatch(r"(\d+)(?:x(\d+))?", value)
        if not found:
            self.fail(f"{value!r} is no size: write for example 64, or 512x256", param, ctx)
        width, height = int(found[1]), int(found[2] or found[1])
        if not width or not height:
            self.fail(f"{value!r} leaves no pixels", param, ctx)
        return (width, height) if found[2] else width


class Digest(click.ParamType[str]):
    """A sha256 as 64 hexadecimal digits."""

    name = "hex"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The digits in lower case."""
        if not SHA256.fullmatch(value):
            self.fail(f"{value!r} is no sha256, which has 64 hexadecimal digits", param, ctx)
        return value.lower()


def existing(*, dir_okay: bool = True) -> click.Path[Path]:
    """A path where something is."""
    return click.Path(exists=True, path_type=Path, dir_okay=dir_okay)


def new(*, file_okay: bool = True, dir_okay: bool = True) -> click.Path[Path]:
    """A path to write to."""
    return click.Path(path_type=Path, file_okay=file_okay, dir_okay=dir_okay)


def obtain(source: str, sha256: str | None = None, license: str | None = None) -> tuple[Path, Origin]:
    """Fetch a source that is an address into downloads/; returns its local path, and its origin for metadata.

    Raises UserError where nothing is there, and for another file than that of the sha256.
    """
    from mscd.errors import UserError
    from mscd.files.atomic import sha256_of
    from mscd.provenance.fetch import fetch
    from mscd.provenance.licenses import origin
    from mscd.provenance.urls import is_address

    if is_address(source) or sha256:
        return fetch(source, sha256, license)
    if not Path(source).is_file():
        raise UserError(f"{source}: no such file; give its path or an http(s) address")
    return Path(source), origin(source, sha256_of(source), license)


DETECTOR = (
    "Network whose features images are compared by: a classifier.safetensors of mscd, or the TorchScript Inception, as "
    "a path or http(s) address."
)


DETECTOR_SHA256 = (
    "sha256 of a TorchScript detector other than the Inception of FID. Its code runs, so no other file is opened."
)
