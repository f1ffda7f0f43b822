"""Device names, free memory, and equal results on GPU and CPU."""

import platform
import subprocess
import sys

import psutil
import pytest
import torch

from rnn.errors import DeviceError
from rnn.training.devices import is_out_of_memory, resolve_device, trim_heap


def test_cpu_is_always_available():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "cuda:x", "CPU"])
def test_unknown_device_is_refused_with_the_available_ones(name):
    with pytest.raises(DeviceError, match=r"expected one of auto, cpu") as refused:
        resolve_device(name)
    assert repr(name) in str(refused.value)


def test_trim_heap_returns_freed_memory_to_the_system():
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("not glibc")
    process = psutil.Process()
    tensors = [torch.ones(20_000) for _ in range(2_000)]  # 160 MB, each below the mmap threshold
    kept = tensors[::200]
    full = process.memory_info().rss
    del tensors
    assert process.memory_info().rss > full - 60_000_000, "already returned"
    trim_heap()
    assert process.memory_info().rss < full - 100_000_000
    assert all(bool((tensor == 1).all()) for tensor in kept)


ALLOCATE = """
import psutil, torch
from rnn.training.devices import keep_freed_memory
{call}
block = torch.ones(6_000_000)  # 24 MB
full = psutil.Process().memory_info().rss
del block
print(full - psutil.Process().memory_info().rss)
"""


@pytest.mark.extended
def test_process_keeps_freed_memory_only_if_it_is_told_to():
    """In other processes: the setting holds to a process's end."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("not glibc")
    returned = {}
    for call in ("pass", "keep_freed_memory()"):
        command = [sys.executable, "-c", ALLOCATE.format(call=call)]
        returned[call] = int(subprocess.run(command, capture_output=True, check=True).stdout)
    assert returned["pass"] > 20_000_000
    assert returned["keep_freed_memory()"] < 2_000_000


def test_out_of_memory_errors_are_recognized():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might …"))
    assert is_out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_error_that_hides_a_lack_of_memory_is_recognized():
    """As the end of a recording on a GPU does."""
    error = RuntimeError("operation failed due to a previous error during capture")
    assert not is_out_of_memory(error)
    error.__context__ = torch.OutOfMemoryError()
    assert is_out_of_memory(error)
