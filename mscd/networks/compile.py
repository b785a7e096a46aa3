"""Networks whose residual blocks are compiled."""

import torch

from mscd.networks.layers import UNetBlock

# Blocks of different widths share the code that is compiled for each; PyTorch's own bound would leave out some.
MOST_VARIANTS = 256


def compile_blocks(net: torch.nn.Module, mode: str) -> torch.nn.Module:
    """Compile the residual blocks of `net`, in place, at their next call; returns it.

    mode: torch.compile's, of which "reduce-overhead" and "max-autotune" use CUDA graphs on a GPU. Blocks by themselves
    compile faster than a whole network, as those alike share their code, and give gradients one after the other, which
    DistributedDataParallel sends while the next are computed. Names of parameters stay as they are.
    """
    torch._dynamo.config.recompile_limit = MOST_VARIANTS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for module in net.modules():
        if isinstance(module, UNetBlock):
            module.compile(mode=mode, fullgraph=True, dynamic=False)
    net.register_forward_pre_hook(_begin_pass)
    return net


def _begin_pass(*_: object) -> None:
    """Tell CUDA graphs that what blocks returned in the pass before is no longer needed."""
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
