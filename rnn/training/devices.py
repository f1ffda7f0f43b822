"""Which device a name means on this machine."""

import contextlib
import ctypes

import psutil
import torch

from rnn.errors import DeviceError


def resolve_device(name: str) -> torch.device:
    """Return the device that a name means: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.

    Raises:
        DeviceError: if the name is none of those, or this machine has no such device.
    """
    here = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name == "auto":
        name = "cuda" if here else "cpu"
    if name == "cpu" or name in here:
        return torch.device(name)
    if name == "cuda" and here:
        return torch.device(here[0])
    allowed = ", ".join(["auto", "cpu", *here])
    raise DeviceError(f"device {name!r} is not on this machine; allowed: {allowed}; choose one")


def assign_devices(name: str, workers: int) -> list[str]:
    """Return which device each of a machine's workers takes: of several GPUs one after another.

    Args:
        name: what they are told, as for :func:`resolve_device`.
        workers: how many there are.
    """
    count = torch.cuda.device_count()
    if name not in ("auto", "cuda") or count < 2:
        return [name] * workers
    return [f"cuda:{worker % count}" for worker in range(workers)]


def available_memory(device: torch.device) -> int:
    """Return how many bytes a device has to spare."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch keeps for itself, and does not use, is to be had too.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    return psutil.virtual_memory().available


def trim_heap() -> None:
    """Let other processes, and whatever this one does next, have the memory that it has freed.

    GNU's C library keeps it for what is taken later; where there is another, nothing is done.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that a device's, or this machine's, memory was not enough."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # On the processor torch has no type of its own for it.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
