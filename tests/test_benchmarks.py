"""``python -m benchmarks``: names, options, and what it says about a machine without a GPU."""

import importlib

import pytest
import torch

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.gpu import estimate_seconds


def refuse(capsys, *arguments):
    """Return the message with which a command line is refused."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_of_every_name_exists(name):
    module, _, function = BENCHMARKS[name].partition(":")
    assert callable(getattr(importlib.import_module(f"benchmarks.{module}"), function))


def test_unknown_benchmark_is_refused_with_the_known_ones(capsys):
    message = refuse(capsys, "gpu", "spede")
    assert "benchmark 'spede' not found: expected one of audit, " in message


def test_device_is_refused_without_the_benchmark_of_a_gpu(capsys):
    assert "--device is of the benchmark gpu" in refuse(capsys, "claiming", "--device", "cpu")


def test_unknown_device_is_refused(capsys):
    assert "'tpu' not found" in refuse(capsys, "gpu", "--device", "tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_machine_without_a_gpu_is_named_in_one_line(capsys):
    message = refuse(capsys, "gpu")
    assert "no GPU: PyTorch finds none" in message
    assert "--device cpu" in message


def test_sizes_that_were_not_measured_are_interpolated_by_layers():
    assert estimate_seconds({(1, 8): 1.0, (2, 8): 2.0}, [(1, 8), (2, 8)]) == 3.0
    assert estimate_seconds({(1, 8): 1.0, (3, 8): 3.0}, [(1, 8), (2, 8), (3, 8)]) == 6.0
    assert estimate_seconds({(2, 8): 2.0}, [(1, 16)]) is None
