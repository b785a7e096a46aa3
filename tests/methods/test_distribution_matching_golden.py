"""Distribution matching: equality with the golden numbers of DMD2, FastGen and SiD."""

import numpy as np
import pytest
import torch
from golden_data import load
from mixture import Mixture

from mscd.diffusion.denoising import denoising_loss
from mscd.diffusion.losses import loss_weight
from mscd.methods.distribution_matching import divergence
from mscd.methods.distribution_matching import loss as matching
from mscd.methods.distribution_matching.head import DiscriminatorHead

golden, info = load("dmd2")
T = torch.as_tensor
G = {key: T(value) for key, value in golden.items()}
PER_IMAGE = (-1, 1, 1, 1)


def denoiser(name):
    """Return the mixture that is the teacher, the critic or the student."""
    return Mixture(golden, f"gm/{name}")


def close(ours, key, tolerance):
    """Compare every number, relative to itself."""
    return np.allclose(T(ours).detach().numpy(), golden[key], rtol=tolerance, atol=1e-30)


def near(ours, key, tolerance):
    """Compare the norm of the difference with the norm of the golden numbers."""
    expected = golden[key].astype(np.float64)
    return np.linalg.norm(T(ours).detach().double().numpy() - expected) <= tolerance * np.linalg.norm(expected)


def gradients_are_near(scalar, network, prefix, tolerance, **others):
    """Compare the scalar's gradients with respect to the network's parameters, and to other tensors by their keys."""
    tensors = {f"{prefix}/grad/{key}": value for key, value in network.parameters.items()}
    tensors |= {f"{prefix}/{key}": value for key, value in others.items()}
    found = torch.autograd.grad(scalar, list(tensors.values()))
    return all(near(gradient, key, tolerance) for key, gradient in zip(tensors, found, strict=True))


def noised(x, sigma, noise):
    return x + sigma.double().reshape(PER_IMAGE) * noise


def dm_images():
    """Return the student, its images with gradient, and the noisy images."""
    student = denoiser("student")
    x = student(80 * G["dm/eps"], T(80.0))
    return student, x, noised(x.detach(), G["dm/sigma"], G["dm/noise"])


def fastgen_normaliser():
    """Return what turns a direction divided by a into one divided by a + 1e-6, a rounded to float32 as in FastGen."""
    a = matching.normaliser(G["dm/x"], G["dm/D_real"])
    return a / (matching.normaliser(G["dm/x"].float(), G["dm/D_real"].float()).double() + 1e-6)


