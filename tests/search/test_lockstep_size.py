"""Number of networks in lockstep, their memory, and the device of each worker."""

import gc
import itertools

import pytest
import torch

from rnn.config import STATE_SOURCES, BaselineConfig, GatedConfig, TrialConfig
from rnn.models.factory import build_network
from rnn.models.shapes import estimate_memory
from rnn.stacked.network import NetworkStack
from rnn.training.devices import assign_devices
from rnn.training.step import TrainStep
from search.worker import lockstep_size
from search.worker.lockstep_size import auto_lockstep

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def all_options(state_size, layers=2):
    return GatedConfig(True, True, True, True, True, "both", layers, state_size)


PLAIN = GatedConfig(False, False, False, False, False, "new", 3, 32)


def test_cpu_trains_small_networks_in_lockstep_and_large_ones_alone(monkeypatch):
    monkeypatch.setattr(lockstep_size, "pays_off", lambda *args: False)  # as without a compiler
    assert auto_lockstep(TrialConfig(all_options(32, 1)), 256, "fp32", CPU) == 32
    assert auto_lockstep(TrialConfig(all_options(64)), 32, "fp32", CPU) == 32
    assert auto_lockstep(TrialConfig(all_options(64)), 256, "fp32", CPU) == 1
    assert auto_lockstep(TrialConfig(all_options(256)), 256, "bf16", CPU) == 1


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_lockstep_size_is_limited_by_memory(monkeypatch, device):
    size = estimate_memory(TrialConfig(all_options(32, 3)), 256, "fp32")
    monkeypatch.setattr(lockstep_size, "available_memory", lambda device: 10 * size)
    assert auto_lockstep(TrialConfig(PLAIN), 256, "fp32", device) == 8
    monkeypatch.setattr(lockstep_size, "available_memory", lambda device: 1)
    assert auto_lockstep(TrialConfig(PLAIN), 256, "fp32", device) == 1


@pytest.mark.parametrize(("threads", "expected"), [(1, 8), (12, 12), (50, 32)])
def test_cpu_trains_few_networks_in_lockstep_by_the_library(monkeypatch, threads, expected):
    monkeypatch.setattr(lockstep_size, "pays_off", lambda *args: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert auto_lockstep(TrialConfig(all_options(32, 1)), 256, "fp32", CPU) == expected


def tensor_memory() -> dict[int, int]:
    """Return the bytes of every tensor storage by its address."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@pytest.mark.parametrize(
    ("precision", "size"),
    [("fp32", 32), pytest.param("bf16", 128, marks=pytest.mark.extended)],
)
@pytest.mark.parametrize(
    ("build", "most"),
    [(NetworkStack, 3), (build_network, 10)],  # the library keeps few intermediate results
    ids=["PyTorch", "fastest"],
)
def test_stack_takes_no_more_memory_than_estimated(build, most, precision, size):
    trial_configs = [
        TrialConfig(GatedConfig(*gates, True, source, 3, size))
        for *gates, source in itertools.product(*[[False, True]] * 4, STATE_SOURCES)
    ][::6]
    before = tensor_memory()
    program = TrainStep(build(trial_configs, 0, precision), 256, 0.9)
    tokens = torch.arange(256)
    program.step(tokens, tokens)
    allocated = sum(size for address, size in tensor_memory().items() if address not in before)
    estimate = sum(estimate_memory(trial_config, 256, precision) for trial_config in trial_configs)
    assert allocated < estimate < most * allocated
    del program


def test_network_that_cannot_be_stacked_trains_alone():
    for trial_config in (
        TrialConfig(BaselineConfig("gru", 1, 8)),
        TrialConfig(all_options(8), 0, 2),
    ):
        assert auto_lockstep(trial_config, 8, "fp32", CPU) == 1
    assert auto_lockstep(TrialConfig(all_options(8)), 8, "fp32", CPU) > 1


def test_workers_of_a_machine_share_its_gpus(monkeypatch):
    assert assign_devices("auto", 3) == ["auto"] * 3 or torch.cuda.device_count() > 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", "cuda"):
        assert assign_devices(name, 5) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]
    assert assign_devices("cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert assign_devices("cpu", 2) == ["cpu", "cpu"]
