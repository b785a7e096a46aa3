"""Loading settings from a file: shipped files are valid, and an error names the file that cannot be read."""

from pathlib import Path

import pytest
import yaml
from run_settings import changed

from mscd.config.loading import check_source, load_config
from mscd.config.run import Config
from mscd.errors import UserError

REPOSITORY = Path(__file__).parents[2]


def test_error_names_the_file_and_counts_further_problems(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**changed("students.s8.segments", 0), "name": 3}))
    with pytest.raises(UserError, match=rf"^{path}: name: must be a valid string \(got 3\) \(and 1 more\)$"):
        load_config(path)


@pytest.mark.parametrize("text", ["name: a\nname: b", "students:\n  s8: {}\n  s8: {}"])
def test_key_given_twice_is_refused(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="mine.yaml: invalid YAML: (name|s8) is given twice"):
        load_config(path)


@pytest.mark.parametrize("text", ["a: [", "- 1", "\tx: 1", ""])
def test_file_without_settings_is_refused(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="mine.yaml: (invalid YAML|contains no settings)"):
        load_config(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="none.yaml: No such file"):
        load_config(tmp_path / "none.yaml")


def test_missing_data_is_refused(tmp_path):
    with pytest.raises(UserError, match="mine: data.source: .*/none does not exist; put it there"):
        check_source(str(tmp_path / "none"), "data.source", name="mine")
    (tmp_path / "my data").mkdir()
    spelt = f"file://{tmp_path}/my%20data"
    for source in ("digits", str(tmp_path), f"file://{tmp_path}", spelt, "HTTPS://example.org/none.zip"):
        check_source(source, "data.source", name="mine")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configuration_is_valid(path):
    assert isinstance(load_config(path), Config)
