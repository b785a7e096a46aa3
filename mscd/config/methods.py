"""The settings of each method by which a student can be trained: what is found in mscd/methods/<name>/settings.py."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union

from pydantic import Discriminator, Tag

from mscd.config.training import StudentSettings

DEFAULT: str = StudentSettings.model_fields["method"].default  # what a student without the key `method` is trained by
FOLDER = Path(__file__).parents[1] / "methods"


Class = TypeVar("Class")


def class_in(module_name: str, base: type[Class]) -> type[Class]:
    """Return the subclass of `base` that a module defines."""
    members = vars(importlib.import_module(module_name)).values()
    classes = (value for value in members if isinstance(value, type) and issubclass(value, base))
    return next(value for value in classes if value.__module__ == module_name)


def _by_method() -> dict[str, type[StudentSettings]]:
    modules = [f"mscd.methods.{path.parent.name}.settings" for path in sorted(FOLDER.glob("*/settings.py"))]
    found = [class_in(module, StudentSettings) for module in modules]  # type: ignore[type-abstract]
    return {settings.model_fields["method"].default: settings for settings in found}


METHODS: Mapping[str, type[StudentSettings]] = _by_method()


def _tag(value: Any) -> str:
    """Tag of the method of a student's settings. No key in a file can look like a tag (mscd.config.error_text)."""
    method = value.get("method", DEFAULT) if isinstance(value, Mapping) else getattr(value, "method", DEFAULT)
    return f"<{method}>"


if TYPE_CHECKING:
    AnyStudent = StudentSettings
else:  # a union that only the folder knows
    AnyStudent = Annotated[
        Union[tuple(Annotated[settings, Tag(f"<{method}>")] for method, settings in METHODS.items())],  # noqa: UP007
        Discriminator(_tag),
    ]
