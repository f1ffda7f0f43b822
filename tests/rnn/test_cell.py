"""All switch combinations through one contract."""

import itertools

import torch
from network_configs import each_of
from torch import Tensor

from rnn.config import GATE_INPUTS, STATE_SOURCES, GatedConfig, TrialConfig
from rnn.stacked.flat_parameters import NamedTensors
from rnn.stacked.network import NetworkStack, draw_initial_weights

BOOLEANS = (False, True)
SEED, STREAMS, SIZE = 7, 3, 5


def architectures(layers: int, gate_inputs: str) -> list[GatedConfig]:
    return [
        GatedConfig(*switches, source, layers, SIZE, gate_inputs)
        for switches in itertools.product(BOOLEANS, repeat=5)
        for source in STATE_SOURCES
    ]


ALL = [a for layers in (1, 2, 3) for gates in GATE_INPUTS for a in architectures(layers, gates)]


def test_there_are_96_combinations_of_switches():
    assert len(architectures(1, "state")) == 96


class PlainNetwork:
    """A slow reading of the equations: one network, one matrix a gate, nothing shared."""

    def __init__(self, architecture: GatedConfig):
        self.a = architecture
        initial = draw_initial_weights(TrialConfig(architecture), SEED)
        self.w = {
            name: (weight.clone().requires_grad_(), bias.clone().requires_grad_())
            for name, (weight, bias) in initial.items()
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

    def step(self, tokens: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        one_hot = torch.nn.functional.one_hot(tokens, 256).double()
        x = self.linear("embedding", one_hot)
        after = []
        for i, h in enumerate(states):
            x, u = self.layer(i, x, h)
            after.append(u)
        return self.linear("head", x), after


def advance(stack: NetworkStack, tokens: Tensor, states: list[Tensor]) -> Tensor:
    """One step forward, with the states replaced by the next ones; the logits (K, B, V)."""
    logits, after = stack.forward(stack.prepare_inputs(tokens), states)
    for state, new in zip(states, after, strict=True):
        state.copy_(new)
    return logits


def gradients(stack: NetworkStack, k: int = 0) -> NamedTensors:
    """A member's gradients under the names of its architecture's products."""
    return stack.parameters.extract(k, stack.parameters.grads)


@each_of(ALL)
def test_contract(architecture: GatedConfig):
    stack = NetworkStack([TrialConfig(architecture)], SEED, "fp64")
    plain = PlainNetwork(architecture)
    # Two lanes read the same now and then.
    text = torch.tensor([[72, 101, 72], [108, 111, 32], [119, 119, 114], [0, 255, 7]])

    states = stack.init_state(STREAMS)
    plain_states = [torch.zeros(STREAMS, SIZE, dtype=torch.float64) for _ in states]
    for t in range(2):
        logits = advance(stack, text[t], states)
        expected, plain_states = plain.step(text[t], plain_states)

    # Shapes, and the equations.
    assert logits.shape == (1, STREAMS, 256)
    assert [state.shape for state in states] == [(1, STREAMS, SIZE)] * architecture.layers
    torch.testing.assert_close(logits[0], expected.detach(), rtol=1e-12, atol=1e-12)
    for state, plain_state in zip(states, plain_states, strict=True):
        torch.testing.assert_close(state[0], plain_state, rtol=1e-12, atol=1e-12)

    # The loss, and its gradient to every parameter that it depends on within the step.
    losses, after = stack.loss_and_grad(stack.prepare_inputs(text[2]), text[3], states)
    expected, plain_states = plain.step(text[2], plain_states)
    expected_loss = torch.nn.functional.cross_entropy(expected, text[3])
    expected_loss.backward()
    torch.testing.assert_close(losses[0], expected_loss.detach(), rtol=1e-12, atol=1e-12)
    for state, plain_state in zip(after, plain_states, strict=True):
        torch.testing.assert_close(state[0], plain_state, rtol=1e-12, atol=1e-12)
    for name, found in gradients(stack).items():
        for own, reference in zip(found, plain.w[name], strict=True):
            wanted = torch.zeros_like(own) if reference.grad is None else reference.grad
            torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-12)


@each_of(ALL)
def test_gradients_are_the_slopes_of_the_loss(architecture: GatedConfig):
    """By torch's gradcheck: the loss at points nearby, without anybody's backward pass."""
    stack = NetworkStack([TrialConfig(architecture)], SEED, "fp64", vocab_size=7)
    values = stack.parameters.values
    reads, targets = stack.prepare_inputs(torch.tensor([1, 2, 1])), torch.tensor([4, 5, 6])
    states = [torch.rand(1, STREAMS, SIZE, dtype=torch.float64) for _ in range(architecture.layers)]

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weights):
            values.copy_(weights)
            losses, _ = stack.loss_and_grad(reads, targets, states)
            ctx.save_for_backward(stack.parameters.grads.clone())
            return losses.sum()

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0]

    weights = values.clone().requires_grad_()
    assert torch.autograd.gradcheck(Loss.apply, (weights,), fast_mode=True)


