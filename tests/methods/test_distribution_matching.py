"""Distribution matching: the algebra of its losses and weights, and the shapes of the discriminator's head."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mscd.diffusion.sigmas import karras_sigmas
from mscd.methods.distribution_matching import divergence
from mscd.methods.distribution_matching import loss as matching
from mscd.methods.distribution_matching.head import DiscriminatorHead, group_count

seeds = st.integers(0, 10_000)
quickly = settings(max_examples=25, deadline=None)


def draws(seed, *shape, count=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, dtype=dtype, generator=generator) for _ in range(count)]


@quickly
@given(seeds, st.sampled_from([torch.float32, torch.float64]))
def test_student_gradient_is_the_direction_per_value(seed, dtype):
    x, D_real, D_fake = draws(seed, 3, 2, 4, 4, count=3, dtype=dtype)
    D_fake = D_real + 1e-6 * D_fake  # a direction far smaller than x must not be rounded to x's precision
    x.requires_grad_()
    g = matching.direction(x, D_real, D_fake)
    loss = matching.matching_loss(x, g)
    loss.mean().backward()
    assert loss.dtype == x.grad.dtype == dtype
    assert torch.allclose(x.grad, g / x.numel(), rtol=1e-6, atol=0)
    assert torch.allclose(loss, g.square().flatten(1).mean(dim=1) / 2, rtol=1e-6, atol=0)


@quickly
@given(seeds, st.floats(0.1, 10))
def test_direction_is_independent_of_scale_and_proportional_to_the_weight(seed, scale):
    x, D_real, D_fake = draws(seed, 3, 2, 4, 4, count=3)
    weight = draws(seed, 3)[0].exp()
    g = matching.direction(x, D_real, D_fake)
    assert torch.allclose(matching.direction(scale * x, scale * D_real, scale * D_fake), g)
    assert torch.allclose(matching.direction(x, D_real, D_fake, weight), weight.reshape(-1, 1, 1, 1) * g)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", range(4))
def test_image_with_a_non_finite_value_gets_direction_zero_and_spoils_no_other(place, value):
    inputs = [*draws(0, 3, 2, 4, 4, count=3), torch.ones(3, dtype=torch.float64)]
    expected = matching.direction(*inputs)
    inputs[place].view(3, -1)[1, 0] = value
    g = matching.direction(*inputs)
    assert torch.equal(g[[0, 2]], expected[[0, 2]]) and not g[1].any()


@quickly
@given(seeds)
def test_losses_follow_a_permutation_of_the_images(seed):
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    x, D_real, D_fake = images = draws(seed, 5, 2, 4, 4, count=3)
    weight, (real, fake) = draws(seed, 5)[0].exp(), draws(seed, 5, 3, count=2)
    functions = [
        (lambda *a: matching.matching_loss(a[0], matching.direction(*a)), (*images, weight)),
        (matching.critic_loss, (D_fake, x, weight)),
        (matching.discriminator_loss, (real, fake)),
        (matching.generator_loss, (fake,)),
        (lambda *a: matching.sid_loss(*a, 1.2), images),
        (lambda r: divergence.divergence_weight("js", r), (weight,)),
    ]
    for function, arguments in functions:
        permuted = function(*(argument[order] for argument in arguments))
        assert permuted.shape == (5,) and torch.allclose(permuted, function(*arguments)[order])


@quickly
@given(seeds)
def test_gan_losses_of_a_perfect_and_an_undecided_discriminator(seed):
    margin = draws(seed, 4, 3)[0].abs() + 50
    assert (matching.discriminator_loss(margin, -margin) < 1e-12).all()
    undecided = torch.zeros(4, 3, dtype=torch.float64)
    log2 = torch.full((4,), 2.0, dtype=torch.float64).log()
    assert torch.allclose(matching.discriminator_loss(undecided, undecided), 2 * log2)
    assert torch.allclose(matching.generator_loss(undecided), log2)


def test_sid_normaliser_is_constant_and_the_direction_opposes_dmd2s():
    x, D_real, D_fake = draws(0, 3, 2, 4, 4, count=3)
    D_real.requires_grad_()
    loss = matching.sid_loss(x, D_real, D_fake, alpha=0.0)
    (gradient,) = torch.autograd.grad(loss.sum(), D_real)
    a = matching.normaliser(x, D_real).reshape(-1, 1, 1, 1)
    assert torch.allclose(gradient, (2 * D_real - x - D_fake) / a)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(matching.sid_loss(x, D_real, D_fake, alpha=0.0).sum(), x)
    assert torch.allclose(gradient, matching.direction(x, D_real, D_fake))


def test_sid_sigmas_are_at_the_positions_of_the_noise_levels():
    levels = karras_sigmas(1001).flip(0)
    u = torch.arange(800, dtype=torch.float64) / 800
    assert torch.allclose(matching.sid_sigmas(u), levels[:800], rtol=1e-12, atol=0)


@quickly
@given(seeds, st.sampled_from(sorted(divergence.DIVERGENCES)), st.sampled_from([0.0, 0.5]))
def test_divergence_weights_have_mean_one_and_no_gradient(seed, kind, decay):
    logits = draws(seed, 16, 2, dtype=torch.float32)[0].mul(4).requires_grad_()
    bins = torch.randint(10, (16,), generator=torch.Generator().manual_seed(seed))
    r = divergence.density_ratio(logits)
    assert not r.requires_grad and r.min() >= 0.1 and r.max() <= 20
    r, _ = divergence.relative_ratio(r, bins, torch.ones(10), decay=decay)
    h = divergence.divergence_weight(kind, r)
    assert h.shape == (16,) and (h > 0).all() and abs(float(h.mean()) - 1) < 1e-4


@quickly
@given(seeds)
def test_weights_on_two_processes_equal_those_on_one(seed):
    r = draws(seed, 12)[0].exp()
    bins = torch.randint(5, (12,), generator=torch.Generator().manual_seed(seed))
    before = draws(seed + 1, 5)[0].exp()
    relative, after = divergence.relative_ratio(r, bins, before, decay=0.5)
    h = divergence.divergence_weight("js", relative)

    sums = []  # what each process contributes, in the order of the calls

    def recorded(values):
        sums.append(values)
        return values

    def both(values):
        return sum(sums)

    for part in (slice(0, 4), slice(4, 12)):
        divergence.relative_ratio(r[part], bins[part], before, decay=0.5, total=recorded)
    parts = [
        divergence.relative_ratio(r[p], bins[p], before, decay=0.5, total=both) for p in (slice(0, 4), slice(4, 12))
    ]
    assert all(torch.allclose(means, after) for _, means in parts)
    assert torch.allclose(torch.cat([part for part, _ in parts]), relative)
    sums.clear()
    for part, _ in parts:
        divergence.divergence_weight("js", part, total=recorded)
    assert torch.allclose(torch.cat([divergence.divergence_weight("js", part, total=both) for part, _ in parts]), h)


def test_bin_without_images_keeps_its_mean():
    before = torch.tensor([3.0, 5.0, 7.0])
    r, after = divergence.relative_ratio(torch.tensor([2.0, 4.0]), torch.tensor([1, 1]), before, decay=0.0)
    assert torch.allclose(after, torch.tensor([3.0, 3.0, 7.0])) and torch.allclose(r, torch.tensor([2.0, 4.0]) / 3)
    assert torch.equal(before, torch.tensor([3.0, 5.0, 7.0]))


def test_density_ratio_is_finite_for_any_logits():
    logits = torch.tensor([[float("nan"), 1.0], [float("inf"), 1.0], [-float("inf"), 1.0], [0.5, 1.5]])
    assert torch.allclose(divergence.density_ratio(logits), torch.tensor([1.0, 20.0, 0.1, 2.718282]))


def test_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match="divergence must be one of rkl, kl"):
        divergence.divergence_weight("tv", torch.ones(2))


@pytest.mark.parametrize("channels", [8, 16, 32, 48, 64, 256])
@pytest.mark.parametrize("width", [2, 4, 8, 16, 32])
def test_head_returns_one_logit_per_image(channels, width):
    head = DiscriminatorHead(channels, width)
    features = torch.randn(2, channels, width, width)
    logits = head(features)
    assert logits.shape == (2, 1) and logits.dtype == torch.float32
    assert torch.equal(head(features.half()), head(features.half().float()))
    assert torch.allclose(head(features[1:]), logits[1:], atol=1e-5)
    halvings = sum(layer.stride == (2, 2) and layer.padding == (1, 1) for layer in head if hasattr(layer, "stride"))
    assert halvings == {2: 1, 4: 1, 8: 1, 16: 2, 32: 3}[width]


def test_group_count_is_the_largest_divisor_up_to_32_or_a_quarter_of_few_channels():
    counts = {8: 2, 16: 4, 32: 8, 40: 20, 48: 24, 64: 32, 96: 32, 192: 32, 200: 25, 256: 32, 768: 32}
    assert {channels: group_count(channels) for channels in counts} == counts
    assert all(channels % group_count(channels) == 0 for channels in range(1, 300))


def test_heads_with_the_same_seed_are_the_same():
    heads = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            heads.append(DiscriminatorHead(8, 8).state_dict())
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])
