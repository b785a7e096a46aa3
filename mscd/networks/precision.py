"""Number formats that a U-Net computes in, and what a device makes of them."""

import functools
import os

import torch

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype in which a network of `precision` (a key of PRECISIONS) runs on `device`.

    A CPU computes fp16 in float32, as the reference does, and bf16 too where it has no instructions for it.
    """
    if device.type == "cpu" and (precision == "fp16" or precision == "bf16" and not cpu_computes_bf16()):
        return torch.float32
    return PRECISIONS[precision]


@functools.cache
def cpu_computes_bf16() -> bool:
    """Whether oneDNN has bfloat16 kernels for this processor; PyTorch's own are many times slower than float32."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_matrix_format(precision: str) -> None:
    """Set, for the whole process, whether a GPU multiplies float32 matrices in TensorFloat-32: for "tf32" alone.

    PyTorch would by itself do so in convolutions and not elsewhere.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def choose_repeatable_kernels(device: torch.device) -> None:
    """Have a GPU add up in the same order each time, for the whole process: without it, gradients of attention (bf16)
    and of convolutions (fp32) differ from run to run in their last bits. A CPU does so anyway."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for; read at its first product
        torch.use_deterministic_algorithms(True)
        # Filling takes time, and nothing here reads such memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
