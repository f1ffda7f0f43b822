"""What a gradient reaches in a network, and whether its output sees its input, by rule."""

import dataclasses
import itertools

import pytest
import torch
from networks import baseline_configs, gated_configs

from rnn.config import TaskSpec, describe_network
from rnn.network import Network, name_part

SPEC = TaskSpec(3, 2, reads_tokens=False, predicts_classes=False)
STREAMS = 2
SEEDS = (0, 1)


def build(config, seed):
    torch.manual_seed(seed)
    return Network(config, SPEC).double()


def find_trained(network, depth):
    """Return the parts that a gradient reaches if states are detached every ``depth`` steps."""
    inputs = torch.randn(max(3, 2 * depth), STREAMS, SPEC.inputs, dtype=torch.double)
    states = [state.double() for state in network.initial_states(STREAMS)]
    loss = torch.zeros((), dtype=torch.double)
    for step, x in enumerate(inputs):
        if step % depth == 0:
            states = [state.detach() for state in states]
        outputs, states = network(x[None], states)
        loss = loss + (outputs * torch.randn_like(outputs)).sum()
    named = dict(network.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
    return {name_part(name) for name, grad in zip(named, grads, strict=True) if grad.any()}


@torch.no_grad()
def sees_input(network):
    """Return whether another input at the last step changes the output at it."""
    inputs = torch.randn(5, STREAMS, SPEC.inputs, dtype=torch.double)
    changed = inputs.clone()
    changed[-1] += 1
    outputs = [network(x)[0][-1] for x in (inputs, changed)]
    return not torch.equal(*outputs)


def check_rule(config, depth):
    facts = describe_network(config, None, depth)
    networks = [build(config, seed) for seed in SEEDS]
    trained = set().union(*(find_trained(network, depth) for network in networks))
    assert {part for part, is_trained in facts.trained.items() if is_trained} == trained, config
    assert facts.sees_input == any(map(sees_input, networks)), config


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_rule_of_gated_networks_is_what_autograd_and_changed_inputs_show(layers, depth):
    for config in gated_configs(layers, 2):
        check_rule(config, depth)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_each_blind_layer_delays_the_gradient_by_a_step(depth):
    for config in gated_configs(3, 2, ("state",)):
        if config.gated.state_source == "old":
            check_rule(config, depth)


@pytest.mark.parametrize("block", ["plain", "residual"])
def test_rule_of_other_cells_and_of_residual_blocks(block):
    gated = gated_configs(2, 2, ("state",))
    for config, depth in itertools.product([*baseline_configs(2, 2), *gated], (1, 4)):
        check_rule(dataclasses.replace(config, block=block), depth)
