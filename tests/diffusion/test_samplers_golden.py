"""Samplers on an analytic denoiser: equality with the golden numbers of public implementations."""

import pytest
import torch
from closeness import absolute, bounded
from golden_data import load
from golden_networks import golden_network
from mixture import Mixture

from mscd.diffusion import samplers
from mscd.diffusion.sigmas import karras_position, node_sigmas, student_sigmas

golden, info = load("sde")
matching, _ = load("moment_matching")
ect, _ = load("ect")
T = torch.as_tensor
LATENTS = T(golden["latents"])


def cases(arrays, prefix):
    """Return the names of the cases below a prefix, in order."""
    return list(dict.fromkeys(key.split("/")[1] for key in arrays if key.startswith(f"{prefix}/")))


def given(noise):
    """Return a source of noise that gives these draws one after another, and no more."""
    draws = iter(T(noise))
    return lambda x: next(draws).to(x.dtype)


def watched(net, states, images):
    """Return the denoiser, which records what it is given and what it returns."""

    def denoise(x, sigma, labels):
        states.append(x)
        images.append(net(x, sigma, labels))
        return images[-1]

    return denoise


def grid(*nodes):
    return torch.tensor([*nodes, 0.0], dtype=torch.float64)


# ---- renoise


@pytest.mark.parametrize("case", cases(golden, "cm"))
def test_renoise_equals_multistep_consistency_sampling(case):
    g = {key.split("/", 2)[2]: T(value) for key, value in golden.items() if key.startswith(f"cm/{case}/")}
    position = karras_position(1 - g["ts"].double() / (g["steps"] - 1))
    assert absolute(position[:-1], g["sigmas"], 1e-5) and float(position[-1]) == pytest.approx(0.002)
    states, nodes = [], grid(*position[:-1].tolist())
    # The reference takes a denoised image to have noise of 0.002, and adds that much less.
    share = (1 - (0.002 / nodes[1:-1]) ** 2).sqrt()
    noise = g["noise"].clone()
    noise[: len(share)] *= share.reshape(-1, *[1] * (noise.ndim - 1))
    out = samplers.renoise(watched(Mixture(golden), states, []), LATENTS, None, nodes, randn_like=given(noise))
    # The noise that the reference adds at the end has the level of the last position, which is 0.002, less 0.002.
    assert absolute(torch.stack(states), g["x_in"], 1e-8) and absolute(out, g["out"], 1e-8)


@pytest.mark.parametrize("case", cases(golden, "fastgen")[:-1])
def test_renoise_and_euler_equal_fastgens_samplers(case):
    nodes, gm = T(golden[f"fastgen/{case}/t_list"]), Mixture(golden)
    if info[f"fastgen/{case}"] == "sde":
        out = samplers.renoise(gm, LATENTS, None, nodes, randn_like=given(golden[f"fastgen/{case}/noise"]))
    else:
        out = samplers.euler(gm, LATENTS, None, nodes)
    assert absolute(out, golden[f"fastgen/{case}/out"], 1e-8)


@pytest.mark.parametrize("case", [case for case in cases(ect, "sampler") if case != "net"])
def test_renoise_equals_easy_consistency_sampling(case):
    g = {key.split("/", 2)[2]: T(value) for key, value in ect.items() if key.startswith(f"sampler/{case}/")}
    nodes = grid(80, *g["mid_t"].tolist())
    out = samplers.renoise(Mixture(ect), g["latents"], None, nodes, randn_like=given(g["noise"]))
    assert absolute(out, g["out"], 1e-9)


# ---- ancestral


@pytest.mark.parametrize("case", [case for case in cases(matching, "ancestral") if case != "net"])
def test_ancestral_equals_moment_matchings_sampler(case):
    g = {key.split("/", 2)[2]: T(value) for key, value in matching.items() if key.startswith(f"ancestral/{case}/")}
    nodes, states, images = node_sigmas("karras-drop-last", len(g["sigmas"])), [], []
    assert bounded(nodes[:-1], g["sigmas"], 1e-12) and bounded(nodes[:-1], g["grid"][:-1], 1e-12)
    net = watched(Mixture(matching, "gm/student"), states, images)
    out = samplers.ancestral(net, g["latents"], None, nodes, randn_like=given(g["noise"]))
    assert bounded(torch.stack(states), g["z"], 1e-9) and bounded(torch.stack(images), g["x_hat"], 1e-9)
    assert bounded(out, g["out"], 1e-9) and torch.equal(out, images[-1])


