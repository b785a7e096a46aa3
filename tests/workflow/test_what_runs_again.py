"""A changed setting reruns what it affects and nothing else (dry runs after a finished run)."""

import pytest
from project import RESULTS

SAMPLES = {
    "teacher": {"teacher ema euler-2", "teacher ema heun-2"},
    "a": {f"a-{kimg} {ema} euler-2" for kimg in (1, 2) for ema in ("ema", "phema-0.100")},
    "b": {f"b-1 {ema} euler-1" for ema in ("ema", "phema-0.100")},
}
LEGS = {"a": {("distill", "a 1"), ("distill", "a 2")}, "b": {("distill", "b 1")}}
TEACHER = {("train_teacher", "1"), ("teacher_network", "")}
DETECTOR = {("train_detector", ""), ("reference_statistics", "")}


def sampled_and_scored(*models, seeds="0 63"):
    return {(rule, f"{job} {seeds}") for rule in ("generate", "score") for model in models for job in SAMPLES[model]}


def test_second_call_has_nothing_to_do(project):
    assert project.planned() == set()
    ran = project.snakemake("all")
    assert ran.returncode == 0 and "Nothing to be done" in ran.stderr


def test_another_seed_block_reruns_only_generation_scoring_and_results(project):
    project.configure(lambda settings: settings["scoring"].update(seed_blocks=[0, 2]))
    assert project.planned() == sampled_and_scored("teacher", "a", "b", seeds="128 191") | RESULTS


def test_another_teacher_sampler_samples_only_the_teacher(project):
    project.configure(lambda settings: settings["scoring"]["teacher_samplers"].append({"sampler": "euler", "steps": 3}))
    assert project.planned() == {(rule, "teacher ema euler-3 0 63") for rule in ("generate", "score")} | RESULTS


def test_changed_churn_reruns_only_that_teacher_sampler(project):
    project.configure(lambda settings: settings["scoring"]["teacher_samplers"][1].update(S_churn=1.0))
    assert project.planned() == {(rule, "teacher ema heun-2-churn1 0 63") for rule in ("generate", "score")} | RESULTS


def test_longer_student_adds_only_its_legs(project):
    project.configure(lambda settings: settings["students"]["a"].update(duration_kimg=4))
    new = {(rule, f"a-{k} {ema} euler-2 0 63") for rule in ("generate", "score") for k in (3, 4) for ema in EMAS}
    assert project.planned() == {("distill", "a 3"), ("distill", "a 4")} | new | RESULTS


EMAS = ("ema", "phema-0.100")


def test_longer_teacher_is_a_different_teacher(project):
    project.configure(lambda settings: settings["teacher"].update(duration_kimg=2))
    again = {("train_teacher", "2"), ("teacher_network", "")} | LEGS["a"] | LEGS["b"]
    assert project.planned() == again | sampled_and_scored("teacher", "a", "b") | RESULTS


def test_learning_rate_of_a_student_retrains_that_student_only(project):
    project.configure(lambda settings: settings["students"]["a"].update(learning_rate=2e-4))
    assert project.planned() == LEGS["a"] | sampled_and_scored("a") | RESULTS


def test_learning_rate_of_the_teacher_retrains_all_but_the_detector(project):
    project.configure(lambda settings: settings["teacher"].update(learning_rate=2e-3))
    again = TEACHER | LEGS["a"] | LEGS["b"]
    assert project.planned() == again | sampled_and_scored("teacher", "a", "b") | RESULTS


def test_detector_setting_reruns_scoring_but_trains_no_network(project):
    project.configure(lambda settings: settings["reference"]["classifier"].update(seed=3))
    assert project.planned() == DETECTOR | sampled_and_scored("teacher", "a", "b") | RESULTS


def test_splitting_seed_blocks_into_jobs_reruns_only_sampling_and_scoring(project):
    project.configure(lambda settings: settings["scoring"].update(evaluations_per_job=100))
    of_three, of_two = {"teacher ema heun-2"}, {"teacher ema euler-2"} | SAMPLES["a"]  # evaluations per image
    generated = {("generate", f"{job} {part}") for job in of_three for part in ("0 31", "32 63")}
    generated |= {("generate", f"{job} {part}") for job in of_two for part in ("0 47", "48 63")}
    assert project.planned() == generated | {("score", f"{job} 0 63") for job in of_three | of_two} | RESULTS


def test_figure_setting_redraws_only_the_figure(project):
    project.configure(lambda settings: settings["scoring"].update(grid_images=3))
    assert project.planned() == {("image_grid", "")}


@pytest.mark.parametrize("key", ["tick_kimg", "state_kimg", "validate_kimg", "validate_images", "max_nonfinite_steps"])
def test_settings_that_only_monitor_training_retrain_nothing(project, key):
    project.configure(lambda settings: [settings["students"][name].update({key: 3}) for name in "ab"])
    assert project.planned() == set()


def test_another_student_leaves_the_others_alone(project):
    project.configure(lambda settings: settings["students"].update(c=settings["students"]["b"] | {"seed": 9}))
    scored = {(rule, f"c-1 {ema} euler-1 0 63") for rule in ("generate", "score") for ema in EMAS}
    assert project.planned() == {("distill", "c 1"), ("score_vs_kimg", "c"), ("export", "c")} | scored | RESULTS


def test_comments_and_file_dates_retrain_nothing(project):
    for path in [
        *project.folder.glob("workflow/*/*.py"),
        *project.folder.glob("workflow/*/*.smk"),
        project.config_file,
    ]:
        path.write_text(path.read_text() + "\n# a comment\n")
    for path in project.results.rglob("*"):
        path.touch()
    assert project.planned() == set()


def test_deleted_samples_and_rotated_states_trigger_nothing(project):
    assert not list(project.results.rglob("*.npz.*")) and not list(project.results.glob("samples/**/*.npz"))
    states = list(project.results.rglob("state.safetensors"))
    assert states
    for path in states:
        path.unlink()
    assert project.planned() == set()


@pytest.mark.slow
def test_scores_are_renewed_after_a_call_that_only_retrained(project):
    project.configure(lambda settings: settings["students"]["b"].update(seed=8))
    ran = project.snakemake("results/tiny/students/b/1/ema.safetensors")
    assert ran.returncode == 0, ran.stderr
    assert project.planned() == sampled_and_scored("b") | RESULTS


def test_another_config_file_replaces_the_default_one(project):
    other = project.folder / "config/other.yaml"
    text = project.config_file.read_text().replace("name: tiny", "name: other").replace("\n  a: &", "\n  c: &")
    other.write_text(text)
    jobs = project.planned("--configfile", "config/other.yaml")
    assert ("distill", "c 1") in jobs and ("distill", "a 1") not in jobs
