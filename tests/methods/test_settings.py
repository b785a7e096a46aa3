"""Settings of methods: what is refused, in one line, and what their defaults are."""

import pytest
from run_settings import SETTINGS, STUDENT, changed

from mscd.config.loading import load_config
from mscd.config.methods import METHODS
from mscd.config.training import Evaluations
from mscd.errors import UserError

OTHER = {name: value for name, value in STUDENT.items() if name != "anneal_kimg"}
MATCHING = {**OTHER, "method": "distribution-matching", "segments": 1}
CONTINUOUS = {**OTHER, "method": "continuous-consistency", "segments": 2}
REFUSED = [
    ({**STUDENT, "segments": 2, "sampler": "renoise"}, "sampler: must be one of 'ddim' (got 'renoise')"),
    (
        {**OTHER, "method": "moment-matching", "sampler": "ddim"},
        "sampler: must be one of 'ancestral' or 'renoise' (got 'ddim')",
    ),
    ({**MATCHING, "sampler": "ancestral"}, "sampler: must be one of 'renoise' or 'ddim' (got 'ancestral')"),
    (
        {**CONTINUOUS, "segmented": True},
        "a segmented student is sampled with ddim, not with renoise",
    ),
    ({**CONTINUOUS, "compile": "default"}, "compile: this method needs forward-mode derivatives, which compiled"),
    ({**MATCHING, "gan_widths": [16]}, "gan_widths: no level of the network is 16 wide (the widths are [8, 4])"),
    ({**MATCHING, "gan_widths": [8, 8]}, "gan_widths lists a width twice"),
    ({**MATCHING, "divergence": "js", "gan_weight": 0}, "divergence js needs the head: loss dmd2 and a gan_weight"),
    ({**MATCHING, "divergence": "kl", "loss": "sid"}, "divergence kl needs the head: loss dmd2 and a gan_weight"),
    (
        {**STUDENT, "segments": 3, "nodes": [80, 0.5, 0.49]},
        "nodes: with teacher_steps_start 64, the teacher's grid has no step between 0.5 and 0.49",
    ),
    ({**MATCHING, "gan_widths": [1]}, "gan_widths: a head needs feature maps of 2 pixels or more"),
    ({**MATCHING, "divergence_decay": 0.5}, "divergence_decay: with divergence rkl no density ratios are used"),
    ({**MATCHING, "divergence": "js", "divergence_decay": 1}, "divergence_decay: must be less than 1 (got 1)"),
    ({**MATCHING, "student_every": 1}, "student_every: must be at least 2 (got 1)"),
    ({**MATCHING, "precision": "fp16"}, "precision: this method's gradients are too small for fp16; use bf16 or fp32"),
    ({**CONTINUOUS, "precision": "fp16"}, "precision: this method's gradients are too small for fp16; use bf16"),
    (
        {**MATCHING, "compile": "max-autotune"},
        "compile: max-autotune uses CUDA graphs, which this method's turns",
    ),
    (
        {**OTHER, "method": "moment-matching", "compile": "reduce-overhead"},
        "compile: reduce-overhead uses CUDA graphs, which this method's turns break; use default",
    ),
    ({**STUDENT, "segments": 2, "nodes": [float("inf"), 1]}, "nodes.0: must be a finite number (got inf)"),
    ({**OTHER, "method": "easy-consistency"}, "stage_kimg: is missing"),
    ({**OTHER, "method": "easy-consistency", "stage_kimg": 1, "q": 1}, "q: must be greater than 1 (got 1)"),
    ({**STUDENT, "method": "moment-matching"}, "anneal_kimg: unknown key, did you mean lr_anneal_kimg?"),
    ({**STUDENT, "stage_kimg": 1}, "stage_kimg: unknown key"),
]


@pytest.mark.parametrize(("student", "message"), REFUSED)
def test_what_a_method_cannot_do_is_refused_in_one_line(student, message):
    with pytest.raises(UserError) as refused:
        load_config(changed("students.s8", student))
    text = str(refused.value)
    assert text.startswith("config: students.s8") and message in text and "\n" not in text


@pytest.mark.parametrize("nodes", [[80, 1.1], [80, 0.002], [80, 0.0021], [2.5, 0.1]])
def test_nodes_that_the_teachers_grid_reaches_are_accepted(nodes):
    student = load_config(changed("students.s8", {**STUDENT, "segments": 2, "nodes": nodes})).students["s8"]
    assert student.nodes == nodes


def test_sid_needs_no_level_for_a_head():
    student = {**MATCHING, "loss": "sid", "gan_widths": [16], "nodes": [2.5]}
    assert load_config(changed("students.s8", student)).students["s8"].widths() == {"dropout_resolutions": []}


def test_a_student_without_a_method_is_distilled_by_consistency_with_the_identity_of_before():
    student = load_config(SETTINGS).students["s8"]
    assert type(student) is METHODS["consistency"]
    assert {"method", "nodes", "hop", "optimizer", "betas"}.isdisjoint(student.identity())


def test_the_identity_of_other_methods_names_them():
    for name in set(METHODS) - {"consistency"}:
        own = {"stage_kimg": 1} if name == "easy-consistency" else {}
        student = load_config(changed("students.s8", {**OTHER, "method": name, **own})).students["s8"]
        assert student.identity()["method"] == name and student.identity()["nodes"] == "karras-drop-last"
        assert "sampler" not in student.identity()


@pytest.mark.parametrize(("hop", "forward"), [("heun", 3), ("euler", 2), ("addim", 2), ("data", 1)])
def test_evaluations_of_consistency_depend_on_the_hop(hop, forward):
    student = load_config(changed("students.s8", {**STUDENT, "hop": hop})).students["s8"]
    assert student.evaluations() == Evaluations(forward, 1)
