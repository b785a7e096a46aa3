"""Generates config/README.md and config/schema.json from the models: `python -m mscd.config.docs [FOLDER]`."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mscd.config.base import FileSettings, Settings, is_operational
from mscd.config.data import DataSettings
from mscd.config.methods import DEFAULT, METHODS
from mscd.config.network import NetworkSettings
from mscd.config.reference import (
    ClassifierSettings,
    HoldoutSource,
    InceptionSettings,
    ReferenceSettings,
    VisionModelSettings,
)
from mscd.config.run import Config
from mscd.config.scoring import PosthocSettings, SamplerSettings, ScoringSettings
from mscd.config.training import PublishedStudent, PublishedTeacher, StudentSettings, TeacherSettings
from mscd.files.markdown import markdown_table

DOCS_HEADER = """\
# Settings

This page is generated from the models in `mscd/config/` by `python -m mscd.config.docs`; change it there.

Settings are read from `config/config.yaml`, or from FILE with `snakemake --configfile FILE`. Unknown keys are refused.
Changing a setting repeats what depends on it and nothing else. Settings marked *operational* (how long, how often, how
closely watched) never repeat training that is done. The number of processes and threads per job is set in the profile
(`profiles/`), not here. 1 kimg is 1,000 training images.

Editors with a YAML language server complete and check keys: the first line of each file names `schema.json`.
"""

SECTIONS: dict[str, type[Settings]] = {
    "Top level": Config,
    "`data`": DataSettings,
    "`reference`": ReferenceSettings,
    "`reference.classifier`": ClassifierSettings,
    "`reference.inception`": InceptionSettings,
    "`reference.dinov2`, `reference.clip`": VisionModelSettings,
    "`reference.statistics`": FileSettings,
    "`reference.holdout`, from a source": HoldoutSource,
    "`teacher`": TeacherSettings,
    "`teacher.network`": NetworkSettings,
    "`teacher`, published": PublishedTeacher,
    "`students.<name>`": StudentSettings,
    **{f"`students.<name>`, `method: {method}`": settings for method, settings in METHODS.items()},
    "`published_students.<name>`": PublishedStudent,
    "`scoring`": ScoringSettings,
    "`scoring.teacher_samplers`": SamplerSettings,
    "`posthoc_ema`": PosthocSettings,
}


def docs() -> str:
    """Return the settings as a Markdown page with one table per section."""
    pages = [DOCS_HEADER]
    for title, model in SECTIONS.items():
        rows = _docs_rows(model)
        if model in METHODS.values():
            rows = [row for row in rows if row not in _docs_rows(StudentSettings)]
        table = markdown_table(["key", "type", "default", "meaning"], rows, padded=False)
        pages.append(f"## {title}\n\n{(model.__doc__ or '').strip()}\n\n" + "\n".join(table) + "\n")
    return "\n".join(pages)


def schema() -> str:
    """Return the settings as JSON Schema, with which editors complete and check keys, types and bounds."""
    dialect, described = {"$schema": "https://json-schema.org/draft/2020-12/schema"}, Config.model_json_schema()
    for method, settings in METHODS.items():
        if method != DEFAULT:  # settings that do not name their method are the default's alone
            described["$defs"][settings.__name__]["required"].append("method")
    return json.dumps(dialect | described, indent=2, ensure_ascii=False) + "\n"


def _docs_rows(model: type[Settings]) -> list[list[str]]:
    return [_docs_row(key, field) for key, field in model.model_fields.items()]


def _docs_row(key: str, field: FieldInfo) -> list[str]:
    default = "required" if field.default is PydanticUndefined else f"`{_yaml_value(field.default)}`"
    meaning = f"{field.description}{' *operational*' if is_operational(field) else ''}"
    return [f"`{key}`", _type_name(field), default, meaning]


def _yaml_value(value: Any) -> str:
    if isinstance(value, Settings):
        return "{}"
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _type_name(field: FieldInfo) -> str:
    annotation: Any = Annotated[field.annotation, field]
    return _schema_name(TypeAdapter(annotation).json_schema())


def _schema_name(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema or "oneOf" in schema:
        parts = [_schema_name(part) for part in schema.get("anyOf", schema.get("oneOf", []))]
        return " or ".join(dict.fromkeys(parts))
    if "$ref" in schema or "allOf" in schema:
        return "section"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "section")
    if kind == "array":
        parts = [_schema_name(part) for part in schema.get("prefixItems", [schema.get("items")])]
        return f"list of {len(parts)} × {parts[0]}" if "prefixItems" in schema else f"list of {parts[0]}"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[bound]:g}" for bound, sign in bounds.items() if bound in schema]
    names = {"string": "text", "boolean": "true or false", "object": "section"}
    return " ".join([names.get(kind, kind), ", ".join(limits)]).strip()


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "config")
    (folder / "README.md").write_text(docs())
    (folder / "schema.json").write_text(schema())
