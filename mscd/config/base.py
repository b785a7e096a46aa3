"""Building blocks of the configuration: validated, frozen settings, their digests, and common types."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from mscd.diffusion.ema_names import LARGEST_STD

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
SHA256_PATTERN = r"^[0-9a-f]{64}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Kimg = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Width = Annotated[int, Field(ge=1)]


def _check_three_decimals(std: float) -> float:
    if round(std, 3) != std:
        raise ValueError(f"must have at most three decimals, as file names do (got {std})")
    return std


PhemaStd = Annotated[float, Field(gt=0, le=LARGEST_STD), AfterValidator(_check_three_decimals)]
Sha256 = Annotated[str, Field(pattern=SHA256_PATTERN)]


def operational(default: Any, description: str) -> Any:
    """A field outside a run's identity: it sets how long or how closely watched the run is, or is only checked."""
    return Field(default, description=description, json_schema_extra={"operational": True})


def added(default: Any, description: str) -> Any:
    """A field that earlier versions did not have: at its default it is not part of a run's identity, so that runs that
    were made before it existed keep theirs."""
    return Field(default, description=description, json_schema_extra={"added": True})


def is_operational(field: FieldInfo) -> bool:
    """Whether a field was created by `operational`."""
    return _is_marked(field, "operational")


def _is_marked(field: FieldInfo, mark: str) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get(mark) is True


class Settings(BaseModel):
    """A section of the configuration. Unknown keys are refused, and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True)

    def identity(self) -> dict[str, Any]:
        """The settings that affect the result, as plain JSON values. Runs with equal identities are the same run."""
        kept = {}
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            if not is_operational(field) and not (_is_marked(field, "added") and value == field.default):
                kept[key] = _plain(value)
        return kept


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.identity()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of `value` (settings or plain JSON values) as canonical JSON."""
    canonical = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


SHA256_MEANING = (
    "Expected sha256 of the file. If set, it identifies the file, wherever the file is; null: the sha256 is pinned "
    "in downloads.lock at the first use, and `source` identifies the file."
)


def file_identity(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity of a file's settings, in which the file is identified by its sha256 if set, else by its source."""
    left_out = "source" if identity["sha256"] else "sha256"
    return {name: value for name, value in identity.items() if name != left_out}


class FileSettings(Settings):
    """A third-party file."""

    source: str = Field(
        min_length=1,
        description="Path or URL (`https://`, `http://`, `file://`) of the file. A file on the web is downloaded once, "
        "into downloads/. Without `sha256`, a different path or URL counts as a different file.",
    )
    sha256: Sha256 | None = Field(None, description=SHA256_MEANING)
    license: str | None = operational(
        None, "Licence of the file, carried into everything made from it; null: the one known to mscd, if any."
    )

    def identity(self) -> dict[str, Any]:
        """The file, identified by its sha256 if set, else by its source, and its other settings."""
        return file_identity(super().identity())
