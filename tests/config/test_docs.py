"""config/README.md and config/schema.json match the models, and the schema refuses what the models refuse."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from mscd.config.docs import docs, schema

CONFIG = Path(__file__).parents[2] / "config"
SCHEMA = json.loads(schema())


@pytest.mark.parametrize(("name", "generate"), [("README.md", docs), ("schema.json", schema)])
def test_generated_file_is_current(name, generate):
    assert (CONFIG / name).read_text() == generate(), "run python -m mscd.config.docs"


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_settings_name_the_schema_and_satisfy_it(path):
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json\n") and (CONFIG / "schema.json").is_file()
    jsonschema.validate(yaml.safe_load(text), SCHEMA, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("students.s8.learing_rate", 5e-4),
        ("students.s8.segments", 0),
        ("teacher.network.model_type", "SongUnet"),
        ("scoring.teacher_samplers", [{"sampler": "heun"}]),
        ("data.resolution", "wide"),
        ("unknown_section", {}),
    ],
)
def test_schema_refuses_what_the_models_refuse(key, value):
    settings = yaml.safe_load((CONFIG / "config.yaml").read_text())
    *sections, name = key.split(".")
    inner = settings
    for section in sections:
        inner = inner[section]
    inner[name] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(settings, SCHEMA)


def test_schema_and_readme_describe_the_same_keys_in_the_same_words():
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", (CONFIG / "README.md").read_text(), re.MULTILINE)
    written = {(key, meaning.removesuffix(" *operational*").replace(r"\|", "|")) for key, meaning in rows}
    models = [SCHEMA, *SCHEMA["$defs"].values()]
    described = {(key, field["description"]) for model in models for key, field in model["properties"].items()}
    assert described == written and len(written) > 80
