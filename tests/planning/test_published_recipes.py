"""The published recipes that the shipped settings have as comments: uncommented, they are accepted and planned."""

import re

import pytest
import yaml
from project import REPOSITORY

from mscd.config.loading import load_config
from mscd.planning.plan import plan

STUDENTS = {
    "imagenet64": ["s8", "s4", "s2", "s1", "mm8", "d1", "e2", "sCD", "ms4"],
    "cifar10": ["s8", "s4", "s2", "d1", "e2", "sCD"],
}


def uncommented(name):
    """The settings with all students that are comments."""
    text = (REPOSITORY / f"config/{name}.yaml").read_text()
    before, rest = text.split("students:\n", 1)
    students, after = re.split(r"(?m)^(?=# HERE, for|scoring:)", rest, maxsplit=1)
    students = re.sub(r"(?m)^  # (?=  |\w+:)", "  ", students)
    return load_config(yaml.safe_load(f"{before}students:\n{students}{after}"))


@pytest.mark.parametrize("name", STUDENTS)
def test_every_recipe_is_accepted_and_planned(name):
    config = uncommented(name)
    assert list(config.students) == STUDENTS[name]
    planned = plan(config, images=50_000)
    stages = {stage.name: stage for stage in planned.stages}
    for student, settings in config.students.items():
        stated = settings.evaluations()
        assert stages[f"train {student}"].nfe == stated.forward + stated.backward
        if student != "s8" or name == "cifar10":
            assert settings.nodes != "karras"  # where the last evaluation does nothing
    (held,) = [memory.networks for memory in planned.memory if memory.model == "d1"]
    assert list(held) == ["teacher", "net", "critic", "head"]
    assert held["critic"] == 5 * held["teacher"]  # weights, gradients twice, and two moments


def test_moment_matching_takes_the_published_number_of_steps():
    mm8 = uncommented("imagenet64").students["mm8"]
    assert mm8.lr_rampup_kimg * 1000 / mm8.batch_size == 1000
    assert mm8.optimizer_options().betas == (0, 0.99) and mm8.clip_norm == 1 and mm8.learning_rate == 2e-6
