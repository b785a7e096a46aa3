"""Settings: what is refused and with which message, what a run's identity contains, and that their page is current."""

import typing
from pathlib import Path

import pytest
from run_settings import SETTINGS, STUDENT, changed

from mscd.config.base import digest
from mscd.config.data import DataSettings
from mscd.config.loading import load_config
from mscd.config.training import LegRange, check_share
from mscd.data.transforms import TRANSFORMS
from mscd.diffusion.ema import reach
from mscd.errors import UserError

REPOSITORY = Path(__file__).parents[2]
PUBLISHED_STUDENT = {"source": "student.pkl", "segments": 2, "snapshot_kimg": 1}
PUBLISHED = {"source": "https://example.org/teacher.pkl", "network": SETTINGS["teacher"]["network"]}


@pytest.mark.parametrize(
    ("where", "value", "line"),
    [
        ("nme", "x", "config: nme: unknown key, did you mean name?"),
        ("students.s8.segmets", 8, "config: students.s8.segmets: unknown key, did you mean segments?"),
        ("teacher.network.segments", 8, "config: teacher.network.segments: unknown key (known keys: model_type, "),
        (
            "scoring.teacher_samplers.0.step",
            8,
            "config: scoring.teacher_samplers.0.step: unknown key, did you mean steps",
        ),
        ("students.s8.segments", 0, "config: students.s8.segments: must be at least 1 (got 0)"),
        ("students.s8.learning_rate", "fast", "config: students.s8.learning_rate: must be a valid number"),
        ("students.s8.batch_size", 1.5, "config: students.s8.batch_size: must be a valid integer"),
        ("students.s8.weight", "edn", "config: students.s8.weight: must be one of 'sqrt_karras', 'edm'"),
        ("students.s8.phema_stds", [0.3], "config: students.s8.phema_stds.0: must be less than or equal to 0.28"),
        ("students", {}, "config: students: must not be empty"),
        ("students", None, "config: students: must be a valid dictionary (got None)"),
        ("students.a/b", STUDENT, "config: students.a/b: must consist of letters, digits, '.', '_' and '-'"),
        ("students.teacher", STUDENT, "config: students: a student cannot be called teacher"),
        ("name", "../up", "config: name: must consist of letters, digits"),
        ("teacher.learning_rate", float("nan"), "config: teacher.learning_rate: must be a finite number (got nan)"),
        ("scoring.seed_blocks", [], "config: scoring.seed_blocks: must not be empty"),
        (
            "students.s8.nodes",
            "cosine",
            "config: students.s8.nodes: must be one of 'karras' or 'karras-drop-last' (got 'c",
        ),
        ("students.s8.nodes", [80, -1], "config: students.s8.nodes.1: must be greater than 0 (got -1)"),
        ("students.s8.nodes", [], "config: students.s8.nodes: must not be empty"),
        ("students.s8.nodes", 3, "config: students.s8.nodes: must be one of 'karras' or 'karras-drop-last' (got 3)"),
        ("students.s8.method", "magic", "config: students.s8.method: must be one of 'consistency', "),
        ("students.s8.method", ["magic"], "config: students.s8.method: must be one of 'consistency', "),
        ("students.s8.sampler", "ancestral", "config: students.s8.sampler: must be one of 'ddim' (got 'ancestral')"),
        ("students.s8.betas", [0.9, 1], "config: students.s8.betas.1: must be less than 1 (got 1)"),
    ],
)
def test_wrong_value_is_reported_in_one_line(where, value, line):
    with pytest.raises(UserError) as error:
        load_config(changed(where, value))
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("where", "value", "line"),
    [
        ("students.s8.snapshot_kimg", 3, "students.s8: snapshot_kimg 3 does not divide duration_kimg 4"),
        ("students.s8.teacher_steps_start", 7, "students.s8: teacher_steps_start 7 is less than segments 8"),
        ("students.s8.teacher_steps_end", 63, "students.s8: teacher_steps_end 63 is less than teacher_steps_start 64"),
        ("students.s8.phema_stds", [0.1, 0.1], "students.s8: phema_stds lists a value twice"),
        ("students.s8.phema_stds", [0.1], "students.s4.phema_stds: must equal those of s8, as all students share them"),
        ("students.s8.dropout_resolutions", [16], "students.s8.dropout_resolutions: no level of the network is 16"),
        ("teacher.network.attn_resolutions", [16], "teacher.network.attn_resolutions: no level of the network is 16"),
        (
            "teacher.network.channel_mult",
            [1] * 5,
            "teacher.network.channel_mult: 5 levels need a resolution divisible by",
        ),
        ("data.transform", "center-crop", "data: transform center-crop needs a resolution"),
        ("scoring.seed_blocks", [1, 1], "scoring: seed_blocks lists a block twice"),
        ("scoring.teacher_samplers", [{"sampler": "heun", "steps": 8}] * 2, "scoring: teacher_samplers lists heun-8 "),
        ("scoring.teacher_samplers.0.S_churn", 1, "scoring.teacher_samplers.0: S_churn is an option of the heun"),
        ("students.s8.sigma_max_anchor", 0.6, None),
        (
            "students.s4.nodes",
            [80, 1.1],
            "students.s4: nodes lists 2 noise levels, but segments is 4: one per segment is",
        ),
        (
            "students.s4.nodes",
            [80, 10, 10, 1],
            "students.s4: nodes must fall from the first to the last, but 10 follows 10",
        ),
        ("students.s4.nodes", [1, 2, 3, 4], "students.s4: nodes must fall from the first to the last, but 2 follows 1"),
        (
            "students.s4.nodes",
            [80, 10, 1, 0.001],
            "students.s4: nodes: 0.001 is below 0.002, where images are finished",
        ),
        (
            "published_students",
            {"p": {**PUBLISHED_STUDENT, "nodes": [1]}},
            "published_students.p: nodes lists 1 noise le",
        ),
        ("students.s8.weight_decay", 0.1, "students.s8: weight_decay is an option of adamw, not of adam"),
        (
            "students.s8.lr_rampup_kimg",
            3,
            "students.s8: lr_anneal_kimg 2 must exceed lr_rampup_kimg 3 by a step or more",
        ),
        ("students.s8.lr_rampup_kimg", 1.99, "students.s8: lr_anneal_kimg 2 must exceed lr_rampup_kimg 1.99 by a step"),
        (
            "students.s8.lr_rampup_kimg",
            0,
            "students.s8: duration_kimg 4 exceeds lr_anneal_kimg 2, from which on the learning rate is 0: raise lr_ann",
        ),
    ],
)
def test_impossible_combination_is_reported_in_one_line(where, value, line):
    if line is None:
        line, settings = "students.s8: sigma_max_anchor and node_anchor", changed(where, value)
        settings["students"]["s8"]["node_anchor"] = 0.6
    else:
        settings = changed(where, value)
    if where.endswith("lr_rampup_kimg"):
        settings["students"]["s8"]["lr_anneal_kimg"] = 2
    with pytest.raises(UserError) as error:
        load_config(settings)
    assert str(error.value).startswith(f"config: {line}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("where", "value", "line"),
    [
        ("teacher.seed", 1, "teacher.seed: unknown key (known keys: source, sha256, license, network)"),
        ("teacher.shas256", "0" * 64, "teacher.shas256: unknown key, did you mean sha256?"),
        ("teacher.sha256", "abc", "teacher.sha256: must be 64 lower-case hex digits (got 'abc')"),
        ("teacher.network.num_block", 1, "teacher.network.num_block: unknown key, did you mean num_blocks?"),
        ("teacher.network.attn_resolutions", [16], "teacher.network.attn_resolutions: no level of the network is 16"),
        ("students.s8.dropout_resolutions", [16], "students.s8.dropout_resolutions: no level of the network is 16"),
        ("published_students.s8", {"source": "x", "segments": 8, "snapshot_kimg": 1}, "published_students: s8 is alre"),
        ("posthoc_ema", {"stds": [0.0501]}, "posthoc_ema.stds.0: must have at most three decimals, as file names do"),
        ("posthoc_ema", {"stds": [0.05]}, "posthoc_ema: students.s8 has no phema_stds to reconstruct from"),
        ("posthoc_ema", {"stds": [0.05, 0.05]}, "posthoc_ema: stds lists a value twice"),
        ("reference.statistics", {"source": "ref.npz"}, "reference: published statistics are of Inception's features"),
    ],
)
def test_wrong_setting_of_a_third_party_file_is_reported_in_one_line(where, value, line):
    settings = changed("teacher", PUBLISHED)
    settings["reference"] = {}
    settings["published_students"] = {}
    with pytest.raises(UserError) as error:
        load_config(changed(where, value, settings))
    assert str(error.value).startswith(f"config: {line}") and "\n" not in str(error.value)


