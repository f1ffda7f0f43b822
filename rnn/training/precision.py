"""The arithmetic of products: which precisions there are, and what has each of them fast."""

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from rnn.errors import DeviceError

Precision = Literal["fp32", "tf32", "bf16", "fp64"]
"""Of the arithmetic: ``bf16`` takes products in bfloat16 and all else in float32; ``tf32`` has a
GPU round the factors of products to ten bits; ``fp64`` is for checks of exactness."""


def supports_bf16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 numbers in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that a device does not have.

    Raises:
        DeviceError: if it is tf32, and the device no GPU that has it.
    """
    if precision != "tf32":
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise DeviceError(
            f"precision tf32 is not to be had on {device}; allowed: a GPU of compute capability "
            "8.0 or more; choose another --device, or begin a study of another --precision"
        )


def configure_matmul(precision: Precision, device: torch.device) -> None:
    """Have this process take its products on a device in a precision, as fast as they are had."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    elif precision == "fp32" and _onednn is not None:
        _onednn.fp32_precision = "bf16" if onednn_matmul_is_exact() else "ieee"


_onednn: Any = getattr(torch.backends.mkldnn, "matmul", None)
"""What chooses the library; None with a torch before 2.9, which lets nobody choose."""


@cache
def onednn_matmul_is_exact() -> bool:
    """Tell whether oneDNN takes float32 products in float32 though it may round their factors.

    There are two libraries in torch for a processor's products. Of MKL, AMD's processors get half
    of their vectors' width; of oneDNN the whole, but torch asks it for products of float32 numbers
    only where these may be rounded to bfloat16. It makes use of that on processors with AMX alone.
    On others its products are the same float32 ones, sooner; which is looked at here, not believed.
    """
    before = _onednn.fp32_precision
    _onednn.fp32_precision = "bf16"
    try:
        # Exact in float32, as is any sum of them; each is 1 in bfloat16.
        a = torch.full((4, 256, 256), 1 + 2.0**-15)
        ones = torch.ones_like(a)
        total = 256 * (1 + 2.0**-15)

        def is_exact(product: Tensor) -> bool:
            return bool((product == total).all())

        return (
            is_exact(torch.mm(a[0], ones[0]))
            and is_exact(torch.mm(ones[0].T, a[0]))
            and is_exact(torch.bmm(a, ones.mT))
            and is_exact(torch.baddbmm(torch.zeros(1, 1, 256), ones, a))
        )
    finally:
        _onednn.fp32_precision = before
