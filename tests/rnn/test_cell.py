"""All switch combinations through one contract."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from rnn.architecture import GATE_INPUTS, STATE_SOURCES, Architecture, Member
from rnn.network import Population, initial_weights

BOOLEANS = (False, True)
SEED, LANES, SIZE = 7, 3, 5


def architectures(layers: int, gate_inputs: str) -> list[Architecture]:
    return [
        Architecture(*switches, source, layers, SIZE, gate_inputs)
        for switches in itertools.product(BOOLEANS, repeat=5)
        for source in STATE_SOURCES
    ]


ALL = [a for layers in (1, 2, 3) for gates in GATE_INPUTS for a in architectures(layers, gates)]


def test_there_are_96_combinations_of_switches():
    assert len(architectures(1, "state")) == 96


class PlainNetwork:
    """A slow reading of the equations: one network, one matrix a gate, nothing shared."""

    def __init__(self, architecture: Architecture):
        self.a = architecture
        self.w = {
            name: (weight.clone().requires_grad_(), bias.clone().requires_grad_())
            for name, (weight, bias) in initial_weights(Member(architecture), SEED).items()
        }

    def linear(self, name: str, *parts: Tensor) -> Tensor:
        weight, bias = self.w[name]
        return torch.cat(parts, dim=1) @ weight + bias

    def layer(self, i: int, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        a, name = self.a, f"layers.{i}."
        gated_x, gated_h = x, h
        if a.input_gate:
            gates = torch.sigmoid(self.linear(name + "input_gate", x, h))
            gated_x, gated_h = gates[:, :SIZE] * x, gates[:, SIZE:] * h
        u = torch.tanh(self.linear(name + "candidate", gated_x, gated_h))
        if a.state_gate:
            seen = (gated_x, gated_h, u) if a.gate_inputs == "candidate" else (gated_x, gated_h)
            z = torch.sigmoid(self.linear(name + "state_gate", *seen))
            u = z * u + (1 - z) * h
        if a.forget_gate:
            seen = (gated_x, gated_h, u) if a.gate_inputs == "candidate" else (gated_x, gated_h)
            u = torch.sigmoid(self.linear(name + "forget_gate", *seen)) * u
        r = []
        if a.state_source in ("new", "both"):
            r.append(u)
        if a.state_source in ("old", "both"):
            r.append(gated_h)
        if a.residual:
            r.append(x)
        o = self.linear(name + "read_out", *r)
        if a.output_gate:
            return torch.sigmoid(self.linear(name + "output_gate", o, *r)) * o, u.detach()
        return o * torch.sigmoid(o), u.detach()

    def step(self, symbols: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        one_hot = torch.nn.functional.one_hot(symbols, 256).double()
        x = self.linear("embedding", one_hot)
        after = []
        for i, h in enumerate(states):
            x, u = self.layer(i, x, h)
            after.append(u)
        return self.linear("head", x), after


def population_gradients(population: Population) -> dict[str, tuple[Tensor, Tensor] | None]:
    """The gradients of a network alone under the names of its architecture's products."""
    (member,) = population.members
    modules = {"embedding": population.embedding, "head": population.head}
    for i, cell in enumerate(population.cells):
        for name in ("input_gate", "candidate", "state_gate", "forget_gate"):
            modules[f"layers.{i}.{name}"] = getattr(cell, name)
        (read_out,) = cell.read_outs
        modules[f"layers.{i}.read_out"] = read_out.read_out
        modules[f"layers.{i}.output_gate"] = read_out.output_gate
    present = {name: module for name, module in modules.items() if module is not None}
    assert present.keys() == member.architecture.products().keys()
    return {
        name: None
        if module.weight.grad is None
        else (module.weight.grad[0], module.bias.grad[0, 0])
        for name, module in present.items()
    }


