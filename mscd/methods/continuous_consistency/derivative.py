"""The exact derivative of a network along a direction, in forward mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


def value_and_derivative(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    X: torch.Tensor,
    t: torch.Tensor,
    dX: torch.Tensor,
    dt: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return function(X, t) and its derivative along (dX, dt), both without gradient and in the function's dtype.

    X and dX are [N, C, H, W], t and dt [N], all of one dtype. What else the function depends on, such as labels and
    weights, is constant. The derivative costs little more than one further evaluation. Compiled code has none.
    """
    # Only attention that is written out has a forward mode.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _ConstantWeights():
        value, derivative = torch.func.jvp(function, (X, t), (dX, dt))  # type: ignore[misc]
    return value, derivative


class _ConstantWeights(TorchFunctionMode):
    """Differentiate convolutions and linear layers by their input only.

    PyTorch also applies the weight's derivative, a tensor of zeros, which would take as long again.
    """

    LAYERS = (torch.conv2d, torch.conv_transpose2d, F.linear)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        if func in self.LAYERS:
            x, weight, *rest = args
            value, tangent = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
            if tangent is not None:
                without_bias = {name: option for name, option in options.items() if name != "bias"}
                derivative = func(tangent, weight, None, *rest[1:], **without_bias)
                return forward_ad.make_dual(func(value, weight, *rest, **options), derivative)  # type: ignore[no-untyped-call]
        return func(*args, **options)
