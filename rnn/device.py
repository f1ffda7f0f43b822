"""Which device a name means on this machine."""

import torch

from rnn.errors import DeviceError


def find_device(name: str) -> torch.device:
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


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that a device's, or this machine's, memory was not enough."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # On the processor torch has no type of its own for it.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