def test_noise_levels_and_their_ranges_equal_golden():
    levels = matching.noise_levels()
    assert levels.dtype == torch.float64 and close(levels, "grid/fastgen/sigmas", 1e-12)
    assert close(levels, "grid/tianweiy/sigmas", 2e-5)
    assert tuple(golden["grid/fastgen/range"]) == matching.INDEX_RANGE
    assert close(levels[G["dm/index"]], "dm/sigma", 2e-5)
    assert close(levels[G["critic/index"]], "critic/sigma", 2e-5)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_fastgens_nodes_are_levels_at_equal_distances(k):
    low, high = matching.INDEX_RANGE
    nodes = matching.noise_levels()[low + (high - low) * torch.arange(k, 0, -1) // k]
    assert close(torch.cat([nodes, nodes.new_zeros(1)]), f"grid/fastgen/t_list/{k}", 1e-12)


def test_direction_and_loss_equal_golden_from_dmd2():
    student, x, z = dm_images()
    D_real, D_fake = (denoiser(name)(z, G["dm/sigma"]) for name in ("teacher", "critic"))
    images = {"dm/x": x, "dm/z": z, "dm/D_real": D_real, "dm/D_fake": D_fake}
    assert all(near(image, key, 1e-9) for key, image in images.items())
    assert close(matching.normaliser(x, D_real), "dm/a", 1e-9)
    g = matching.direction(x, D_real, D_fake)
    assert near(g, "dm/tianweiy/direction", 1e-9) and not g.requires_grad
    loss = matching.matching_loss(x, g)
    assert loss.shape == (6,) and loss.dtype == torch.float64
    assert close(loss.mean(), "dm/tianweiy/loss", 1e-9)
    assert gradients_are_near(loss.mean(), student, "dm/tianweiy", 1e-9, grad_x=x)


def test_direction_of_given_images_equals_golden_number_by_number():
    g = matching.direction(G["dm/x"], G["dm/D_real"], G["dm/D_fake"])
    assert close(g, "dm/tianweiy/direction", 1e-9)


@pytest.mark.parametrize("prefix", ["dm/fastgen", "fdistill/weighted"])
def test_loss_and_gradient_equal_golden_from_fastgen(prefix):
    weight = fastgen_normaliser() * G.get(f"{prefix}/h", torch.ones(6, dtype=torch.float64))
    x = G["dm/x"].clone().requires_grad_()
    loss = matching.matching_loss(x, matching.direction(x, G["dm/D_real"], G["dm/D_fake"], weight))
    assert close(loss.mean(), f"{prefix}/loss", 1e-5)
    (gradient,) = torch.autograd.grad(loss.mean(), x)
    assert close(gradient, f"{prefix}/grad_x", 1e-5)


def test_direction_is_finite_where_the_references_divide_by_zero():
    """Image 0 is its own D_real, in images 1 and 2 both denoisers agree, and image 3 has a NaN."""
    g = matching.direction(*(G[f"dm_edge/{name}"] for name in ("x", "D_real", "D_fake")))
    dmd2, fastgen = G["dm_edge/tianweiy/direction"], G["dm_edge/fastgen/grad_x_times_numel"]
    assert g.isfinite().all()
    assert torch.equal(g[0].sign(), dmd2[0].sign()) and g[0].abs().max() <= fastgen[0].abs().max()
    # FastGen adds 1e-6 where mscd limits to 1e-5 from below.
    assert torch.allclose(g[0], fastgen[0] * 1e-6 / matching.NORMALISER_FLOOR, rtol=1e-5, atol=0)
    assert torch.equal(g[1:3], dmd2[1:3]) and torch.equal(g[1:3], fastgen[1:3])
    assert torch.equal(fastgen[3].isnan(), G["dm_edge/D_fake"][3].isnan()) and fastgen[3].isnan().any()
    assert not g[3].any()


@pytest.mark.parametrize(("reference", "kind"), [("tianweiy", "karras"), ("fastgen", "uniform")])
def test_critic_loss_equals_golden(reference, kind):
    critic, x, sigma = denoiser("critic"), G["dm/x"].clone().requires_grad_(), G["critic/sigma"]
    weight = loss_weight(kind, sigma, sigma)
    if reference == "tianweiy":
        assert close(weight, "critic/tianweiy/weight", 1e-6)
    denoised = critic(noised(x.detach(), sigma, G["critic/noise"]), sigma)
    assert close(denoised, "critic/D_fake", 1e-9)
    loss = matching.critic_loss(denoised, x, weight)
    assert loss.shape == (6,) and close(loss.mean(), f"critic/{reference}/loss", 1e-6)
    assert gradients_are_near(loss.mean(), critic, f"critic/{reference}", 1e-6)
    assert torch.autograd.grad(loss.mean(), x, allow_unused=True) == (None,)


def test_gan_losses_and_gradients_equal_golden():
    real, fake = (G[f"gan/logits_{name}"].clone().requires_grad_() for name in ("real", "fake"))
    critic, generator = matching.discriminator_loss(real, fake), matching.generator_loss(fake)
    assert critic.shape == generator.shape == (8,)
    assert close(critic.mean(), "gan/critic_loss", 1e-8) and close(generator.mean(), "gan/generator_loss", 1e-8)
    grad_real, grad_fake = torch.autograd.grad(critic.mean(), (real, fake))
    (grad_generator,) = torch.autograd.grad(generator.mean(), fake)
    assert close(grad_real, "gan/grad_real", 1e-8) and close(grad_fake, "gan/grad_fake", 1e-8)
    assert close(grad_generator, "gan/grad_generator", 1e-8)


def test_head_losses_and_gradients_equal_golden():
    head = DiscriminatorHead(info["head"]["channels"], width=8)
    prefix = "head/sd/"
    head.load_state_dict({key.removeprefix(prefix): G[key] for key in G if key.startswith(prefix)})
    head.double()  # in float32, the order of sums moves the gradients by as much as the tolerance
    assert head[1].num_groups == info["head"]["groups"] and head[1].eps == info["head"]["eps"]
    fake = G["head/features_fake"].clone().requires_grad_()
    logits = {"real": head(G["head/features_real"]), "fake": head(fake)}
    for name, values in logits.items():
        assert values.shape == (4, 1) and (values - G[f"head/logits_{name}"]).abs().max() <= 1e-5
    critic = matching.discriminator_loss(logits["real"], logits["fake"]).mean()
    generator = matching.generator_loss(logits["fake"]).mean()
    for reference in ("head", "head/tianweiy"):
        assert (critic - G[f"{reference}/critic_loss"]).abs() <= 1e-5
        assert (generator - G[f"{reference}/generator_loss"]).abs() <= 1e-5
    gradients = torch.autograd.grad(critic, list(head.parameters()), retain_graph=True)
    named = dict(zip(dict(head.named_parameters()), gradients, strict=True))
    for key in (key for key in golden if key.startswith("head/grad/")):
        assert near(named[key.removeprefix("head/grad/")], key, 1e-4)
    assert near(torch.stack([gradient.norm() for gradient in gradients]), "head/grad_norms", 1e-4)
    assert near(torch.autograd.grad(generator, fake)[0], "head/grad_features", 1e-4)


@pytest.mark.parametrize("kind", divergence.DIVERGENCES)
def test_divergence_functions_equal_golden(kind):
    assert close(divergence.DIVERGENCES[kind](G["h/r"]), f"h/{kind}", 1e-9)


def linear_bins(t):
    """Return FastGen's bins, equally wide in sigma."""
    low, high = info["fdistill"]["t_range"]
    count = info["fdistill"]["bins"]
    return ((t - low) / ((high - low) / count)).floor().long().clamp(0, count - 1)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_divergence_weights_of_three_calls_equal_golden(decay):
    bin_means = torch.ones(info["fdistill"]["bins"])
    for call in range(3):
        r = divergence.density_ratio(G[f"fdistill/call{call}/logits"])
        bins = linear_bins(G[f"fdistill/call{call}/t"])
        r, bin_means = divergence.relative_ratio(r, bins, bin_means, decay=decay)
        assert close(bin_means, f"fdistill/bins/ema{decay}/call{call}", 1e-4)
        for kind in divergence.DIVERGENCES:
            h = divergence.divergence_weight(kind, r)
            if kind == "rkl":  # FastGen stops with an error
                assert torch.allclose(h, torch.ones_like(h), rtol=0, atol=1e-5)
            else:
                assert close(h, f"fdistill/{kind}/ema{decay}/call{call}/h", 1e-4)


@pytest.mark.parametrize("kind", [kind for kind in divergence.DIVERGENCES if kind != "rkl"])
def test_divergence_weights_without_bins_equal_golden(kind):
    for call in range(3):
        h = divergence.divergence_weight(kind, divergence.density_ratio(G[f"fdistill/call{call}/logits"]))
        assert close(h, f"fdistill/{kind}/unnormalised/call{call}/h", 1e-4)


def test_limits_of_the_density_ratio_equal_golden():
    assert list(divergence.RATIO_LIMITS) == info["fdistill"]["clip_ratio"]
    assert [-divergence.LOGIT_LIMIT, divergence.LOGIT_LIMIT] == info["fdistill"]["clip_logit"]


def sid_images():
    """Return the student, its images, the noisy images, and the denoised images of teacher and critic."""
    student = denoiser("student")
    x = student(G["sid/z"], T(info["sid"]["sigma_init"]))
    sigma = matching.sid_sigmas(G["sid/u"])
    z = noised(x, sigma, G["sid/noise"])
    return student, x, sigma, z, denoiser("teacher")(z, sigma), denoiser("critic")(z, sigma)


@pytest.mark.parametrize("alpha", info["sid"]["alpha"])
def test_sid_loss_and_gradients_equal_golden(alpha):
    student, x, sigma, _, D_real, D_fake = sid_images()
    assert close(sigma, "sid/sigma", 1e-9)
    assert near(x, "sid/x", 1e-9) and near(D_real, "sid/D_real", 1e-9) and near(D_fake, "sid/D_fake", 1e-9)
    loss, prefix = matching.sid_loss(x, D_real, D_fake, alpha), f"sid/alpha{alpha}"
    assert np.allclose(loss.detach().numpy(), golden[f"{prefix}/loss"].sum(axis=(1, 2, 3)), rtol=1e-6, atol=0)
    scalar = info["sid"]["loss_scaling_G"] * loss.mean()
    assert close(scalar, f"{prefix}/scalar", 1e-5)
    assert gradients_are_near(scalar, student, prefix, 1e-6, grad_x=x)


@pytest.mark.parametrize("alpha", info["sid"]["alpha"])
def test_sid_loss_equals_golden_pixel_by_pixel(alpha):
    """The loss without its normaliser is a sum over pixels, so that images of one pixel show each summand."""
    x, D_real, D_fake = (G[f"sid/{name}"] for name in ("x", "D_real", "D_fake"))
    pixels = [image.reshape(PER_IMAGE) for image in (x, D_real, D_fake)]
    summands = matching.sid_loss(*pixels, alpha) * matching.normaliser(*pixels[:2])
    a = matching.normaliser(x, D_real).reshape(PER_IMAGE)
    assert close(summands.reshape(x.shape) / a, f"sid/alpha{alpha}/loss", 1e-6)


def test_sid_critic_equals_golden():
    critic = denoiser("critic")
    result = denoising_loss(critic, G["sid/x"], None, G["sid/critic/noise"], G["sid/critic/z"])
    assert close(result.loss, "sid/critic/loss", 1e-8)
    assert close(result.loss.mean(), "sid/critic/scalar", 1e-8)
    assert gradients_are_near(result.loss.mean(), critic, "sid/critic", 1e-8)


def logit_map(z):
    """Return the golden discriminator's map [N, H, W], limited as in SiDA."""
    return (info["sida"]["kappa"] * z.mean(dim=1)).clamp(-10, 10)


def test_adversarial_sid_loss_and_gradients_equal_golden():
    options = info["sida"]
    student, x, _, z, D_real, D_fake = sid_images()
    loss_sid = matching.sid_loss(x, D_real, D_fake, options["alpha"])
    loss_gan = matching.generator_loss(logit_map(z)).mean() / matching.normaliser(x, D_real)
    assert close(loss_sid, "sida/loss_sid", 1e-6) and close(loss_gan, "sida/loss_gan", 1e-6)
    scalar_sid = options["loss_scaling_G"] * loss_sid.mean()
    scalar_gan = options["loss_scaling_G_gan"] * options["CHW"] * loss_gan.mean()
    assert close(scalar_sid, "sida/scalar_sid", 1e-5) and close(scalar_gan, "sida/scalar_gan", 1e-5)
    assert gradients_are_near((scalar_sid + scalar_gan) / 2, student, "sida", 1e-6, grad_x=x)


def test_adversarial_sid_critic_equals_golden():
    noise, z = G["sid/critic/noise"], G["sid/critic/z"]
    score = denoising_loss(denoiser("critic"), G["sid/x"], None, noise, z)
    real, fake = (logit_map(noised(images, score.sigma, noise)) for images in (G["sida/critic/real"], G["sid/x"]))
    weight = loss_weight("edm", score.sigma, score.sigma)
    loss_gan = weight * matching.discriminator_loss(real, fake).mean() / 2
    assert close(score.loss, "sida/critic/loss_score", 1e-6) and close(loss_gan, "sida/critic/loss_gan", 1e-6)
    assert close((score.loss + loss_gan).mean(), "sida/critic/scalar", 1e-5)
