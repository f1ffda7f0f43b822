"""How many networks a worker trains together, where nobody has said; which device each takes."""

import gc
import itertools

import pytest
import torch

from rnn.architecture import STATE_SOURCES, Architecture
from rnn.device import share_devices
from rnn.known_cell import KnownCell
from rnn.member import Member
from rnn.network import Population, member_bytes
from rnn.program import Program
from rnn.unrolled import Unrolled
from search import populations
from search.populations import useful_population

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def everything(state_size, layers=2):
    return Architecture(True, True, True, True, True, "both", layers, state_size)


PLAIN = Architecture(False, False, False, False, False, "new", 3, 32)


def test_small_networks_are_trained_together_and_large_ones_alone_on_a_processor():
    assert useful_population(Member(everything(32, 1)), 256, "fp32", CPU) == 32
    assert useful_population(Member(everything(64)), 32, "fp32", CPU) == 32
    assert useful_population(Member(everything(64)), 256, "fp32", CPU) == 1
    assert useful_population(Member(everything(256)), 256, "bf16", CPU) == 1


def test_a_processors_worker_takes_no_more_memory_for_many_than_for_a_large_one():
    """Whichever of them was claimed first: its fellows may have everything on."""
    count = useful_population(Member(PLAIN), 256, "bf16", CPU)
    assert count == useful_population(Member(everything(32, 3)), 256, "bf16", CPU) > 16
    taken = count * member_bytes(Member(everything(32, 3)), 256, "bf16")
    assert taken < 2 * member_bytes(Member(everything(256, 3)), 256, "bf16")


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_no_more_are_trained_together_than_memory_has_room_for(monkeypatch, device):
    size = member_bytes(Member(everything(32, 3)), 256, "fp32")
    monkeypatch.setattr(populations, "free_memory", lambda device: 10 * size)
    assert useful_population(Member(PLAIN), 256, "fp32", device) == 8
    monkeypatch.setattr(populations, "free_memory", lambda device: 1)
    assert useful_population(Member(PLAIN), 256, "fp32", device) == 1


def test_a_card_takes_a_whole_shape_group(monkeypatch):
    """96 networks of three layers and 256 states, on a card of 24 GB."""
    monkeypatch.setattr(populations, "free_memory", lambda device: 24 * 10**9)
    assert useful_population(Member(everything(256, 3)), 256, "bf16", CUDA) >= 96


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
    members = [
        Member(Architecture(*gates, True, source, 3, size))
        for *gates, source in itertools.product(*[[False, True]] * 4, STATE_SOURCES)
    ][::6]
    before = tensors()
    program = Program(Population(members, 0, precision), 256, 0.001, 0.9)
    symbols = torch.arange(256)
    program.step(symbols, symbols)
    taken = sum(size for place, size in tensors().items() if place not in before)
    said = sum(member_bytes(member, 256, precision) for member in members)
    assert taken < said < 3 * taken
    del program


@pytest.mark.parametrize(
    ("architecture", "window", "precision"),
    [(everything(32), 12, "fp32"), (KnownCell("lstm", 2, 32), 12, "bf16")],
)
def test_one_with_a_window_takes_no_more_memory_than_is_said(architecture, window, precision):
    member, symbols, kept = Member(architecture, 0, window), torch.arange(256), []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    before = tensors()
    program = Program(Unrolled([member], 0, precision), 256, 0.001, 0.9)
    for _ in range(window):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            program.step(symbols, symbols)
    taken = sum(size for place, size in tensors().items() if place not in before)
    assert taken < member_bytes(member, 256, precision) < 8 * taken
    assert len(kept) > window
    del program


def test_what_is_not_trained_in_lockstep_is_alone():
    for member in (Member(KnownCell("gru", 1, 8)), Member(everything(8), 0, 2)):
        assert useful_population(member, 8, "fp32", CPU) == 1
    assert useful_population(Member(everything(8)), 8, "fp32", CPU) > 1


def test_workers_of_a_machine_share_its_cards(monkeypatch):
    assert share_devices("auto", 3) == ["auto"] * 3 or torch.cuda.device_count() > 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", "cuda"):
        assert share_devices(name, 5) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]
    assert share_devices("cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert share_devices("cpu", 2) == ["cpu", "cpu"]