def test_unreachable_ema_length_is_refused_before_training():
    settings = changed("students", {"s8": {**STUDENT, "phema_stds": [0.1]}})
    settings["posthoc_ema"] = {"stds": [0.08, 0.01]}
    with pytest.raises(UserError, match="posthoc_ema.stds: students.s8: .* do not reach std 0.01"):
        load_config(settings)


def test_stored_snapshots_suffice_for_lengths_near_the_kept_ones():
    config = load_config(REPOSITORY / "config/imagenet64.yaml")
    student = config.students["s8"]
    stored = [student.images_at(kimg) for kimg in config.stored_snapshots("s8", student.duration_kimg)]
    images = [nimg for nimg in stored for _ in student.phema_stds]

    def misfit(std):
        return reach(images, student.phema_stds * len(stored), stored[-1], std)[1]

    assert misfit(0.03) < 0.03 and all(misfit(std) < 0.01 for std in (0.04, 0.06, 0.075, 0.09, 0.12, 0.14))


def test_posthoc_snapshot_listed_twice_is_refused():
    settings = changed("students", {"s8": {**STUDENT, "phema_stds": [0.1]}})
    settings["posthoc_ema"] = {"stds": [0.1], "snapshots": [4, 4]}
    with pytest.raises(UserError, match="posthoc_ema: snapshots lists a value twice"):
        load_config(settings)


