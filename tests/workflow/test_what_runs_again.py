"""A changed setting reruns what it affects and nothing else (dry runs after a finished run)."""

import shutil

import pytest
from project import RESULTS

SAMPLES = {
    "teacher": {"teacher ema euler-2", "teacher ema heun-2"},
    "a": {f"a-{kimg} {ema} euler-2" for kimg in (1, 2) for ema in ("ema", "phema-0.100")},
    "b": {f"b-1 {ema} ancestral-1" for ema in ("ema", "phema-0.100")},
}
LEGS = {"a": {("distill", "a 1"), ("distill", "a 2")}, "b": {("distill", "b 1")}}
TEACHER = {("train_teacher", "teacher 1"), ("teacher_network", "teacher")}
ON_REAL = {(rule, "classifier") for rule in ("reference_statistics", "training_features", "score_real_images")}
DETECTOR = {("train_detector", ""), *ON_REAL}


def sampled(*models, seeds="0 63"):
    return {("generate", f"{job} {seeds}") for model in models for job in SAMPLES[model]}


def scored(*models):
    return {("score", f"classifier {job}") for model in models for job in SAMPLES[model]}


def sampled_and_scored(*models, seeds="0 63"):
    return sampled(*models, seeds=seeds) | scored(*models)


def test_second_call_has_nothing_to_do(project):
    assert project.planned() == set()
    ran = project.snakemake("all")
    assert ran.returncode == 0 and "Nothing to be done" in ran.stderr


def test_another_seed_block_reruns_only_generation_scoring_and_results(project):
    project.configure(lambda settings: settings["scoring"].update(seed_blocks=[0, 2]))
    real = {("score_real_images", "classifier")}
    assert project.planned() == sampled_and_scored("teacher", "a", "b", seeds="128 191") | real | RESULTS


def test_another_teacher_sampler_samples_only_the_teacher(project):
    project.configure(lambda settings: settings["scoring"]["teacher_samplers"].append({"sampler": "euler", "steps": 3}))
    made = {("generate", "teacher ema euler-3 0 63"), ("score", "classifier teacher ema euler-3")}
    assert project.planned() == made | RESULTS


def test_changed_churn_reruns_only_that_teacher_sampler(project):
    project.configure(lambda settings: settings["scoring"]["teacher_samplers"][1].update(S_churn=1.0))
    made = {("generate", "teacher ema heun-2-churn1 0 63"), ("score", "classifier teacher ema heun-2-churn1")}
    assert project.planned() == made | RESULTS


def test_longer_student_adds_only_its_legs(project):
    project.configure(lambda settings: settings["students"]["a"].update(duration_kimg=4))
    jobs = {f"a-{k} {ema} euler-2" for k in (3, 4) for ema in EMAS}
    new = {("generate", f"{job} 0 63") for job in jobs} | {("score", f"classifier {job}") for job in jobs}
    assert project.planned() == {("distill", "a 3"), ("distill", "a 4")} | new | RESULTS


EMAS = ("ema", "phema-0.100")


def test_longer_teacher_is_a_different_teacher(project):
    project.configure(lambda settings: settings["teacher"].update(duration_kimg=2))
    again = {("train_teacher", "teacher 2"), ("teacher_network", "teacher")} | LEGS["a"] | LEGS["b"]
    assert project.planned() == again | sampled_and_scored("teacher", "a", "b") | RESULTS


def test_learning_rate_of_a_student_retrains_that_student_only(project):
    project.configure(lambda settings: settings["students"]["a"].update(learning_rate=2e-4))
    assert project.planned() == LEGS["a"] | sampled_and_scored("a") | RESULTS


def test_a_method_setting_of_a_student_retrains_that_student_only(project):
    project.configure(lambda settings: settings["students"]["b"].update(weight="snr+1"))
    assert project.planned() == LEGS["b"] | sampled_and_scored("b") | RESULTS


def test_another_method_retrains_that_student_only(project):
    changes = {"method": "easy-consistency", "stage_kimg": 1, "sampler": "ddim"}
    project.configure(lambda settings: settings["students"]["b"].update(changes))
    jobs = {f"b-1 {ema} euler-1" for ema in EMAS}
    made = {("generate", f"{job} 0 63") for job in jobs} | {("score", f"classifier {job}") for job in jobs}
    assert project.planned() == LEGS["b"] | made | RESULTS


def test_another_sampler_of_a_student_trains_nothing(project):
    project.configure(lambda settings: settings["students"]["b"].update(sampler="renoise"))
    jobs = {f"b-1 {ema} renoise-1" for ema in EMAS}
    made = {("generate", f"{job} 0 63") for job in jobs} | {("score", f"classifier {job}") for job in jobs}
    assert project.planned() == made | RESULTS


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
    assert project.planned() == generated | scored("teacher", "a") | RESULTS


