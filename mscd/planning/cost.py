"""The cost of one evaluation of a network, counted on the network itself without memory or arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from mscd.evaluation.classifier import Classifier
from mscd.networks import EDMPrecond
from mscd.networks.meta import META

# PyTorch counts matrix products and convolutions, which is all that matters. Attention is counted only on the meta
# device, where it consists of matrix products; a CPU's or GPU's kernel for it may go uncounted.


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs per image (a multiply-add counts as two) of one evaluation, and of one with its backward pass."""

    forward: int
    forward_backward: int


def network_cost(net: EDMPrecond) -> Cost:
    """Return the cost of a network made by `meta_network`."""
    image = torch.zeros(1, net.img_channels, net.img_resolution, net.img_resolution, device=META)
    sigma = torch.ones(1, device=META)
    labels = torch.zeros(1, net.label_dim, device=META) if net.label_dim else None
    return _count(net, lambda: net(image, sigma, labels))


def classifier_cost(resolution: int, channels: int, label_dim: int) -> Cost:
    """Return the cost of the classifier whose features replace Inception's. Raises UserError as Classifier does."""
    with META:
        classifier = Classifier(resolution, channels, label_dim)
    image = torch.zeros(1, channels, resolution, resolution, device=META)
    return _count(classifier, lambda: classifier(image))


def _count(net: torch.nn.Module, evaluate: Callable[[], torch.Tensor]) -> Cost:
    net.train().requires_grad_(True)
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        evaluate()
    with FlopCounterMode(display=False) as both:
        torch.autograd.backward(evaluate().sum())
    return Cost(forward.get_total_flops(), both.get_total_flops())