def test_posthoc_snapshots_must_be_snapshots_of_every_student():
    settings = changed("students", {"s8": {**STUDENT, "phema_stds": [0.1]}})
    settings["posthoc_ema"] = {"stds": [0.05], "snapshots": [3]}
    with pytest.raises(UserError, match="posthoc_ema.snapshots: students.s8 has no snapshot at 3 kimg"):
        load_config(settings)
    assert load_config(changed("posthoc_ema.snapshots", None, settings)).posthoc_snapshots("s8") == [4]


def test_ema_length_is_reconstructed_from_snapshots_spread_up_to_its_own():
    student = {**STUDENT, "phema_stds": [0.1], "duration_kimg": 210, "snapshot_kimg": 1}
    config = load_config(changed("students", {"s8": student}))
    assert config.stored_snapshots("s8", 3) == [1, 2, 3]
    spread = config.stored_snapshots("s8", 205)
    assert (
        len(spread) == 20
        and spread[-1] == 205
        and {b - a for a, b in zip(spread, spread[1:], strict=False)} == {10, 11}
    )


@pytest.mark.parametrize("key", ["teacher", "data"])
def test_identity_of_a_file_with_a_hash_does_not_depend_on_its_place(key):
    file = {"teacher": PUBLISHED, "data": {}}[key]
    here, there = (
        digest(
            load_config(changed(key, {**file, "source": source, "sha256": "0" * 64, "license": license})).files()[key]
        )
        for source, license in (("here.zip", "MIT"), ("/there.zip", None))
    )
    assert here == there


@pytest.mark.parametrize("key", ["teacher", "data"])
def test_file_without_a_hash_is_identified_by_its_source(key):
    file = {"teacher": PUBLISHED, "data": {}}[key]
    identities = {digest(load_config(changed(key, {**file, "source": source})).files()[key]) for source in "ab"}
    assert len(identities) == 2


def test_digits_may_be_enlarged():
    assert load_config(changed("data.resolution", 16)).data.known_resolution == 16


def test_song_options_are_refused_for_dhariwal():
    settings = changed("teacher.network.encoder_type", "residual")
    settings["teacher"]["network"]["model_type"] = "DhariwalUNet"
    with pytest.raises(UserError, match="encoder_type is an option of SongUNet"):
        load_config(settings)


OPERATIONAL = "duration_kimg snapshot_kimg tick_kimg state_kimg validate_kimg validate_images".split()
OPERATIONAL += ["max_nonfinite_steps", "replicates"]


# Settings that runs of earlier versions did not have, with a value other than the default.
ADDED = {
    "compile": "default",
    "lr_anneal_kimg": 4.0,
    "lr_decay_kimg": 4.0,
    "optimizer": "radam",
    "betas": [0.0, 0.99],
    "eps": 1e-6,
    "clip_norm": 1.0,
    "nodes": "karras-drop-last",
    "hop": "data",
    "addim_eta": 0.5,
    "target_halflife_kimg": 1.0,
}


def test_identity_excludes_only_operational_settings_and_unset_added_ones():
    student = load_config(SETTINGS).students["s8"]
    unset = {*ADDED, "weight_decay", "method", "sampler"}
    assert set(student.identity()) == set(type(student).model_fields) - {*OPERATIONAL, *unset}


@pytest.mark.parametrize("key", ADDED)
def test_added_setting_is_part_of_the_identity_if_set(key):
    plain = load_config(SETTINGS).students["s8"].identity()
    assert load_config(changed(f"students.s8.{key}", ADDED[key])).students["s8"].identity() == plain | {key: ADDED[key]}


def test_identities_of_existing_runs_never_change():
    """The digests of version 0.1, before students had a method: with others, finished training would be repeated."""
    config = load_config(REPOSITORY / "config/imagenet64.yaml")
    assert (digest(config.students["s8"]), digest(config.teacher)) == ("318cd96cbc47a721", "4b04d9e1e1d8e562")
    settings = load_config(SETTINGS)
    assert (digest(settings.students["s8"]), digest(settings.teacher)) == ("a4318460d6a6ca4f", "475269a0898de6be")


