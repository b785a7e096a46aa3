"""What every part of the configuration is made of: checked, frozen settings, their digests and common types."""

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
        raise ValueError(f"has more than the three decimals that a file's name has (got {std})")
    return std


PhemaStd = Annotated[float, Field(gt=0, le=LARGEST_STD), AfterValidator(_check_three_decimals)]
Sha256 = Annotated[str, Field(pattern=SHA256_PATTERN)]


def operational(default: Any, description: str) -> Any:
    """A field that says how long or how closely watched a run is, or what is only checked: no part of its identity."""
    return Field(default, description=description, json_schema_extra={"operational": True})


def is_operational(field: FieldInfo) -> bool:
    """Whether a field was made by `operational`."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get("operational") is True


class Settings(BaseModel):
    """A part of the configuration: unknown keys are refused and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True)

    def identity(self) -> dict[str, Any]:
        """The settings that reach the result, as plain JSON values; two runs with equal identities are the same run."""
        kept = {}
        for key, field in type(self).model_fields.items():
            if not is_operational(field):
                kept[key] = _plain(getattr(self, key))
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
    """First 16 hex digits of the SHA-256 of `value` (settings, or plain JSON values) as canonical JSON."""
    canonical = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


SHA256_MEANING = (
    "sha256 that the file must have, by which a run knows it from then on, wherever it lies; null: it must be what it "
    "was at its first use, which downloads.lock keeps, and the run knows it by `source`."
)


def file_identity(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity of a file's settings: by its sha256 where that is set, else by its source."""
    left_out = "source" if identity["sha256"] else "sha256"
    return {name: value for name, value in identity.items() if name != left_out}


class FileSettings(Settings):
    """A file that others made."""

    source: str = Field(
        min_length=1,
        description="Path of the file, or its address (`https://`, `http://`, `file://`), from which it is downloaded "
        "once, into downloads/. Without `sha256`, another path or address counts as another file.",
    )
    sha256: Sha256 | None = Field(None, description=SHA256_MEANING)
    license: str | None = operational(
        None, "Its licence, carried into all that is made from it; null: as far as mscd knows it."
    )

    def identity(self) -> dict[str, Any]:
        """The file by its hash or, without one, by its source; and what else is set of it."""
        return file_identity(super().identity())
