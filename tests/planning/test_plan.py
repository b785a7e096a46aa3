"""What a run will cost: the numbers of a plan match what networks, training and files really take."""

import functools

import pytest
import torch

from mscd.config.loading import load_config
from mscd.data import packing
from mscd.diffusion.sigmas import student_sigmas
from mscd.errors import UserError
from mscd.methods.consistency.edges import edge_table
from mscd.methods.consistency.loss import consistency_loss
from mscd.networks.meta import meta_network, parameter_count
from mscd.parallel.group import Group
from mscd.planning.cost import classifier_cost, network_cost
from mscd.planning.plan import count_validations, plan
from mscd.planning.tables import amount, markdown, quantity
from mscd.training.leg import StudentLeg, TeacherLeg, take_snapshot
from mscd.training.loop import train_leg

ADM = {"model_type": "DhariwalUNet", "model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3}
TRAINING = {"duration_kimg": 4, "snapshot_kimg": 2, "batch_size": 300, "learning_rate": 1e-3, "ema_halflife_kimg": 1}
TINY = {
    "name": "tiny",
    "data": {"source": "digits", "max_images": 120},
    "teacher": {
        "network": {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1},
        **TRAINING,
    },
    "students": {
        "s2": {"segments": 2, "nodes": "karras-drop-last", "anneal_kimg": 1, "phema_stds": [0.1, 0.05], **TRAINING},
        "s4": {"segments": 4, "anneal_kimg": 1, "phema_stds": [0.1, 0.05], **TRAINING},
    },
    "scoring": {"images": 50, "teacher_samplers": [{"sampler": "heun", "steps": 3}, {"sampler": "euler", "steps": 4}]},
}


def with_settings(**sections):
    """The run TINY with the settings of some sections changed."""
    return load_config({**TINY, **{name: {**TINY.get(name, {}), **new} for name, new in sections.items()}})


def stages(planned):
    return {stage.name: stage for stage in planned.stages}


# ---- FLOPs


def test_the_imagenet_teacher_is_counted_as_published():
    """296 M parameters and 110 G multiply-adds per evaluation (Karras et al. 2024, table 2)."""
    net = meta_network(img_resolution=64, img_channels=3, label_dim=1000, attn_resolutions=[32, 16, 8], **ADM)
    assert parameter_count(net) == 295_899_267
    cost = network_cost(net)
    assert round(cost.forward / 2e9) == 110
    assert 2.99 < cost.forward_backward / cost.forward < 3


@pytest.mark.parametrize("width", [8, 16])
def test_attention_is_counted(width):
    """An attention block of L pixels and C channels: 8 L C² FLOPs of projections, 4 L² C of the attention itself."""
    options = {"img_resolution": 16, "img_channels": 3, "model_type": "DhariwalUNet", "model_channels": 64}
    options |= {"channel_mult": [1, 2], "num_blocks": 1}
    without, given = (network_cost(meta_network(attn_resolutions=a, **options)).forward for a in ([], [width]))
    pixels, channels, blocks = {8: (64, 128, 3), 16: (256, 64, 3)}[width]
    assert given - without == blocks * (8 * pixels * channels**2 + 4 * pixels**2 * channels)


def test_a_multiply_add_of_the_classifier_counts_as_two_flops():
    convolutions = 2 * 9 * (64 * 1 * 32 + 16 * 32 * 64 + 16 * 64 * 64)
    linear = 2 * (1024 * 64 + 64 * 10)
    assert classifier_cost(8, 1, 10).forward == convolutions + linear


def test_a_distilled_image_takes_as_many_evaluations_as_the_loss_makes():
    planned, calls = plan(load_config(TINY)), []

    def denoiser(x, sigma, labels):
        calls.append(torch.is_grad_enabled())
        return x

    edges = edge_table(student_sigmas(2), 8).rows(torch.tensor([0, 1]))
    images = torch.zeros(2, 1, 8, 8)
    consistency_loss(denoiser, denoiser, denoiser, images, None, torch.ones_like(images), edges)
    assert stages(planned)["train s2"].nfe == len(calls)
    assert planned.distillation == planned.cost.forward * calls.count(False) + planned.cost.forward_backward


# ---- work


def test_images_and_steps_are_those_of_training():
    train = stages(plan(load_config(TINY)))["train s2"]
    assert (train.images, train.steps, train.evaluations) == (4200, 14, 16800)


def test_scores_are_counted_by_network_average_sampler_and_seed_block():
    planned = plan(with_settings(posthoc_ema={"stds": [0.07, 0.08], "snapshots": [2, 4]}))
    found = stages(planned)
    per_network = 3 * 50
    assert found["score teacher, heun-3"].evaluations == per_network * 5
    assert found["score teacher, euler-4"].evaluations == per_network * 4
    assert found["score s2"].images == per_network * 2 * 3  # snapshots, averages
    assert found["score s4, post-hoc EMA"].evaluations == per_network * 2 * 2 * 4
    assert planned.scores == 3 * (2 + 2 * (2 * 3 + 2 * 2))
    features = classifier_cost(8, 1, 10).forward
    assert found["score s2"].flops == per_network * 6 * (2 * planned.cost.forward + features)


@pytest.mark.parametrize(("validate", "tick", "count"), [(1, 1, 4), (2, 1, 2), (3, 1, 3), (1, 2, 2), (9, 1, 2)])
def test_scores_inside_a_run_are_counted_as_the_loop_makes_them(validate, tick, count):
    settings = load_config(TINY).students["s2"].model_copy(update={"validate_kimg": validate, "tick_kimg": tick})
    assert count_validations(settings) == count


def test_memory_holds_weights_gradients_moments_averages_and_the_teacher():
    planned = plan(load_config(TINY))
    size = 4 * parameter_count(planned.net)
    # Weights, gradients twice and two moments; one average of the teacher, and three of a student.
    expected = {"teacher": {"net": 6 * size}} | dict.fromkeys(("s2", "s4"), {"teacher": size, "net": 8 * size})
    assert {held.model: held.networks for held in planned.memory} == expected
    (row,) = [line for line in markdown(planned).splitlines() if line.startswith("| s2 ") and "teacher, net" in line]
    assert row.split("|")[-2].strip() == f"{quantity(9 * size)}B"


# ---- disk


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What training TINY's teacher and student s2 leaves behind."""
    folder, config = tmp_path_factory.mktemp("run"), load_config(TINY)
    torch.set_num_threads(1)
    packing.pack("digits", folder / "train.zip", max_images=120)
    teacher = str(folder / "teacher/4/ema.safetensors")
    make_teacher = functools.partial(TeacherLeg, model="teacher", run_dir=str(folder / "teacher"))
    make_student = functools.partial(StudentLeg, model="s2", run_dir=str(folder / "students/s2"), teacher=teacher)
    for make, settings in ((make_teacher, config.teacher), (make_student, config.students["s2"])):
        for part in settings.legs():
            ends = {"start_kimg": part.start_kimg, "end_kimg": part.end_kimg}
            leg = make(settings=settings, data=str(folder / "train.zip"), **ends)
            train_leg(leg, Group())
            take_snapshot(leg)
    return folder


@pytest.mark.parametrize("kind", ["*ema*", "state"])
@pytest.mark.parametrize("run_dir", ["teacher", "students/s2"])
def test_sizes_of_networks_and_states_equal_those_of_real_files(run_folder, run_dir, kind):
    pattern = f"{run_dir}/*/{kind}.safetensors"
    (files,) = [files for files in plan(load_config(TINY)).files if files.what == pattern]
    found = [path.stat().st_size for path in run_folder.glob(pattern)]
    assert (files.count, files.bytes) == (len(found), sum(found))


def test_size_of_the_packed_data_is_close_to_that_of_the_zip(run_folder):
    (files,) = [files for files in plan(load_config(TINY)).files if files.what.startswith("data/")]
    assert abs(files.bytes / (run_folder / "train.zip").stat().st_size - 1) < 0.01


def test_samples_count_as_kept_or_as_one_passing_block_per_job():
    block = 50 * 64
    planned = plan(with_settings(scoring={"keep_samples": True}))
    assert {f.what: f.bytes for f in planned.files}["samples, one seed block each"] == planned.scores * block
    planned = plan(load_config(TINY))
    assert {f.what: f.bytes for f in planned.passing}["samples, per concurrent sampling job"] == block
    assert "at most" not in markdown(planned)  # there are as many jobs as the machine has room for


def test_passing_states_include_the_best_scored_one_if_there_are_scores():
    counts = []
    for validate in (None, 2):
        planned = plan(with_settings(teacher={"validate_kimg": validate}))
        counts += [f.count for f in planned.passing if f.what.startswith("teacher")]
    assert counts == [3, 4]


# ---- published networks, and what the settings do not state


PUBLISHED = {
    "name": "p",
    "data": {"source": "/nowhere/images.tar", "resolution": 16, "channels": 3, "classes": 0},
    "reference": {"detector": "inception"},
    "teacher": {
        "source": "https://example.org/teacher.pkl",
        "network": {"model_type": "DhariwalUNet", "model_channels": 32, "channel_mult": [1], "num_blocks": 1},
    },
    "published_students": {"p8": {"source": "s.pkl", "segments": 8, "snapshot_kimg": 5}},
    "students": {"s2": TINY["students"]["s2"]},
    "scoring": TINY["scoring"],
}


def test_published_teachers_are_not_trained_but_students_are_scored():
    found = stages(plan(load_config(PUBLISHED)))
    assert "train teacher" not in found and "reference (inception)" not in found
    assert found["score p8"].evaluations == 3 * 50 * 8


def test_features_of_the_data_count_if_its_size_is_given():
    planned = plan(load_config(PUBLISHED), images=1000)
    assert stages(planned)["reference (inception)"].images == 1000 and not planned.notes
    assert len(plan(load_config(PUBLISHED)).notes) == 1


@pytest.mark.parametrize("key", ["resolution", "channels", "classes"])
def test_an_unknown_property_of_the_images_is_named_by_its_key(key):
    settings = {**PUBLISHED, "data": {k: v for k, v in PUBLISHED["data"].items() if k != key}}
    with pytest.raises(UserError, match=f"^p.yaml: data.{key}: "):
        plan(load_config(settings), name="p.yaml")


# ---- the tables


def test_hours_follow_from_the_measured_speed_of_distillation():
    planned = plan(load_config(TINY))
    seconds = 4200 / 0.5 / 4
    text = markdown(planned, gpus=4, images_per_second=0.5)
    (row,) = [line for line in text.splitlines() if line.startswith("| train s2 ")]
    assert row.split("|")[-3].strip() == f"{seconds * 4 / 3600:.3g}"
    assert row.split("|")[-2].strip() == f"{seconds / 3600:.3g}"


def test_hours_follow_from_a_given_number_of_flops():
    planned = plan(load_config(TINY))
    text = markdown(planned, tflops=1e-6)
    (row,) = [line for line in text.splitlines() if line.startswith("| **all** ")]
    assert row.split("|")[-2].strip() == amount(sum(stage.flops for stage in planned.stages) / 1e6 / 3600)


@pytest.mark.parametrize(
    ("value", "text"), [(7, "7 "), (999.97, "1 k"), (1e3, "1 k"), (219_315_105_792, "219.3 G"), (4.8e20, "480 E")]
)
def test_quantities_have_four_digits_and_a_prefix(value, text):
    assert quantity(value) == text
