"""A checked configuration from a YAML file, and where its files are missing."""

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
    """The checked configuration of a YAML file or of a mapping (which errors call `name`).

    Raises UserError, one line, for a missing or unreadable file, an unknown key, a wrong value or combination.
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
    """Refuses a key given twice in one place, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. UserError, one line, where there is none."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds no settings")
    return raw


def check_source(source: str, key: str, *, name: str) -> None:
    """UserError where the setting `key` of the settings that errors call `name` is a path and nothing is there."""
    if source != "digits" and not is_address(source) and not local_path(source).exists():
        raise UserError(f"{name}: {key}: there is no {source}; put it there, or say where it is")
