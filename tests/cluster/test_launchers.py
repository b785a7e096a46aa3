"""A leg on Slurm is trained once, even if its launcher is killed, orphaned, interrupted or started twice."""

import signal
import subprocess

import pytest
from training_runs import snapshot, student_leg

from cluster.training import KIMG, LONG, Training, steps, wait_for
from mscd.launch import slurm_commands


@pytest.mark.parametrize("when", ["it lives", "it has finished"])
def test_the_next_launcher_waits_for_the_job_of_a_killed_one(training, undisturbed_two, when):
    training.start().wait_until_at(1)
    job_id = training.job_id
    training.launcher.send_signal(signal.SIGKILL)
    training.launcher.wait()
    if when == "it has finished":
        wait_for(lambda: slurm_commands.status(job_id).is_over, "the job")
        assert training.leg.finished.exists() and not (training.folder / str(KIMG)).exists()
    training.start().finish()
    assert snapshot(training.folder, KIMG) == undisturbed_two and steps(training) == list(range(1, KIMG + 1))
    assert training.log.count("submitted as Slurm job") == 1 and f"Slurm job {job_id}" in training.log


def test_a_launcher_that_loses_its_snakemake_leaves_the_job_to_the_next(training, undisturbed_two):
    snakemake = subprocess.Popen(["sleep", "600"])
    training.parent = snakemake.pid
    training.start().wait_until_at(1)
    snakemake.kill()
    snakemake.wait()
    assert f"Snakemake is gone; Slurm job {training.job_id} continues without it" in training.fails(30)
    training.parent = None
    training.start().finish()
    assert training.log.count("submitted as Slurm job") == 1 and snapshot(training.folder, KIMG) == undisturbed_two


def test_a_second_launcher_is_refused_and_disturbs_nothing(training, undisturbed_two):
    training.start().wait_until_at(1)
    second = Training(training.leg, training.resources).start()
    second.fails(30)
    assert "is held by process" in second.log  # the log is shared by both launchers
    training.finish()
    assert snapshot(training.folder, KIMG) == undisturbed_two


def test_ctrl_c_cancels_the_job_and_says_so(training, undisturbed_two):
    training.start().wait_until_at(1)
    job_id = training.job_id
    training.launcher.send_signal(signal.SIGINT)
    assert f"Slurm job {job_id} is cancelled" in training.fails(30)
    wait_for(lambda: slurm_commands.status(job_id).state == "CANCELLED", "the cancellation")
    training.start().finish()
    assert snapshot(training.folder, KIMG) == undisturbed_two


@pytest.mark.parametrize("kimg", [1, KIMG])
def test_changed_settings_end_the_job_that_a_lost_launcher_left(base, tmp_path, training, kimg):
    training.start().wait_until_at(1)
    job_id = training.job_id
    training.launcher.kill()
    training.launcher.wait()
    other = LONG.model_copy(update={"learning_rate": 2e-3, "duration_kimg": kimg, "snapshot_kimg": kimg})
    training.leg = student_leg(base, tmp_path / "run", 0, kimg, other)
    training.start().finish()
    assert f"cancelling Slurm job {job_id}" in training.log and slurm_commands.status(job_id).state == "CANCELLED"
    assert (tmp_path / f"run/{kimg}/ema.safetensors").exists()