@pytest.mark.parametrize("key", OPERATIONAL)
def test_operational_settings_do_not_change_the_identity(key):
    before = load_config(SETTINGS).students["s8"]
    after = load_config(changed(f"students.s8.{key}", 4)).students["s8"]
    assert before.identity() == after.identity() and digest(before) == digest(after)


def test_identity_does_not_depend_on_how_values_are_written():
    spelt = {**STUDENT, "learning_rate": "1e-4", "ema_halflife_kimg": 1.0, "lr_rampup_kimg": 0, "xflip": False}
    settings = load_config(changed("students.s8", spelt))
    assert digest(settings.students["s8"]) == digest(load_config(SETTINGS).students["s8"])


def test_nested_settings_are_part_of_the_identity():
    before, after = load_config(SETTINGS), load_config(changed("teacher.network.num_blocks", 2))
    assert digest(before.teacher) != digest(after.teacher)


def test_snapshots_and_averages_have_the_names_of_their_files():
    settings = load_config(changed("teacher.phema_stds", [0.05, 0.1]))
    assert settings.students["s8"].snapshots() == [2, 4]
    assert settings.teacher.emas() == ["ema", "phema-0.050", "phema-0.100"]


def test_legs_go_from_snapshot_to_snapshot():
    student = load_config(changed("students.s8.batch_size", 96)).students["s8"]
    assert student.legs() == [LegRange(0, 2, 2016), LegRange(2, 4, 4032)]  # 2,000 and 4,000 images in whole steps


def test_unet_options_are_those_of_the_model_type():
    network = load_config(SETTINGS).teacher.network
    assert "encoder_type" in network.unet_options()
    dhariwal = load_config(changed("teacher.network.model_type", "DhariwalUNet")).teacher.network
    assert "encoder_type" not in dhariwal.unet_options() and dhariwal.unet_options()["num_blocks"] == 1


def test_imagenet_64_is_the_published_run():
    config = load_config(REPOSITORY / "config/imagenet64.yaml")
    student = config.students["s8"]
    assert student.model_dump(include=set(PUBLISHED_RUN)) == PUBLISHED_RUN
    assert (student.sigma_max_anchor, student.node_anchor) == (0, 0) and len(student.snapshots()) == 210
    assert (config.scoring.images, config.scoring.seed_blocks) == (50_000, [0, 1, 2])
    samplers = config.scoring.teacher_samplers
    assert [(sampler.sampler, sampler.nfe) for sampler in samplers] == [
        ("euler", 8), ("heun", 15), ("heun", 79), ("heun", 511), ("heun", 511)
    ]  # fmt: skip
    assert samplers[-1].model_dump(include={"S_churn", "S_min", "S_max", "S_noise"}) == {
        "S_churn": 40, "S_min": 0.05, "S_max": 50, "S_noise": 1.003
    }  # fmt: skip


PUBLISHED_RUN = {
    "segments": 8,
    "teacher_steps_start": 64,
    "teacher_steps_end": 1280,
    "anneal_kimg": 104_800,
    "edge_sampling": "edm",
    "terminal_anchor": True,
    "terminal_teacher_hop": True,
    "distance": "pseudo_huber",
    "weight": "sqrt_karras",
    "batch_size": 2048,
    "learning_rate": 8e-5,
    "lr_rampup_kimg": 10_000,
    "ema_halflife_kimg": 50_000,
    "ema_rampup": 0.05,
    "phema_stds": [0.05, 0.10],
    "dropout": 0.2,
    "dropout_resolutions": [16, 8],
    "precision": "fp16",
    "xflip": False,
    "duration_kimg": 210_000,
    "snapshot_kimg": 1000,
    "seed": 1_959_836_853,
}


@pytest.mark.parametrize(
    ("batch", "processes", "piece", "fits"),
    [(64, 1, 0, True), (64, 4, 0, True), (64, 3, 0, False), (64, 2, 16, True), (64, 2, 24, False), (64, 2, 64, False)],
)
def test_batch_that_cannot_be_shared_evenly_is_refused(batch, processes, piece, fits):
    if fits:
        check_share("x", batch, processes, piece)
    else:
        with pytest.raises(UserError, match=f"x.batch_size: {processes} processes.* cannot share {batch} images"):
            check_share("x", batch, processes, piece)


def test_transform_accepts_every_transform_of_packing():
    (choices, _) = typing.get_args(DataSettings.model_fields["transform"].annotation)
    assert typing.get_args(choices) == TRANSFORMS
