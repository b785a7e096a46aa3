"""The settings of each method by which a student can be trained: what is found in mscd/methods/<name>/settings.py."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Tag

from mscd.config.training import StudentSettings

DEFAULT = "consistency"  # what a student without the key `method` is trained by
FOLDER = Path(__file__).parents[1] / "methods"


def _settings_of(name: str) -> type[StudentSettings]:
    """Return the settings defined in the module of a method."""
    module = importlib.import_module(f"mscd.methods.{name}.settings")
    defined = (value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__)
    return next(value for value in defined if isinstance(value, type) and issubclass(value, StudentSettings))


def _by_method() -> dict[str, type[StudentSettings]]:
    found = [_settings_of(path.parent.name) for path in sorted(FOLDER.glob("*/settings.py"))]
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
