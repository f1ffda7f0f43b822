"""Number of networks in lockstep, and the device of each worker."""

import pytest
import torch
from user_cells import cell_config

from rnn.config import BaselineConfig, GatedConfig, TrialConfig
from rnn.network import estimate_memory
from rnn.training.devices import assign_devices
from search.worker import lockstep_size
from search.worker.lockstep_size import auto_lockstep

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def all_options(state_size, layers=2):
    return GatedConfig.with_every_option(layers, state_size)


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


@pytest.mark.parametrize(
    "architecture", [BaselineConfig("gru", 2, 32), all_options(32), cell_config("MinGRU", 2, 32)]
)
def test_cpu_trains_networks_by_autograd_in_lockstep_if_eight_fit(monkeypatch, architecture):
    config = TrialConfig(architecture, bptt_steps=2)
    size = estimate_memory(config, 256, "fp32")
    for fitting, expected in ((40, 32), (8, 8), (7, 1)):
        monkeypatch.setattr(lockstep_size, "_MAX_AUTOGRAD_BYTES", fitting * size)
        assert auto_lockstep(config, 256, "fp32", CPU) == expected


def test_network_that_cannot_be_stacked_trains_alone():
    assert auto_lockstep(TrialConfig(cell_config("TorchGRU", 1, 8)), 8, "fp32", CPU) == 1


def test_workers_of_a_machine_share_its_gpus(monkeypatch):
    assert assign_devices("auto", 3) == ["auto"] * 3 or torch.cuda.device_count() > 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", "cuda"):
        assert assign_devices(name, 5) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]
    assert assign_devices("cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert assign_devices("cpu", 2) == ["cpu", "cpu"]
