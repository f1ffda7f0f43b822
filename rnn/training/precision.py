"""Numerical precision of matrix products, and which library computes them."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from rnn.config import Precision
from rnn.errors import DeviceError

_onednn: Any = getattr(torch.backends.mkldnn, "matmul", None)
"""The setting that selects oneDNN for matrix products; None before torch 2.9."""


def supports_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 numbers in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def check_precision(precision: str, device: torch.device) -> None:
    """Check that a device supports a precision.

    Raises:
        DeviceError: if the precision is tf32 and the device is not a GPU that supports it.
    """
    if precision != "tf32":
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise DeviceError(
            f"precision tf32 is not supported on {device}: expected a GPU of compute capability "
            "8.0 or more; choose another --device, or create a study with another --precision"
        )


def configure_matmul(precision: Precision, device: torch.device) -> None:
    """Configure this process for the fastest matrix products of a precision on a device."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    elif precision == "fp32" and _onednn is not None:
        _onednn.fp32_precision = "bf16" if onednn_matmul_is_exact() else "ieee"


@cache
def onednn_matmul_is_exact() -> bool:
    """Test whether oneDNN multiplies in float32 even if it is allowed to round to bfloat16.

    For float32 products torch uses oneDNN only if it may round the factors to bfloat16; otherwise
    it uses MKL, which reaches half the speed on AMD CPUs. oneDNN rounds only on CPUs with AMX. On
    others its products are float32 and faster, which this function verifies by computing some.
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
