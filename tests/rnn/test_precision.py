"""The precision of a study that leaves it open."""

import pytest
import torch

from rnn.precision import EngineShape, choose_precision
from rnn.training.devices import find_bf16_hardware

SMALL_TEXT = EngineShape("native", "gated", 32)
LARGE_LSTM = EngineShape("autograd", "lstm", 256)


@pytest.mark.parametrize(
    ("shapes", "hardware", "precision", "reason"),
    [
        ([SMALL_TEXT, LARGE_LSTM], "amx", "bf16", "every network trains faster in it"),
        ([SMALL_TEXT, LARGE_LSTM], "avx512", "fp32", "lstm of 256 states trains faster in it"),
        ([SMALL_TEXT], "avx512", "bf16", ""),
        ([SMALL_TEXT, EngineShape("autograd", "gru", 32)], "amx", "fp32", "gru of 32 states"),
        ([EngineShape("autograd", "MinGRU", 256)], "amx", "fp32", "MinGRU of 256 states"),
        ([EngineShape("autograd", "MinGRU", 512)], "amx", "bf16", ""),
        ([EngineShape("stacked", "gated", 32)], "amx", "fp32", ""),
        ([EngineShape("stacked", "gated", 32)], "gpu", "bf16", ""),
        ([EngineShape("autograd", "lstm", 1024)], "gpu", "fp32", ""),
        ([SMALL_TEXT], None, "fp32", "does not multiply bfloat16 numbers"),
    ],
)
def test_bfloat16_is_chosen_only_if_every_network_trains_faster_in_it(
    shapes, hardware, precision, reason
):
    found, why = choose_precision(shapes, hardware)
    assert found == precision
    assert reason in why


@pytest.mark.parametrize(
    ("amx", "avx512", "expected"),
    [(True, True, "amx"), (False, True, "avx512"), (False, False, None)],
)
def test_hardware_of_a_processor_is_found(monkeypatch, amx, avx512, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert find_bf16_hardware(torch.device("cpu")) == expected
