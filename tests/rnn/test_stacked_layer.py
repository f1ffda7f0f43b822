"""The fast engine computes the reference network, for all combinations of options."""

import torch
from network_configs import assert_close, each_of, gated_configs
from torch import Tensor

from rnn.config import GatedConfig, TrialConfig
from rnn.models.bptt_network import BPTTNetwork
from rnn.models.factory import TrainableNetwork
from rnn.models.shapes import count_parameters
from rnn.stacked.flat_parameters import NamedTensors
from rnn.stacked.network import NetworkStack

SEED, STREAMS, SIZE = 7, 3, 5
ALL = [config for layers in (1, 2, 3) for config in gated_configs(layers, SIZE)]


def advance(network: TrainableNetwork, tokens: Tensor, states: list[Tensor]) -> Tensor:
    """Replace the states by those after one step; return the logits (K, B, V)."""
    logits, next_states = network.forward(tokens, states)
    for state, next_state in zip(states, next_states, strict=True):
        state.copy_(next_state)
    return logits


def grads_of(network: TrainableNetwork, k: int = 0) -> NamedTensors:
    return network.parameters.extract(k, network.parameters.grads)


def test_options_have_96_combinations():
    assert len(set(gated_configs(1, SIZE, ["state"]))) == 96


@each_of(ALL)
def test_stack_computes_the_reference_network(config: GatedConfig):
    networks = [kind([TrialConfig(config)], SEED, "fp64") for kind in (NetworkStack, BPTTNetwork)]
    # At some steps two streams read the same token.
    text = torch.tensor([[72, 101, 72], [108, 111, 32], [119, 119, 114], [0, 255, 7]])
    states = [network.init_training_state(STREAMS) for network in networks]
    exact = {"rtol": 1e-12, "atol": 1e-12}
    for t in range(2):
        pairs = zip(networks, states, strict=True)
        logits, expected = (advance(network, text[t], each) for network, each in pairs)
        assert logits.shape == (1, STREAMS, 256)
        assert [state.shape for state in states[0]] == [(1, STREAMS, SIZE)] * config.layers
        torch.testing.assert_close(logits, expected, **exact)
        torch.testing.assert_close(*states, **exact)
        losses, expected = (network.losses(logits, text[t + 1]) for network in networks)
        torch.testing.assert_close(losses, expected, **exact)

    (losses, after), (expected, expected_after) = (
        network.loss_and_grad(text[2], text[3], each)
        for network, each in zip(networks, states, strict=True)
    )
    torch.testing.assert_close(losses, expected, **exact)
    torch.testing.assert_close(after, expected_after, **exact)
    assert_close(*map(grads_of, networks), rtol=1e-9, atol=1e-12)


@each_of(ALL)
def test_gradients_are_the_slopes_of_the_loss(config: GatedConfig):
    """By torch's gradcheck, which needs no other backward pass."""
    stack = NetworkStack([TrialConfig(config)], SEED, "fp64", vocab_size=7)
    values = stack.parameters.values
    tokens, targets = torch.tensor([1, 2, 1]), torch.tensor([4, 5, 6])
    states = [torch.rand(1, STREAMS, SIZE, dtype=torch.float64) for _ in range(config.layers)]

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weights):
            values.copy_(weights)
            losses, _ = stack.loss_and_grad(tokens, targets, states)
            ctx.save_for_backward(stack.parameters.grads.clone())
            return losses.sum()

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0]

    weights = values.clone().requires_grad_()
    assert torch.autograd.gradcheck(Loss.apply, (weights,), fast_mode=True)


@each_of(gated_configs(2, SIZE, ["state"]))
def test_gradient_reaches_exactly_the_weights_that_affect_the_loss(config: GatedConfig):
    """Derived by hand, independently of the equations in code."""
    stack = NetworkStack([TrialConfig(config)], SEED, "fp64")
    states = [torch.rand(1, STREAMS, SIZE, dtype=torch.float64) for _ in range(2)]
    tokens = torch.tensor([1, 2, 3])
    stack.loss_and_grad(tokens, torch.tensor([4, 5, 6]), states)
    weights = {n: w for n, w in grads_of(stack).items() if n.endswith(".weight")}
    reached = {name.removesuffix(".weight") for name, weight in weights.items() if weight.any()}

    reads_new_state = config.state_source != "old"
    layer = {"read_out"}
    if config.output_gate:
        layer |= {"output_gate"}
    if reads_new_state:
        layer |= {"candidate"}
        layer |= {"state_gate"} if config.state_gate else set()
        layer |= {"forget_gate"} if config.forget_gate else set()
    # Any state source makes the output depend on the input gate: on x' and h', or on h' alone.
    if config.input_gate:
        layer |= {"input_gate"}
    expected = {"head"} | {f"layers.1.{name}" for name in layer}
    # The first layer is reached only if the second layer's output depends on its input.
    if reads_new_state or config.residual or config.input_gate:
        expected |= {"embedding"} | {f"layers.0.{name}" for name in layer}
    assert reached == expected


def test_options_that_are_off_have_no_weights():
    off = GatedConfig(False, False, False, False, False, "new", 1, SIZE)
    expected = {"embedding", "layers.0.candidate", "layers.0.read_out", "head"}
    assert set(off.param_shapes()) == expected


@each_of(ALL)
def test_parameter_count_is_that_of_the_network(config: GatedConfig):
    parameters = NetworkStack([TrialConfig(config)], SEED).parameters
    weights = parameters.extract(0, parameters.values)
    assert sum(weight.numel() for weight in weights.values()) == count_parameters(config)
    assert count_parameters(config) == config.parameter_count()


def test_bfloat16_products_change_little_and_keep_float32_weights():
    config = GatedConfig(True, True, True, True, True, "both", 2, 32)
    full, mixed = (NetworkStack([TrialConfig(config)], SEED, p) for p in ("fp32", "bf16"))
    tokens = torch.tensor([1, 2, 3])
    full_states, mixed_states = full.init_state(3), mixed.init_state(3)
    expected = advance(full, tokens, full_states)
    logits = advance(mixed, tokens, mixed_states)
    assert mixed.parameters.values.dtype == logits.dtype == mixed_states[0].dtype == torch.float32
    assert not torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.02)
    for stack, states in ((full, full_states), (mixed, mixed_states)):
        stack.loss_and_grad(tokens, tokens, states)
    assert mixed.parameters.grads.dtype == torch.float32
    for name, expected_grads in grads_of(full).items():
        difference = grads_of(mixed)[name] - expected_grads
        assert difference.norm() < 0.05 * expected_grads.norm() + 1e-6, name
