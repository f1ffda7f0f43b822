"""Number of networks in lockstep, their memory, and the device of each worker."""

import gc
import itertools

import pytest
import torch

from rnn.config import STATE_SOURCES, BaselineConfig, GatedConfig, TrialConfig
from rnn.models.bptt_network import BPTTNetwork
from rnn.stacked.network import NetworkStack, estimate_memory
from rnn.training.devices import assign_devices
from rnn.training.step import TrainStep
from search.worker import lockstep
from search.worker.lockstep import auto_lockstep

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def everything(state_size, layers=2):
    return GatedConfig(True, True, True, True, True, "both", layers, state_size)


PLAIN = GatedConfig(False, False, False, False, False, "new", 3, 32)


def test_small_networks_are_trained_together_and_large_ones_alone_on_a_processor():
    assert auto_lockstep(TrialConfig(everything(32, 1)), 256, "fp32", CPU) == 32
    assert auto_lockstep(TrialConfig(everything(64)), 32, "fp32", CPU) == 32
    assert auto_lockstep(TrialConfig(everything(64)), 256, "fp32", CPU) == 1
    assert auto_lockstep(TrialConfig(everything(256)), 256, "bf16", CPU) == 1


def test_a_processors_worker_takes_no_more_memory_for_many_than_for_a_large_one():
    """Whichever of them was claimed first: its fellows may have everything on."""
    count = auto_lockstep(TrialConfig(PLAIN), 256, "bf16", CPU)
    assert count == auto_lockstep(TrialConfig(everything(32, 3)), 256, "bf16", CPU) > 16
    taken = count * estimate_memory(TrialConfig(everything(32, 3)), 256, "bf16")
    assert taken < 2 * estimate_memory(TrialConfig(everything(256, 3)), 256, "bf16")


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_no_more_are_trained_together_than_memory_has_room_for(monkeypatch, device):
    size = estimate_memory(TrialConfig(everything(32, 3)), 256, "fp32")
    monkeypatch.setattr(lockstep, "available_memory", lambda device: 10 * size)
    assert auto_lockstep(TrialConfig(PLAIN), 256, "fp32", device) == 8
    monkeypatch.setattr(lockstep, "available_memory", lambda device: 1)
    assert auto_lockstep(TrialConfig(PLAIN), 256, "fp32", device) == 1


def test_a_card_takes_a_whole_shape_group(monkeypatch):
    """96 networks of three layers and 256 states, on a card of 24 GB."""
    monkeypatch.setattr(lockstep, "available_memory", lambda device: 24 * 10**9)
    assert auto_lockstep(TrialConfig(everything(256, 3)), 256, "bf16", CUDA) >= 96


def tensors() -> dict[int, int]:
    """The memory of all tensors that there are: address to bytes."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in found]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@pytest.mark.parametrize(
    ("precision", "size"),
    [
        ("fp32", 32),
        ("bf16", 128),
        pytest.param("fp32", 128, marks=pytest.mark.extended),
        pytest.param("bf16", 32, marks=pytest.mark.extended),
    ],
)
def test_a_member_takes_no_more_memory_than_is_said(precision, size):
    trial_configs = [
        TrialConfig(GatedConfig(*gates, True, source, 3, size))
        for *gates, source in itertools.product(*[[False, True]] * 4, STATE_SOURCES)
    ][::6]
    before = tensors()
    program = TrainStep(NetworkStack(trial_configs, 0, precision), 256, 0.001, 0.9)
    tokens = torch.arange(256)
    program.step(tokens, tokens)
    taken = sum(size for place, size in tensors().items() if place not in before)
    said = sum(estimate_memory(trial_config, 256, precision) for trial_config in trial_configs)
    assert taken < said < 3 * taken
    del program


@pytest.mark.parametrize(
    ("architecture", "window", "precision"),
    [(everything(32), 12, "fp32"), (BaselineConfig("lstm", 2, 32), 12, "bf16")],
)
def test_one_with_a_window_takes_no_more_memory_than_is_said(architecture, window, precision):
    trial_config, tokens, kept = TrialConfig(architecture, 0, window), torch.arange(256), []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    before = tensors()
    program = TrainStep(BPTTNetwork([trial_config], 0, precision), 256, 0.001, 0.9)
    for _ in range(window):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            program.step(tokens, tokens)
    taken = sum(size for place, size in tensors().items() if place not in before)
    assert taken < estimate_memory(trial_config, 256, precision) < 8 * taken
    assert len(kept) > window
    del program


def test_network_that_cannot_be_stacked_trains_alone():
    for trial_config in (
        TrialConfig(BaselineConfig("gru", 1, 8)),
        TrialConfig(everything(8), 0, 2),
    ):
        assert auto_lockstep(trial_config, 8, "fp32", CPU) == 1
    assert auto_lockstep(TrialConfig(everything(8)), 8, "fp32", CPU) > 1


def test_workers_of_a_machine_share_its_cards(monkeypatch):
    assert assign_devices("auto", 3) == ["auto"] * 3 or torch.cuda.device_count() > 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", "cuda"):
        assert assign_devices(name, 5) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]
    assert assign_devices("cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert assign_devices("cpu", 2) == ["cpu", "cpu"]
