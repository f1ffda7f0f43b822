"""The exact matrix products of a training step, so that a redundant one is noticed.

B streams, n states; a product (i, j, k) is of (i, j) by (j, k). All are derived by hand from the
equations of :class:`rnn.models.gated.GatedLayer`.
"""

from collections import Counter

import numpy as np
import pytest
from network_configs import gated_configs, representatives

from benchmarks.matmul_limit import matmul_shapes
from rnn.config import GatedConfig, TrialConfig
from rnn.stacked.network import NetworkStack
from rnn.training.loop import TrainConfig, TrainLoop

B, N, V = 40, 6, 256
U = 16
"""Number of unique tokens of a step: twelve, padded to a multiple of 16."""

TEXT = np.tile(np.arange(12, dtype=np.uint8), 50)
SETTINGS = TrainConfig(5, B, 9, 5, 0.9, seed=0)


def step_products(*configs, static_graph=False):
    trial_configs = [TrialConfig(config) for config in configs]
    stack = NetworkStack(trial_configs, 0, static_graph=static_graph)
    return matmul_shapes(TrainLoop(stack, TEXT, SETTINGS))


def linear(rows, inputs, outputs, grad_inputs):
    """Products of a linear map: forward, for the weights, and for the inputs with a gradient."""
    products = Counter({(rows, inputs, outputs): 1})
    products[inputs, rows, outputs] += 1
    if grad_inputs:
        products[rows, outputs, grad_inputs] += 1
    return products


HEAD = linear(B, N, V, N)


def test_products_of_the_best_published_network():
    """Two layers, forget gate, state gate, residual, new state."""
    first = (
        linear(U, N, 3 * N, N)  # x once per unique token, to candidate and both gates
        + linear(B, N, 3 * N, 0)  # h needs no gradient
        + linear(U, N, N, N)  # the read-out of x
        + linear(B, N, N, N)  # and of u
    )
    second = linear(B, 2 * N, 3 * N, N) + linear(B, 2 * N, N, 2 * N)
    config = GatedConfig(False, True, False, True, True, "new", 2, N)
    assert step_products(config) == HEAD + first + second


def test_products_with_all_options_on():
    first = (
        linear(U, N, 2 * N, N)  # the input gate of x
        + linear(B, N, 2 * N, 0)  # and of h
        + linear(B, 2 * N, 3 * N, 2 * N)  # [x' ; h'] to candidate and both gates
        + linear(U, N, 2 * N, N)  # x to read-out and output gate
        + linear(B, 2 * N, 2 * N, 2 * N)  # [u ; h'] to both
        + linear(B, N, N, N)  # the read-out to the output gate
    )
    second = (
        linear(B, 2 * N, 2 * N, N)
        + linear(B, 2 * N, 3 * N, 2 * N)
        + linear(B, 3 * N, 2 * N, 3 * N)
        + linear(B, N, N, N)
    )
    config = GatedConfig(True, True, True, True, True, "both", 2, N)
    assert step_products(config) == HEAD + first + second


def test_gates_that_read_the_candidate_take_a_product_each():
    config = GatedConfig(False, True, False, True, False, "new", 1, N, "candidate")
    expected = (
        linear(U, N, 3 * N, N)
        + linear(B, N, 3 * N, 0)
        + linear(B, N, N, N)  # the candidate to the state gate
        + linear(B, N, N, N)  # the mixed state to the forget gate
        + linear(B, N, N, N)  # the read-out
    )
    assert step_products(config) == HEAD + expected


def test_state_that_only_the_next_step_reads_takes_no_backward_products():
    """With source old, candidate and gates have no gradient."""
    config = GatedConfig(False, True, False, True, True, "old", 1, N)
    forward = Counter({(U, N, 3 * N): 1, (B, N, 3 * N): 1})
    assert step_products(config) == HEAD + forward + linear(U, N, N, N) + linear(B, N, N, 0)


def test_input_gate_of_the_previous_state_takes_half_the_backward_products():
    config = GatedConfig(True, False, False, False, True, "old", 1, N)
    forward = Counter({(U, N, 2 * N): 1, (B, N, 2 * N): 1, (B, 2 * N, N): 1})
    half = Counter({(N, U, N): 1, (U, N, N): 1, (N, B, N): 1})
    read_out = linear(U, N, N, N) + linear(B, N, N, N)
    assert step_products(config) == HEAD + forward + half + read_out


def test_layers_below_one_that_ignores_its_input_take_no_backward_products():
    config = GatedConfig(False, False, False, False, False, "old", 2, N)
    first = Counter({(U, N, N): 1, (B, N, N): 2})
    second = Counter({(B, 2 * N, N): 1}) + linear(B, N, N, 0)
    assert step_products(config) == HEAD + first + second


ALL = gated_configs(2, N, ["state"])


@pytest.mark.parametrize(
    "configs",
    [representatives(ALL, together=3), pytest.param(ALL, marks=pytest.mark.extended)],
    ids=["some", "all"],
)
def test_mixed_stack_takes_the_products_of_its_networks_and_no_other(configs):
    alone = [step_products(config) for config in configs]
    assert step_products(*configs) == sum(alone, Counter())


@pytest.mark.parametrize("config", ALL[::5], ids=lambda config: config.label)
def test_static_graph_multiplies_each_stream_in_fewer_products(config):
    products = step_products(config, static_graph=True)
    assert not any(i == U or j == U for i, j, _ in products)
    assert sum(products.values()) <= sum(step_products(config).values())
