"""In which precision methods compute, and over which images."""

import copy

import pytest
import torch
from method_settings import method_settings
from training_runs import Stepping, student_leg

from mscd.checkpoints.network_file import load_network
from mscd.errors import UserError
from mscd.methods.interface import student_method
from mscd.networks import EDMPrecond


def teacher_of(base):
    return load_network(base / "teacher/3/ema.safetensors").network


def test_the_derivative_of_continuous_consistency_is_in_float32_whatever_the_precision(base, tmp_path, monkeypatch):
    used, inputs = [], EDMPrecond._unet_inputs

    def watched(net, x, *others):
        used.append((others[-1], torch._C._functorch.is_functorch_wrapped_tensor(x)))
        return inputs(net, x, *others)

    monkeypatch.setattr(EDMPrecond, "_unet_inputs", watched)
    Stepping(student_leg(base, tmp_path, 0, 3, method_settings("continuous-consistency", precision="bf16"))).step()
    assert used == [("fp32", False), ("fp32", True), ("bf16", False)]  # teacher, derivative, student


def test_one_evaluation_in_another_precision_equals_that_of_a_network_of_that_precision(base):
    net = teacher_of(base)
    other = copy.deepcopy(net)
    other.precision = "bf16"
    x, sigma = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 2.0])
    with torch.no_grad():
        assert torch.equal(net(x, sigma, precision="bf16"), other(x, sigma))
        assert torch.equal(other(x, sigma, precision="fp32"), net(x, sigma))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_never_pass_through_a_teacher_in_fp16(base, precision):
    teacher = teacher_of(base)
    teacher.precision = "fp16"
    student_method(method_settings("distribution-matching", precision=precision), lambda total: total, teacher)
    assert teacher.precision == precision


def test_density_ratios_are_over_the_whole_batch(base, tmp_path):
    leg = student_leg(base, tmp_path, 0, 3, method_settings("distribution-matching"))
    with pytest.raises(UserError, match="s4: its losses compare the images of a step.*batch_per_process to 0.*not 25"):
        Stepping(leg, batch_per_process=25)
    alone = method_settings("distribution-matching", divergence="rkl", divergence_decay=0.0)
    Stepping(student_leg(base, tmp_path, 0, 3, alone), batch_per_process=25).step()
