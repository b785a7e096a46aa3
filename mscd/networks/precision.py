"""Number formats in which a U-Net computes, and how a device supports them."""

import functools
import os

import torch

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype in which a network of `precision` (a key of PRECISIONS) runs on `device`.

    A CPU computes fp16 in float32, as the reference implementation does. It also computes bf16 in float32 if it has no
    instructions for bf16.
    """
    if device.type == "cpu" and (precision == "fp16" or precision == "bf16" and not cpu_computes_bf16()):
        return torch.float32
    return PRECISIONS[precision]


@functools.cache
def cpu_computes_bf16() -> bool:
    """Return whether oneDNN has bfloat16 kernels for this CPU; PyTorch's own are many times slower than float32."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_matrix_format(precision: str) -> None:
    """Allow a GPU to multiply float32 matrices in TensorFloat-32 only if `precision` is "tf32", for the whole process.

    By default, PyTorch does so in convolutions but not elsewhere.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def choose_repeatable_kernels(device: torch.device) -> None:
    """Make a GPU sum in the same order every time, for the whole process; a CPU always does.

    Without this, a GPU's gradients of attention (bf16) and of convolutions (fp32) differ between runs in the last bits.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for cuBLAS, which reads it at its first product
        torch.use_deterministic_algorithms(True)
    # Filling uninitialised memory takes time, and nothing here reads such memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