@pytest.mark.parametrize("architecture", ALL, ids=lambda a: f"{a.label} {a.gate_inputs}")
def test_contract(architecture: Architecture):
    population = Population([Member(architecture)], SEED, "fp64")
    plain = PlainNetwork(architecture)
    text = torch.tensor([[72, 101, 108], [108, 111, 32], [119, 111, 114], [0, 255, 7]])

    states = population.initial_state(LANES)
    plain_states = [torch.zeros(LANES, SIZE, dtype=torch.float64) for _ in states]
    for t in range(3):
        logits, states = population(text[t], states)
        expected, plain_states = plain.step(text[t], plain_states)

    # Shapes, and the equations.
    assert logits.shape == (1, LANES, 256)
    assert [state.shape for state in states] == [(1, LANES, SIZE)] * architecture.layers
    torch.testing.assert_close(logits[0], expected, rtol=1e-12, atol=1e-12)
    for state, plain_state in zip(states, plain_states, strict=True):
        torch.testing.assert_close(state[0], plain_state, rtol=1e-12, atol=1e-12)

    # No gradient through time.
    assert not any(state.requires_grad for state in states)

    # Gradient to every parameter that the output depends on, and to no other.
    losses = population.loss(logits, text[3])
    losses.mean(dim=1).sum().backward()
    torch.nn.functional.cross_entropy(expected, text[3]).backward()
    assert math.isclose(
        losses.mean().item(), torch.nn.functional.cross_entropy(expected, text[3]).item()
    )
    for name, gradient in population_gradients(population).items():
        weight, bias = plain.w[name]
        if weight.grad is None:
            assert gradient is None, f"{name} has a gradient, and nothing depends on it"
            continue
        assert gradient is not None, f"{name} has no gradient"
        torch.testing.assert_close(gradient[0], weight.grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient[1], bias.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("architecture", architectures(2, "state"), ids=lambda a: a.label)
def test_what_the_gradient_reaches(architecture: Architecture):
    """Said by hand, for the plain reading above shares the equations with the network."""
    population = Population([Member(architecture)], SEED, "fp64")
    states = [torch.rand(1, LANES, SIZE, dtype=torch.float64) for _ in range(2)]
    logits, _ = population(torch.tensor([1, 2, 3]), states)
    population.loss(logits, torch.tensor([4, 5, 6])).sum().backward()
    reached = {name for name, g in population_gradients(population).items() if g is not None}

    expected = {"head", "layers.1.read_out"}
    if architecture.output_gate:
        expected |= {"layers.1.output_gate"}
    feeds_state = {"candidate"}
    feeds_state |= {"state_gate"} if architecture.state_gate else set()
    feeds_state |= {"forget_gate"} if architecture.forget_gate else set()
    reads_new = architecture.state_source != "old"
    if reads_new:
        expected |= {f"layers.1.{name}" for name in feeds_state}
    # Without a way for the input to the output, what is below the last layer learns nothing; the
    # input gate's view of the old state is such a way.
    reads_input = reads_new or architecture.residual or architecture.input_gate
    if architecture.input_gate:
        expected |= {"layers.1.input_gate"} if reads_new or architecture.reads_old else set()
    if reads_input:
        expected |= {name.replace(".1.", ".0.") for name in expected if ".1." in name}
        expected |= {"embedding"}
    assert reached == expected


def test_no_product_is_there_for_a_switch_that_is_off():
    off = Architecture(False, False, False, False, False, "new", 1, SIZE)
    assert set(off.products()) == {"embedding", "layers.0.candidate", "layers.0.read_out", "head"}
    population = Population([Member(off)], SEED)
    assert sum(p.numel() for p in population.parameters()) == off.parameter_count()


@pytest.mark.parametrize("architecture", ALL[::7], ids=lambda a: f"{a.label} {a.gate_inputs}")
def test_parameter_count_is_that_of_the_network(architecture: Architecture):
    population = Population([Member(architecture)], SEED)
    assert sum(p.numel() for p in population.parameters()) == architecture.parameter_count()


def test_products_in_bfloat16_change_little_and_keep_float32_weights():
    architecture = Architecture(True, True, True, True, True, "both", 2, 32)
    full, mixed = (Population([Member(architecture)], SEED, p) for p in ("fp32", "bf16"))
    symbols = torch.tensor([1, 2, 3])
    expected, _ = full(symbols, full.initial_state(3))
    logits, states = mixed(symbols, mixed.initial_state(3))
    assert {p.dtype for p in mixed.parameters()} == {torch.float32}
    assert logits.dtype == states[0].dtype == torch.float32
    assert not torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.02)