@pytest.mark.parametrize("sampler", ["ancestral", "renoise"])
def test_samples_of_a_network_equal_golden(sampler):
    arrays, prefix = {"ancestral": (matching, "ancestral/net/"), "renoise": (ect, "sampler/net/")}[sampler]
    g = {key.removeprefix(prefix): T(value) for key, value in arrays.items() if key.startswith(prefix)}
    nodes = node_sigmas("karras-drop-last", 4) if sampler == "ancestral" else grid(80, *g["mid_t"].tolist())
    sample = getattr(samplers, sampler)
    out = sample(golden_network("student"), g["latents"], g["labels"], nodes, randn_like=given(g["noise"]))
    assert out.dtype == torch.float64 and absolute(out, g["out"], 1e-4)


# ---- euler at nodes


@pytest.mark.parametrize("case", ["0", "1", "2"])
def test_euler_at_explicit_nodes_equals_golden(case):
    nodes = T(golden[f"nodes/explicit/{case}/sigmas"])
    assert torch.equal(node_sigmas(nodes[:-1].tolist(), len(nodes) - 1), nodes)
    assert absolute(samplers.euler(Mixture(golden), LATENTS, None, nodes), golden[f"nodes/explicit/{case}/out"], 1e-8)


@pytest.mark.parametrize("segments", [2, 4, 8])
@pytest.mark.parametrize("nodes", ["karras", "karras-drop-last"])
def test_euler_at_named_nodes_equals_golden(nodes, segments):
    name = {"karras": "karras_k", "karras-drop-last": "karras_drop_last"}[nodes]
    out = samplers.euler(Mixture(golden), LATENTS, None, node_sigmas(nodes, segments))
    assert absolute(out, golden[f"nodes/{name}/{segments}_out"], 1e-8)


# ---- DPM-Solver++


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("case", cases(golden, "dpm"))
def test_every_state_of_dpm_equals_golden_and_a_public_implementation(case, order):
    steps, first, last = golden[f"dpm/{case}/params"].tolist()
    sigmas, states = T(golden[f"dpm/{case}/sigmas"]), []
    assert len(sigmas) == steps + 1 and (float(sigmas[0]), float(sigmas[-1])) == pytest.approx((first, last))
    out = samplers.dpm(watched(Mixture(golden), states, []), LATENTS, None, sigmas, order=order)
    trajectory = torch.stack([*states, out])
    assert bounded(trajectory, golden[f"dpm/{case}/order{order}/f64"], 1e-8)
    assert absolute(trajectory, golden[f"dpm/{case}/order{order}/ref"], 1e-4)


@pytest.mark.parametrize("case", cases(golden, "dpm"))
def test_last_step_of_second_order_would_equal_that_of_k_diffusion(case):
    """mscd's last step is of first order, as some public implementations have it; all others are k-diffusion's."""
    sigmas, states, images = T(golden[f"dpm/{case}/sigmas"]), [], []
    samplers.dpm(watched(Mixture(golden), states, images), LATENTS, None, sigmas, order=2)
    levels = sigmas.tolist()
    history = [(levels[-2], images[-1]), (levels[-3], images[-2])]
    last = samplers._dpm_step(states[-1], history, levels[-1])
    assert absolute(last, golden[f"dpm/{case}/order2/k_diffusion"], 1e-6)
    assert absolute(last, golden[f"dpm/{case}/order2/ref_no_lower_order_final"], 1e-6)


def test_dpm_of_first_order_is_euler():
    sigmas = student_sigmas(6)
    first, euler = samplers.dpm(Mixture(golden), LATENTS, None, sigmas, order=1), samplers.euler
    assert absolute(first, euler(Mixture(golden), LATENTS, None, sigmas), 1e-12)