@each_of(architectures(2, "state"))
def test_what_the_gradient_reaches(architecture: GatedConfig):
    """Said by hand, for the plain reading above shares the equations with the network."""
    stack = NetworkStack([TrialConfig(architecture)], SEED, "fp64")
    states = [torch.rand(1, STREAMS, SIZE, dtype=torch.float64) for _ in range(2)]
    reads = stack.prepare_inputs(torch.tensor([1, 2, 3]))
    stack.loss_and_grad(reads, torch.tensor([4, 5, 6]), states)
    reached = {name for name, (weight, _) in gradients(stack).items() if weight.any()}

    expected = {"head", "layers.1.read_out"}
    if architecture.output_gate:
        expected |= {"layers.1.output_gate"}
    feeds_state = {"candidate"}
    feeds_state |= {"state_gate"} if architecture.state_gate else set()
    feeds_state |= {"forget_gate"} if architecture.forget_gate else set()
    reads_new_state = architecture.state_source != "old"
    if reads_new_state:
        expected |= {f"layers.1.{name}" for name in feeds_state}
    # Without a way for the input to the output, what is below the last layer learns nothing; the
    # input gate's view of the old state is such a way.
    reads_input = reads_new_state or architecture.residual or architecture.input_gate
    if architecture.input_gate:
        expected |= (
            {"layers.1.input_gate"}
            if reads_new_state or architecture.reads_previous_state
            else set()
        )
    if reads_input:
        expected |= {name.replace(".1.", ".0.") for name in expected if ".1." in name}
        expected |= {"embedding"}
    assert reached == expected


def test_no_product_is_there_for_a_switch_that_is_off():
    off = GatedConfig(False, False, False, False, False, "new", 1, SIZE)
    assert set(off.param_shapes()) == {
        "embedding",
        "layers.0.candidate",
        "layers.0.read_out",
        "head",
    }
    stack = NetworkStack([TrialConfig(off)], SEED)
    counted = sum(
        w.numel() + b.numel()
        for w, b in stack.parameters.extract(0, stack.parameters.values).values()
    )
    assert counted == off.parameter_count()


@each_of(ALL)
def test_parameter_count_is_that_of_the_network(architecture: GatedConfig):
    stack = NetworkStack([TrialConfig(architecture)], SEED)
    counted = sum(
        w.numel() + b.numel()
        for w, b in stack.parameters.extract(0, stack.parameters.values).values()
    )
    assert counted == architecture.parameter_count()


def test_products_in_bfloat16_change_little_and_keep_float32_weights():
    architecture = GatedConfig(True, True, True, True, True, "both", 2, 32)
    full, mixed = (NetworkStack([TrialConfig(architecture)], SEED, p) for p in ("fp32", "bf16"))
    tokens = torch.tensor([1, 2, 3])
    expected_states, states = full.init_state(3), mixed.init_state(3)
    expected = advance(full, tokens, expected_states)
    logits = advance(mixed, tokens, states)
    assert mixed.parameters.values.dtype == logits.dtype == states[0].dtype == torch.float32
    assert not torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.02)
    for stack, start in ((full, expected_states), (mixed, states)):
        stack.loss_and_grad(stack.prepare_inputs(tokens), tokens, start)
    assert mixed.parameters.grads.dtype == torch.float32
    for name, (weight, bias) in gradients(full).items():
        for own, reference in zip(gradients(mixed)[name], (weight, bias), strict=True):
            assert (own - reference).norm() < 0.05 * reference.norm() + 1e-6, name