def test_other_metrics_are_read_off_the_kept_features(project):
    project.configure(lambda settings: settings["scoring"].update(metrics=["fd", "fd_inf", "kid"]))
    again = scored("teacher", "a", "b") | {("score_real_images", "classifier")}
    figures = {("precision_recall", ""), ("nearest_images", "")}
    assert project.planned() == again | (RESULTS - figures)


def test_metrics_of_features_that_are_gone_sample_again_and_train_nothing(project):
    shutil.rmtree(project.results / "features")
    assert project.planned() == set()
    project.configure(lambda settings: settings["scoring"].update(metrics=["fd", "pr", "memorised"]))
    again = sampled_and_scored("teacher", "a", "b") | {("score_real_images", "classifier")}
    assert project.planned() == again | RESULTS
    ran = project.snakemake("results/tiny/scores/classifier/b-1/ema/ancestral-1.json")
    assert ran.returncode == 0
    line = next(line for line in ran.stderr.splitlines() if line.startswith("sampled again for their scores"))
    assert "b-1 ema ancestral-1" in line and "scoring.keep_features" in line


@pytest.mark.slow
def test_images_of_a_new_network_are_not_sampled_again(project):
    shutil.rmtree(project.results / "features")
    project.configure(lambda settings: settings["students"]["b"].update(seed=8))
    ran = project.snakemake("results/tiny/scores/classifier/b-1/ema/ancestral-1.json")
    assert ran.returncode == 0 and "sampled again" not in ran.stderr


def test_a_metric_of_other_outputs_makes_the_features_again(project):
    project.configure(lambda settings: settings["scoring"].update(metrics=["fd", "pr", "memorised", "is"]))
    again = sampled_and_scored("teacher", "a", "b") | {("score_real_images", "classifier")}
    assert project.planned() == again | RESULTS


def test_a_replicate_more_repeats_nothing(project):
    project.configure(lambda settings: settings["students"]["b"].update(replicates=2))
    jobs = {f"b-r2-1 {ema} ancestral-1" for ema in EMAS}
    new = {("distill", "b-r2 1")} | {("generate", f"{job} 0 63") for job in jobs}
    assert project.planned() == new | {("score", f"classifier {job}") for job in jobs} | RESULTS


def test_a_replicate_of_the_teacher_leaves_its_students_alone(project):
    project.configure(lambda settings: settings["teacher"].update(replicates=2))
    jobs = {f"teacher-r2 ema {sampler}" for sampler in ("euler-2", "heun-2")}
    new = {("train_teacher", "teacher-r2 1"), ("teacher_network", "teacher-r2")}
    new |= {("generate", f"{job} 0 63") for job in jobs} | {("score", f"classifier {job}") for job in jobs}
    assert project.planned() == new | RESULTS


def test_held_out_images_from_elsewhere_only_add_their_scores(project):
    shutil.copy(project.results / "data/train.zip", project.folder / "more.zip")
    project.configure(lambda settings: settings["reference"].update(holdout={"source": "more.zip"}))
    assert project.planned() == {("pack_holdout", ""), ("score_real_images", "classifier")} | RESULTS


def test_another_number_of_compared_images_samples_nothing(project):
    project.configure(lambda settings: settings["reference"].update(images=100))
    again = {("training_features", "classifier"), ("score_real_images", "classifier")}
    assert project.planned() == again | scored("teacher", "a", "b") | RESULTS


def test_figure_setting_redraws_only_the_figure(project):
    project.configure(lambda settings: settings["scoring"].update(grid_images=3))
    assert project.planned() == {("image_grid", "")}


@pytest.mark.parametrize("key", ["tick_kimg", "state_kimg", "validate_kimg", "validate_images", "max_nonfinite_steps"])
def test_settings_that_only_monitor_training_retrain_nothing(project, key):
    project.configure(lambda settings: [settings["students"][name].update({key: 3}) for name in "ab"])
    assert project.planned() == set()


def test_another_student_leaves_the_others_alone(project):
    project.configure(lambda settings: settings["students"].update(c=settings["students"]["b"] | {"seed": 9}))
    made = {("generate", f"c-1 {ema} ancestral-1 0 63") for ema in EMAS}
    made |= {("score", f"classifier c-1 {ema} ancestral-1") for ema in EMAS}
    assert project.planned() == {("distill", "c 1"), ("score_vs_kimg", "c"), ("export", "c")} | made | RESULTS


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
    shutil.rmtree(project.results / "features")
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
    text = project.config_file.read_text().replace("name: tiny", "name: other").replace("\n  a: #", "\n  c: #")
    other.write_text(text)
    jobs = project.planned("--configfile", "config/other.yaml")
    assert ("distill", "c 1") in jobs and ("distill", "a 1") not in jobs
