"""Devices of this machine: their memory, and the precision and library of matrix products."""

import contextlib
import ctypes
from functools import cache
from typing import Any

import torch

from rnn.config import Precision
from rnn.errors import DeviceError
from rnn.precision import Bf16Hardware

_onednn: Any = getattr(torch.backends.mkldnn, "matmul", None)
"""The setting that selects oneDNN for matrix products; None before torch 2.9."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
"""Options of glibc's ``mallopt``."""


def resolve_device(name: str) -> torch.device:
    """Return the device of a name: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.

    Raises:
        DeviceError: if the name is unknown, or this machine has no such device.
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if name == "cpu" or name in gpus:
        return torch.device(name)
    if name == "cuda" and gpus:
        return torch.device(gpus[0])
    expected = ", ".join(["auto", "cpu", *gpus])
    raise DeviceError(f"device {name!r} not found on this machine: expected one of {expected}")


def assign_devices(name: str, workers: int) -> list[str]:
    """Assign a device to each worker of a machine, several GPUs in turn.

    Args:
        name: device name as for :func:`resolve_device`.
        workers: number of workers.
    """
    count = torch.cuda.device_count()
    if name not in ("auto", "cuda") or count < 2:
        return [name] * workers
    return [f"cuda:{worker % count}" for worker in range(workers)]


def available_memory(device: torch.device) -> int:
    """Return the free memory of a device, in bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch's allocator has reserved but does not use is available as well.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    import psutil  # here: training on a GPU needs PyTorch and NumPy alone

    return psutil.virtual_memory().available


def keep_freed_memory() -> None:
    """Make this process keep memory that it frees; without effect if the C library is not glibc.

    By default glibc returns large blocks to the operating system. A training step that frees and
    allocates the same blocks again then spends up to half of its time on page faults.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 2**25)  # the largest value that glibc accepts


# ------------------------------------------------------------------ precision


def find_bf16_hardware(device: torch.device) -> Bf16Hardware | None:
    """Return what of a device multiplies bfloat16 numbers, if anything does."""
    if device.type == "cuda":
        return "gpu" if torch.cuda.get_device_capability(device) >= (8, 0) else None
    if torch.cpu._is_amx_tile_supported():
        return "amx"
    return "avx512" if torch.cpu._is_avx512_bf16_supported() else None


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
        products = (
            torch.mm(a[0], ones[0]),
            torch.mm(ones[0].T, a[0]),
            torch.bmm(a, ones.mT),
            torch.baddbmm(torch.zeros(1, 1, 256), ones, a),
        )
        return all(bool((product == 256 * a[0, 0, 0]).all()) for product in products)
    finally:
        _onednn.fp32_precision = before
