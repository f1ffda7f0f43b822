"""Cells and tasks that ship as examples, against equations written down anew or PyTorch's own."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import ROOT, write_chorales
from torch import nn

from rnn.own_code import CellSource, TaskSource, load_class, read_source

SWITCHES = [
    "input_gating",
    "forget_gating",
    "output_gating",
    "input_activation",
    "output_activation",
    "peepholes",
    "coupled_gates",
    "full_gate_recurrence",
]
ALLOWED = [
    dict(zip(SWITCHES, values, strict=True))
    for values in itertools.product([False, True], repeat=len(SWITCHES))
]
N = 3


@pytest.fixture(scope="module")
def variant():
    spec = "examples/cells/lstm_variants.py:LSTMVariant"
    return load_class(read_source(spec, ROOT, CellSource))


def is_allowed(options):
    gates = [options[name] for name in SWITCHES[:3]]
    if options["coupled_gates"] and not (gates[0] and gates[1]):
        return False
    return any(gates) or not (options["peepholes"] or options["full_gate_recurrence"])


def compute_step(cell, options, x, y, m, last):
    """Compute one step of a variant as the paper states it, a gate at a time."""
    is_coupled = options["coupled_gates"]
    has = {"i": options["input_gating"], "o": options["output_gating"]}
    has["f"] = options["forget_gating"] and not is_coupled
    names = [name for name in "ifo" if has[name]]
    rows = {name: slice(N * place, N * place + N) for place, name in enumerate(["u", *names])}

    def add(name):
        total = x @ cell.input.weight[rows[name]].T + cell.input.bias[rows[name]]
        return total + y @ cell.recurrent.weight[rows[name]].T

    def gate(name, memory):
        if not has[name]:
            return torch.ones_like(m)
        total = add(name)
        if options["peepholes"]:
            total = total + cell.peepholes[name] * memory
        if options["full_gate_recurrence"]:
            place = names.index(name) * N
            total = total + last @ cell.gate_recurrence.weight[place : place + N].T
        return torch.sigmoid(total)

    u = torch.tanh(add("u")) if options["input_activation"] else add("u")
    i = gate("i", m)
    f = 1 - i if is_coupled else gate("f", m)
    new = f * m + i * u
    o = gate("o", new)
    gates = {"i": i, "f": f, "o": o}
    out = o * (torch.tanh(new) if options["output_activation"] else new)
    return out, new, torch.cat([gates[name] for name in names], 1) if names else None


def test_every_combination_of_the_lstm_computes_the_equations_of_the_paper(variant):
    torch.manual_seed(0)
    found = [options for options in ALLOWED if is_allowed(options)]
    assert len(found) == 148  # of 256
    for options in found:
        cell = variant(N, N, **options).double()
        y, m = torch.randn(2, 4, N, dtype=torch.float64)
        state = cell.initial_state(4)
        last = torch.rand_like(state[2]) if len(state) == 3 else None
        x = torch.randn(4, N, dtype=torch.float64)
        out, new = cell(x, (y, m) if last is None else (y, m, last))
        expected = compute_step(cell, options, x, y, m, last)
        for actual, wanted in zip((out, *new[1:]), expected, strict=False):
            torch.testing.assert_close(actual, wanted)
        assert new[0] is out


def test_lstm_without_peepholes_is_that_of_pytorch(variant):
    torch.manual_seed(0)
    cell = variant(N, N)
    reference = nn.LSTM(N, N)
    order = torch.tensor([1, 2, 0, 3])  # PyTorch: i, f, u, o; here u, i, f, o
    with torch.no_grad():
        for name, ours in (("ih", cell.input.weight), ("hh", cell.recurrent.weight)):
            blocks = ours.unflatten(0, (4, N))[order]
            getattr(reference, f"weight_{name}_l0").copy_(blocks.flatten(0, 1))
        reference.bias_ih_l0.copy_(cell.input.bias.unflatten(0, (4, N))[order].flatten())
        reference.bias_hh_l0.zero_()
    x = torch.randn(6, 4, N)
    outputs, state = cell.forward_sequence(x, cell.initial_state(4))
    expected, (y, m) = reference(x)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(state, (y[0], m[0]))


def test_forget_bias_moves_the_gate_that_forgets(variant):
    torch.manual_seed(0)
    before = variant(N, N).input.bias
    torch.manual_seed(0)
    after = variant(N, N, forget_bias=1.0).input.bias
    assert (after - before).tolist() == pytest.approx([0] * 6 + [1] * 3 + [0] * 3)
    torch.manual_seed(0)
    before = variant(N, N, coupled_gates=True).input.bias
    torch.manual_seed(0)
    after = variant(N, N, coupled_gates=True, forget_bias=1.0).input.bias
    assert (after - before).tolist() == pytest.approx([0] * 3 + [-1] * 3 + [0] * 3)


@pytest.mark.parametrize(
    "options",
    [
        {"coupled_gates": True, "forget_gating": False},
        {"peepholes": True, **dict.fromkeys(SWITCHES[:3], False)},
    ],
)
def test_switches_that_exclude_each_other_are_refused(variant, options):
    with pytest.raises(ValueError, match="need"):
        variant(N, N, **options)


# ------------------------------------------------------------------ chorales


@pytest.fixture
def chorales(tmp_path):
    rolls = write_chorales(tmp_path / "JSB_Chorales.mat")
    source = read_source("examples/tasks/chorales.py:Chorales", ROOT, TaskSource)
    return load_class(source)(tmp_path, length=8), rolls


def test_chorales_ask_for_the_next_chord(chorales):
    task, rolls = chorales
    found = task.sample("train", np.random.default_rng(1), 50)
    assert found["inputs"].shape == found["targets"].shape == (50, 8, 88)
    whole = [roll.tobytes() for roll in rolls["traindata"][0]]
    lengths = set()
    for inputs, targets, mask in zip(*map(found.get, ("inputs", "targets", "mask")), strict=True):
        steps = int(mask.sum())
        assert mask[:steps].all()
        assert (inputs[1:steps] == targets[: steps - 1]).all()
        assert not inputs[steps:].any()
        played = np.concatenate((inputs[:1], targets[:steps])).astype(np.uint8).tobytes()
        assert any(played in chorale for chorale in whole)
        lengths.add(steps)
    assert lengths == {4, 8}  # a whole chorale of 5 chords, and pieces


def test_held_out_chorales_are_whole_and_the_same_each_time(chorales):
    task, rolls = chorales
    for split, name in (("validation", "validdata"), ("test", "testdata")):
        found = task.sample(split, np.random.default_rng(1), 3)
        assert found["mask"].sum(1).tolist() == [len(roll) - 1 for roll in rolls[name][0]]
        for place, roll in enumerate(rolls[name][0]):
            assert (found["targets"][place, : len(roll) - 1] == roll[1:]).all()


def test_loss_of_a_chord_is_summed_over_its_keys(chorales):
    task, _ = chorales
    targets = torch.zeros(2, 88)
    targets[0, :4] = 1
    outputs = torch.full((2, 88), -3.0)
    outputs[0, 2:6] = 2.0
    of_key = [math.log1p(math.exp(x)) for x in (3.0, -2.0, 2.0, -3.0)]
    expected = 2 * of_key[0] + 2 * of_key[1] + 2 * of_key[2] + 82 * of_key[3]
    losses = task.loss(outputs, targets)
    assert losses.tolist() == pytest.approx([expected, 88 * of_key[3]], rel=1e-5)
    assert task.accuracy(outputs, targets).tolist() == pytest.approx([2 / 6, 0])


def test_chorales_say_where_their_file_is(tmp_path):
    source = read_source("examples/tasks/chorales.py:Chorales", ROOT, TaskSource)
    with pytest.raises(FileNotFoundError, match=r"JSB_Chorales.mat not found: .*chorales.md says"):
        load_class(source)(tmp_path)
