"""How a student is sampled: what its file states for its settings, and the noise levels of a file."""

import pytest
import torch
from run_settings import SETTINGS, STUDENT, changed

from mscd.config.loading import load_config
from mscd.diffusion.sigmas import STUDENT_GRID, karras_sigmas, student_sigmas
from mscd.errors import UserError
from mscd.sampling.student import check_stated_sampler, student_facts, student_grid, student_sampling, student_solver

NODES = [80.0, 5.0, 0.5, 0.02]
PUBLISHED = {"source": "s.pkl", "segments": 4, "snapshot_kimg": 1}
MATCHING = {key: value for key, value in STUDENT.items() if key != "anneal_kimg"} | {"method": "moment-matching"}


class Range:
    """A network's range of noise levels."""

    sigma_min, sigma_max = 0.0, float("inf")


def facts_of(**changes):
    return student_facts(load_config(changed("students.s4", {**STUDENT, "segments": 4, **changes})).students["s4"])


def test_file_of_a_student_as_before_states_its_karras_grid_alone():
    assert facts_of() == facts_of(nodes="karras", method="consistency") == {"segments": 4, **STUDENT_GRID}
    published = load_config(SETTINGS | {"published_students": {"p": PUBLISHED}}).published_students["p"]
    assert student_facts(published) == facts_of()
    assert (student_solver(facts_of()), published.sampler_label) == ("euler", "euler-4")


def test_file_states_nodes_sampler_and_method_that_are_others():
    assert facts_of(nodes=NODES) == {"segments": 4, **STUDENT_GRID, "nodes": NODES}
    nodes = karras_sigmas(5)[:-1].tolist()
    assert facts_of(nodes="karras-drop-last")["nodes"] == nodes
    student = load_config(changed("students.s4", {**MATCHING, "segments": 4})).students["s4"]
    facts = student_facts(student)
    assert facts == facts_of(nodes=nodes) | {"sampler": "ancestral", "method": "moment-matching"}
    assert (student_solver(facts), student.sampler_label) == ("ancestral", "ancestral-4")
    settings = {**PUBLISHED, "nodes": NODES, "sampler": "renoise"}
    published = load_config(SETTINGS | {"published_students": {"p": settings}}).published_students["p"]
    assert student_facts(published) == facts_of(nodes=NODES) | {"sampler": "renoise"}
    assert published.sampler_label == "renoise-4"


@pytest.mark.parametrize("nodes", ["karras", "karras-drop-last", NODES])
def test_grid_of_a_file_is_the_nodes_of_its_settings_and_zero(nodes):
    expected = {"karras": student_sigmas(4), "karras-drop-last": torch.cat([karras_sigmas(5)[:-1], torch.zeros(1)])}
    grid = student_grid(Range(), facts_of(nodes=nodes))
    assert grid.dtype == torch.float64
    assert torch.equal(grid, expected.get(str(nodes), torch.tensor([*NODES, 0.0], dtype=torch.float64)))


def test_range_of_a_network_limits_its_karras_grid_but_not_nodes_that_are_stated():
    narrow = Range()
    narrow.sigma_min, narrow.sigma_max = 0.1, 10.0
    assert student_grid(narrow, facts_of())[[0, 3]].tolist() == pytest.approx([10, 0.1])
    assert student_grid(narrow, facts_of(nodes=NODES)).tolist() == [*NODES, 0]


def test_a_setting_that_differs_from_the_files_sampler_is_refused():
    facts = student_facts(load_config(changed("students.s4", {**MATCHING, "segments": 4})).students["s4"])
    check_stated_sampler("published_students.p", facts, "ancestral")
    with pytest.raises(UserError) as refused:
        check_stated_sampler("published_students.p", facts, "euler")
    line = "published_students.p.sampler: the file states ancestral, not ddim: set it to that"
    assert str(refused.value) == line


def test_a_student_is_sampled_at_its_own_levels_by_its_own_solver():
    student = load_config(changed("students.s4", {**MATCHING, "segments": 4, "nodes": NODES})).students["s4"]
    sampling = student_sampling(Range(), student_facts(student))
    assert (sampling.sampler, sampling.steps, sampling.grid.tolist()) == ("ancestral", 4, [*NODES, 0])
