"""Compilation of the residual blocks of a network."""

import torch

from mscd.networks.layers import UNetBlock

# Blocks share one function, which is compiled once per width; PyTorch's default limit would leave out some widths.
MOST_VARIANTS = 256


def compile_blocks(net: torch.nn.Module, mode: str) -> torch.nn.Module:
    """Compile the residual blocks of `net` in place, at their next call, and return `net`.

    mode: the mode of torch.compile; "reduce-overhead" and "max-autotune" use CUDA graphs on a GPU. Separate blocks
    compile faster than a whole network, because similar blocks share their code. They also produce their gradients one
    after the other, so DistributedDataParallel can send each while the next is computed. Parameter names do not change.
    """
    torch._dynamo.config.recompile_limit = MOST_VARIANTS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for module in net.modules():
        if isinstance(module, UNetBlock):
            module.compile(mode=mode, fullgraph=True, dynamic=False)
    net.register_forward_pre_hook(_begin_pass)
    return net


def _begin_pass(*_: object) -> None:
    """Inform CUDA graphs that the outputs of blocks from the previous pass are no longer needed."""
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
