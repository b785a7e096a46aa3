"""config/methods.yaml compares what it says: all methods, at equal cost, on the demo's teacher."""

import yaml
from project import REPOSITORY

from mscd.config.loading import load_config
from mscd.config.methods import METHODS
from mscd.planning.plan import plan

BUDGET = 300_000 * 6  # network evaluations, of which one with gradients counts as three


def settings_in(name):
    return yaml.safe_load((REPOSITORY / "config" / name).read_text())


def test_data_classifier_and_teacher_are_the_demo_s():
    demo, methods = settings_in("config.yaml"), settings_in("methods.yaml")
    assert {key: methods[key] for key in ("data", "reference", "teacher")} == {
        key: demo[key] for key in ("data", "reference", "teacher")
    }


def test_students_of_every_method_are_trained_twice_at_the_same_cost():
    config = load_config(settings_in("methods.yaml"))
    assert {student.method for student in config.students.values()} == {*METHODS}
    assert {student.replicates for student in config.students.values()} == {2}
    assert {student.segments for student in config.students.values()} == {1, 2, 4, 8}
    for student in config.students.values():
        each, images = student.evaluations(), student.images_at(student.duration_kimg)
        cost = images * (each.forward + 3 * each.backward)
        assert BUDGET <= cost < BUDGET * 1.001  # whole steps
        assert student.lr_anneal_kimg == student.duration_kimg  # the rate reaches 0 at the end


def test_the_plan_gives_every_student_the_same_work():
    stages = plan(load_config(settings_in("methods.yaml"))).stages
    flops = [stage.flops for stage in stages if stage.name.startswith("train ") and stage.name != "train teacher"]
    assert len(flops) == 26 and max(flops) < min(flops) * 1.001
