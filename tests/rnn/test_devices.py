"""Which device a name means, and that a graphics card gives what the processor gives."""

import platform

import numpy as np
import psutil
import pytest
import torch

from rnn.config import GatedConfig, TrialConfig
from rnn.errors import DeviceError
from rnn.stacked.network import NetworkStack
from rnn.training.devices import is_out_of_memory, resolve_device, trim_heap
from rnn.training.loop import TrainConfig, TrainLoop


def test_the_processor_is_always_there():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "cuda:x", "CPU"])
def test_a_device_that_is_not_there_is_answered_with_those_that_are(name):
    with pytest.raises(DeviceError, match=r"expected one of auto, cpu") as refused:
        resolve_device(name)
    assert repr(name) in str(refused.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card on this machine")
def test_a_graphics_card_trains_as_the_processor_does():
    text = np.frombuffer(b"It was the best of times, it was the worst of times. " * 30, np.uint8)
    settings = TrainConfig(20, 6, 9, 2, 0.01, 0.9, 3)
    configs = [
        TrialConfig(GatedConfig(False, True, False, True, True, "new", 2, 8)),
        TrialConfig(GatedConfig(True, True, True, True, True, "both", 2, 8)),
    ]
    curves = []
    for device in ("cpu", "cuda"):
        stack = NetworkStack(configs, 1, "fp64", device=resolve_device(device))
        curves.append([point.ema_losses for point in TrainLoop(stack, text, settings).train()])
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-9)


def test_memory_that_is_free_is_given_back():
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library")
    process = psutil.Process()
    pieces = [torch.ones(20_000) for _ in range(2_000)]  # 160 MB, each too small to be its own
    kept = pieces[::200]
    full = process.memory_info().rss
    del pieces
    assert process.memory_info().rss > full - 60_000_000, "it was not kept"
    trim_heap()
    assert process.memory_info().rss < full - 100_000_000
    assert all(bool((piece == 1).all()) for piece in kept)


def test_a_lack_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
