"""Loads a validated configuration from a YAML file, and checks that local files exist."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mscd.config.error_text import explain_errors
from mscd.config.run import Config
from mscd.errors import UserError
from mscd.provenance.urls import is_address, local_path


def load_config(source: str | Path | Mapping[str, Any], *, name: str = "config") -> Config:
    """Load the validated configuration from a YAML file, or from a mapping (which errors call `name`).

    Raises UserError (one line) for a missing or unreadable file, an unknown key, or a wrong value or combination.
    """
    if isinstance(source, Mapping):
        raw = source
    else:
        name = str(source)
        raw = read_yaml(Path(source))
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{name}: {explain_errors(error, Config)}") from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice in one mapping; YAML would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file. Raises UserError (one line) if there is none."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: invalid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: contains no settings")
    return raw


def check_source(source: str, key: str, *, name: str) -> None:
    """Raise UserError if `source`, the value of the setting `key`, is a path that does not exist.

    Errors call the settings `name`.
    """
    if source != "digits" and not is_address(source) and not local_path(source).exists():
        raise UserError(f"{name}: {key}: {source} does not exist; put it there, or correct the path")
