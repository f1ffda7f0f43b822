"""Device names, memory, precisions and their choice, and the library for matrix products."""

import contextlib
import itertools

import pytest
import torch

from rnn.errors import DeviceError, is_out_of_memory
from rnn.precision import EngineShape, choose_precision
from rnn.training import devices
from rnn.training.devices import (
    check_precision,
    configure_matmul,
    find_bf16_hardware,
    onednn_matmul_is_exact,
    resolve_device,
)


def test_cpu_is_always_available():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "cuda:x", "CPU"])
def test_unknown_device_is_refused_with_the_available_ones(name):
    with pytest.raises(DeviceError, match=r"expected one of auto, cpu") as refused:
        resolve_device(name)
    assert repr(name) in str(refused.value)


def test_out_of_memory_errors_are_recognized():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might …"))
    assert is_out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    # As the end of a recording on a GPU, which hides its cause.
    error = RuntimeError("operation failed due to a previous error during capture")
    assert not is_out_of_memory(error)
    error.__context__ = torch.OutOfMemoryError()
    assert is_out_of_memory(error)


# ------------------------------------------------------------------ precisions

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize(
    ("capability", "is_supported"), [((7, 5), False), ((8, 0), True), ((9, 0), True)]
)
def test_gpus_support_bf16_and_tf32_from_compute_capability_8(
    monkeypatch, capability, is_supported
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert find_bf16_hardware(CUDA) == ("gpu" if is_supported else None)
    expected = r"tf32 .* cuda:0: expected a GPU of compute cap"
    with contextlib.nullcontext() if is_supported else pytest.raises(DeviceError, match=expected):
        check_precision("tf32", CUDA)
    check_precision("fp32", CUDA)
    check_precision("bf16", CPU)
    with pytest.raises(DeviceError, match="cpu"):
        check_precision("tf32", CPU)


@pytest.fixture
def onednn():
    """torch's setting for oneDNN, restored after the test."""
    if devices._onednn is None:
        pytest.skip("this torch has no setting for oneDNN")
    before = devices._onednn.fp32_precision
    yield devices._onednn
    devices._onednn.fp32_precision = before
    onednn_matmul_is_exact.cache_clear()


@pytest.mark.parametrize("shape", [(16, 6, 18), (16, 768, 256)], ids=str)
def test_float32_products_are_accurate_to_float32(shape, onednn):
    """Within the bound that holds for any order of summation (Higham 2002, 3.5)."""
    configure_matmul("fp32", CPU)
    i, j, k = shape
    generator = torch.Generator().manual_seed(0)
    for transpose_a, transpose_b in itertools.product((False, True), repeat=2):
        a = torch.rand(3, *((j, i) if transpose_a else (i, j)), generator=generator)
        b = torch.rand(3, *((k, j) if transpose_b else (j, k)), generator=generator)
        a, b = (a.mT if transpose_a else a), (b.mT if transpose_b else b)
        exact = a.double() @ b.double()
        bound = j * 2.0**-24 * 1.01 * exact  # all factors are positive
        bias = torch.zeros(3, 1, k)
        for product in (torch.bmm(a, b), torch.baddbmm(bias, a, b)):
            assert ((product.double() - exact).abs() <= bound).all()
        assert ((torch.mm(a[0], b[0]).double() - exact[0]).abs() <= bound[0]).all()


def test_onednn_is_selected_if_it_is_exact(onednn, monkeypatch):
    monkeypatch.setattr(devices, "onednn_matmul_is_exact", lambda: True)
    configure_matmul("fp32", CPU)
    assert onednn.fp32_precision == "bf16"


def test_onednn_is_not_selected_if_it_rounds_as_with_amx(onednn, monkeypatch):
    exact = torch.bmm

    def bmm(a, b):
        rounds = onednn.fp32_precision == "bf16"
        return torch.matmul(a.bfloat16(), b.bfloat16()).float() if rounds else exact(a, b)

    onednn_matmul_is_exact.cache_clear()
    monkeypatch.setattr(torch, "bmm", bmm)
    configure_matmul("fp32", CPU)
    assert onednn.fp32_precision == "ieee"
    x = torch.full((1, 8, 8), 1.001)
    assert torch.equal(torch.bmm(x, x), exact(x, x))


def test_torch_without_the_setting_for_onednn_is_supported(monkeypatch):
    monkeypatch.setattr(devices, "_onednn", None)
    configure_matmul("fp32", CPU)


# ------------------------------------------------------------------ the choice of a precision


SMALL_TEXT = EngineShape("native", "gated", 32)
LARGE_LSTM = EngineShape("autograd", "lstm", 256)


@pytest.mark.parametrize(
    ("shapes", "hardware", "precision", "reason"),
    [
        ([SMALL_TEXT, LARGE_LSTM], "amx", "bf16", "every network trains faster in it"),
        ([SMALL_TEXT, LARGE_LSTM], "avx512", "fp32", "lstm of 256 states trains faster in it"),
        ([SMALL_TEXT], "avx512", "bf16", ""),
        ([SMALL_TEXT, EngineShape("autograd", "gru", 32)], "amx", "fp32", "gru of 32 states"),
        ([EngineShape("autograd", "elman", 128, True)], "amx", "bf16", ""),
        ([EngineShape("autograd", "gru", 64, True)], "amx", "fp32", "gru of 64 states"),
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
