"""Speed of the networks relative to a plain eager build (plain_network.py): `python benchmarks/network.py`.

Times forward and forward-backward passes of the demo's network at batch 256 and of a small ADM network; for the demo's
network also with torch.compile, as training applies it (setting `compile`). On a GPU, times the ImageNet-64 ADM network
at 64 images instead, in fp16 and bf16, compiled and not, and reports the share of the card's measured matrix rate that
it reaches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from demo_run import BATCH, batch_of, network
from harness import Row, in_turns, main, medians, milliseconds
from plain_network import denoise

from mscd.networks import EDMPrecond
from mscd.networks.compile import compile_blocks
from mscd.networks.meta import meta_network
from mscd.planning.cost import network_cost

IMAGENET_BATCH = 64


def rows() -> list[Row]:
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        return [row for precision in ("fp16", "bf16") for row in imagenet_rows(precision)]
    demo = compared("demo's network", network(), BATCH, rounds=7, compiled=True)
    small = {"model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [16, 8]}
    adm = EDMPrecond(16, 3, 10, "DhariwalUNet", dropout=0.1, **small)
    return [*demo, *compared("ADM, 64 channels at 16x16", adm, 32, rounds=5, compiled=False)]


def compared(what: str, net: EDMPrecond, batch: int, rounds: int, compiled: bool) -> list[Row]:
    """Speed-ups over the plain build: forward-backward and forward alone.

    compiled: whether to include the compiled network, in forward-backward only.
    """
    nets = {"plain": lambda *given: denoise(net, *given), "mscd": net}
    if compiled:
        nets["compiled"] = compile_blocks(network(), "default").train()
    given = batch_of(net.train(), batch)
    both = {name: both_ways(each, given) for name, each in nets.items()}
    # Without gradients the compiled network would be compiled again, which takes a minute.
    forward = {name: one_way(each, given) for name, each in nets.items() if name != "compiled"}
    found = []
    for direction, functions, target in (("forward-backward", both, 1.3), ("forward", forward, None)):
        times = medians(in_turns(functions, rounds))
        for name in list(functions)[1:]:
            label = f"plain build / {name}, {direction}, {what}, batch {batch}"
            aim = target if what.startswith("demo") else None
            speed = times["plain"] / times[name]
            found.append(Row("network", label, speed, aim, "high", detail=milliseconds(times)))
    return found


def both_ways(evaluate: Callable, given: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    def run() -> None:
        evaluate(*given).sum().backward()

    return run


def one_way(evaluate: Callable, given: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        evaluate(*given)

    return run


def imagenet_rows(precision: str) -> list[Row]:
    """Speed-ups over the plain fp16 build, and the shares of the card's matrix rate."""
    net = network("imagenet64", precision=precision)
    compiled = compile_blocks(network("imagenet64", precision=precision), "default")
    plain = network("imagenet64", precision="fp16")
    given = batch_of(net, IMAGENET_BATCH)
    functions = {
        "plain fp16": both_ways(lambda *batch: denoise(plain.train(), *batch), given),
        f"mscd {precision}": both_ways(net.train(), given),
        f"compiled {precision}": both_ways(compiled.train(), given),
    }
    times = medians(in_turns(functions, rounds=15, warmup=3))
    flop = network_cost(meta_network(**net.init_kwargs)).forward_backward * IMAGENET_BATCH
    rate, found = matrix_rate(precision), []
    for name in list(functions)[1:]:
        label = f"forward-backward, ADM at batch {IMAGENET_BATCH}"
        speed = times["plain fp16"] / times[name]
        found.append(Row("network", f"plain fp16 / {name}, {label}", speed, 2, "high", detail=milliseconds(times)))
        share = flop / times[name] / rate
        found.append(
            Row("network", f"share of matrix rate, {name}, {label}", share, best="high", detail={"rate": rate})
        )
    return found


def matrix_rate(precision: str, size: int = 8192) -> float:
    """FLOP/s that the card reaches when it multiplies two matrices."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * size**3 / medians(in_turns({"product": lambda: a @ b}, rounds=20, warmup=5))["product"]


if __name__ == "__main__":
    main(rows, __doc__)
