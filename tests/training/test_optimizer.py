"""The update against PyTorch's optimisers, tensor by tensor, and the memory layout of the parameters."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mscd.config.training import OptimizerOptions
from mscd.networks import EDMPrecond
from mscd.training.optimizer import ALIGNMENT, LARGEST_GRADIENT, Optimizer

OPTIONS = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1}
BETAS = {"ema": 0.5, "phema-0.100": 0.9}


@pytest.fixture
def nets():
    """A network with non-zero weights, and two averages of it."""
    torch.manual_seed(0)
    net = EDMPrecond(8, 1, 0, **OPTIONS)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    return net, {name: copy.deepcopy(net).requires_grad_(False) for name in BETAS}


def set_gradients(net, seed, poison=False):
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if poison:
            parameter.grad.flatten()[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])[: parameter.numel()]


def tensors(net):
    return [parameter.detach().clone() for parameter in net.parameters()]


OPTIMIZERS = {
    "adam": (OptimizerOptions(), torch.optim.Adam),
    "adam, other moments": (OptimizerOptions(betas=(0.0, 0.99), eps=1e-12), torch.optim.Adam),
    "adam, clipped": (OptimizerOptions(clip_norm=10.0), torch.optim.Adam),
    "adamw": (OptimizerOptions("adamw", weight_decay=0.1), torch.optim.AdamW),
    "adamw, clipped": (OptimizerOptions("adamw", (0.9, 0.99), 1e-6, 0.01, 3.0), torch.optim.AdamW),
    "radam": (OptimizerOptions("radam"), torch.optim.RAdam),
    "radam, other moments": (OptimizerOptions("radam", (0.8, 0.95), 1e-6), torch.optim.RAdam),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("poison", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_updates_equal_pytorchs_guarded_optimizer_and_averages_of_each_tensor(nets, dtype, poison, name):
    net, averages = nets[0].to(dtype), {average: copied.to(dtype) for average, copied in nets[1].items()}
    options, of_pytorch = OPTIMIZERS[name]
    exact = {"rtol": 1e-12, "atol": 1e-15} if dtype == torch.float64 else None
    plain, plain_averages = copy.deepcopy(net), copy.deepcopy(averages)
    decay = {"weight_decay": options.weight_decay} if options.weight_decay else {}
    optimizer = of_pytorch(plain.parameters(), betas=options.betas, eps=options.eps, **decay)
    largest = LARGEST_GRADIENT if options.clip_norm is None else 0.0
    updates = Optimizer(net, averages, options)
    for step in range(8):  # RAdam's first five differ from those after
        set_gradients(net, step, poison and step == 1)
        set_gradients(plain, step, poison and step == 1)
        updates.step(1e-3 * (step + 1), BETAS)
        for parameter in plain.parameters():
            torch.nan_to_num_(parameter.grad, nan=0.0, posinf=largest, neginf=-largest)
        if options.clip_norm is not None:
            assert torch.nn.utils.clip_grad_norm_(plain.parameters(), options.clip_norm) > options.clip_norm
        optimizer.param_groups[0]["lr"] = 1e-3 * (step + 1)
        optimizer.step()
        for average, beta in BETAS.items():
            torch._foreach_lerp_(list(plain_averages[average].parameters()), list(plain.parameters()), 1 - beta)
    assert updates.steps == 8
    pairs = [(net, plain), *((averages[average], plain_averages[average]) for average in BETAS)]
    for flat, separate in pairs:
        for (parameter, one), other in zip(flat.named_parameters(), separate.parameters(), strict=True):
            assert one.dtype == dtype
            assert torch.allclose(one, other, **(exact or {"rtol": 1e-6, "atol": 1e-7})), parameter
    for key, parameter in plain.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            ours = updates.moments()[f"{moment}.{key}"]
            tolerance = exact or {"rtol": 1e-5, "atol": 1e-9 if options.clip_norm is None else 1e-8}
            assert torch.allclose(ours, optimizer.state[parameter][moment], **tolerance), key


def test_the_norm_is_of_the_gradient_before_the_guard(nets):
    net, averages = nets
    updates = Optimizer(net, averages, OptimizerOptions())
    set_gradients(net, 0)
    expected = torch.cat([parameter.grad.flatten() for parameter in net.parameters()]).double().norm()
    assert float(updates.step(1e-3, BETAS)) == pytest.approx(float(expected), rel=1e-5)
    before = tensors(net)
    set_gradients(net, 1, poison=True)
    assert not updates.step(1e-3, BETAS).isfinite()
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, tensors(net), strict=True))


def test_gradients_are_cleared_and_a_missing_one_counts_as_zero(nets):
    net, averages = nets
    updates, (first, *_) = Optimizer(net, averages, OptimizerOptions()), net.parameters()
    set_gradients(net, 0)
    first.grad = None
    before = first.detach().clone()
    updates.step(1e-3, BETAS)
    assert torch.equal(first, before) and all(parameter.grad is None for parameter in net.parameters())
    set_gradients(net, 1)
    updates.step(1e-3, BETAS)
    moment = updates.moments()["exp_avg." + next(net.named_parameters())[0]]
    before = moment.clone()
    set_gradients(net, 2)
    first.grad = None
    updates.step(1e-3, BETAS)
    assert torch.allclose(moment, before * 0.9)


def test_parameters_are_aligned_views_that_keep_their_values_and_names(nets):
    net, averages = nets
    before, state = tensors(net), copy.deepcopy(net.state_dict())
    Optimizer(net, averages, OptimizerOptions())
    for parameter, value in zip(net.parameters(), before, strict=True):
        assert torch.equal(parameter, value) and parameter.is_contiguous() and parameter.is_leaf
        assert parameter.storage_offset() % ALIGNMENT == 0 and parameter.requires_grad
    assert len({parameter.untyped_storage().data_ptr() for parameter in net.parameters()}) == 1
    assert net.state_dict().keys() == state.keys()
    net.load_state_dict({name: value + 1 for name, value in state.items()})
    assert len({parameter.untyped_storage().data_ptr() for parameter in net.parameters()}) == 1


class Kernels(TorchDispatchMode):
    """Records the names of the operations that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_the_number_of_kernels_does_not_grow_with_the_number_of_parameters():
    counts = []
    for blocks in (1, 3):
        net = EDMPrecond(8, 1, 0, **{**OPTIONS, "num_blocks": blocks})
        updates = Optimizer(net, {name: copy.deepcopy(net) for name in BETAS}, OptimizerOptions())
        set_gradients(net, 0)
        with Kernels() as kernels:
            updates.step(1e-3, BETAS)
        counts.append(len(kernels.names))
    assert counts[0] == counts[1] <= 8


def test_gradients_are_replaced_by_their_mean_over_processes_before_they_are_used(nets):
    net, averages = nets
    seen = []

    def mean(gradient):
        seen.append(gradient.clone())
        return gradient.mul_(0.5)

    updates = Optimizer(net, averages, OptimizerOptions(clip_norm=1.0), mean)
    set_gradients(net, 0)
    norm = torch.cat([parameter.grad.flatten() for parameter in net.parameters()]).norm()
    assert float(updates.step(1e-3, BETAS)) == pytest.approx(0.5 * float(norm), rel=1e-5)
    assert len(seen) == 1 and float(seen[0].norm()) == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_waits_for_the_device(nets, name):
    net, averages = nets
    updates = Optimizer(net, averages, OPTIMIZERS[name][0])
    for step in range(7):
        set_gradients(net, step)
        with Kernels() as kernels:
            updates.step(1e-3, BETAS)
        assert not {"_local_scalar_dense", "item", "is_nonzero", "equal"} & set(kernels.names)
