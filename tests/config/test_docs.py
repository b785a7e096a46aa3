"""config/README.md and config/schema.json match the models, and the schema refuses what the models refuse."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from mscd.config.docs import docs, schema
from mscd.config.loading import load_config
from mscd.config.methods import DEFAULT, METHODS
from mscd.config.training import StudentSettings

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
        ("students.s8.method", "distillation"),
        ("students.s8.method", "moment-matching"),  # with the keys of consistency
        ("students.s8.sampler", "ancestral"),
        ("students.s8.nodes", "cosine"),
        ("students.s8.nodes", [80, 0]),
        ("students.s8.betas", [0.9]),
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


COMMON = {"duration_kimg": 1, "snapshot_kimg": 1, "batch_size": 1, "learning_rate": 1, "ema_halflife_kimg": 1}


@pytest.mark.parametrize("method", [None, *METHODS])
def test_schema_accepts_a_student_exactly_if_the_keys_are_those_of_its_method(method):
    settings = yaml.safe_load((CONFIG / "config.yaml").read_text())
    needed = {key: 1 for key, field in METHODS[method or DEFAULT].model_fields.items() if field.is_required()}
    student = {**needed, **COMMON, **({"method": method} if method else {})}
    settings["students"] = {"s": student}
    jsonschema.validate(settings, SCHEMA)
    assert load_config(settings).students["s"].model_fields_set == set(student)
    own = {key for settings in METHODS.values() for key in settings.model_fields}
    for key in own - set(METHODS[method or DEFAULT].model_fields):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**settings, "students": {"s": {**student, key: 1}}}, SCHEMA)


def test_section_of_a_method_lists_what_it_adds_or_changes_and_nothing_else():
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", docs(), re.MULTILINE | re.DOTALL))
    common = re.findall(r"^\| `\w+`.*$", sections["`students.<name>`"], re.MULTILINE)
    assert len(common) == len(StudentSettings.model_fields)
    for method, settings in METHODS.items():
        rows = re.findall(r"^\| `\w+`.*$", sections[f"`students.<name>`, `method: {method}`"], re.MULTILINE)
        listed = {row.split("`")[1] for row in rows}
        assert set(settings.model_fields) - set(StudentSettings.model_fields) <= listed
        assert "method" in listed and "batch_size" not in listed and not set(rows) & set(common)
    rows = sections["`students.<name>`, `method: consistency`"]
    assert "| `nodes` | `karras`, `karras-drop-last` or list of number > 0 | `karras` |" in rows
    assert "| `sampler` | `ddim` | `ddim` |" in rows and "| `method` | `consistency` | `consistency` |" in rows


def test_schema_and_readme_describe_the_same_keys_in_the_same_words():
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", (CONFIG / "README.md").read_text(), re.MULTILINE)
    written = {(key, meaning.removesuffix(" *operational*").replace(r"\|", "|")) for key, meaning in rows}
    models = [SCHEMA, *SCHEMA["$defs"].values(), StudentSettings.model_json_schema()]
    described = {(key, field["description"]) for model in models for key, field in model["properties"].items()}
    assert described == written and len(written) > 80
