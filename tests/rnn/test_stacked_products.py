"""What options cost in a stack: matrix products.

B streams, n states; a product (i, j, k) is of (i, j) by (j, k). All are derived by hand from the
equations of :class:`rnn.cells.GatedCell`.
"""

from collections import Counter

import numpy as np
from networks import gated_configs, representatives

from benchmarks.matmul_limit import matmul_shapes
from rnn.config import GatedOptions, OptimizerConfig, TrialConfig
from rnn.stacked.engine import NetworkStack
from rnn.tasks.text import TextData
from rnn.training.loop import TrainConfig, TrainLoop

B, N, V = 40, 6, 256
U = 16
"""Number of unique tokens of a step: twelve, padded to a multiple of 16."""

DATA = TextData(np.tile(np.arange(12, dtype=np.uint8), 50))
SETTINGS = TrainConfig(5, B, 9, 5, 0.9, seed=0)


def step_products(*configs, static_graph=False):
    trial_configs = [TrialConfig(config) for config in configs]
    stack = NetworkStack(trial_configs, 0, static_graph=static_graph)
    return matmul_shapes(TrainLoop(stack, DATA, SETTINGS))


def linear(rows, inputs, outputs, grad_inputs):
    """Products of a linear map: forward, for the weights, and for the inputs with a gradient."""
    products = Counter({(rows, inputs, outputs): 1})
    products[inputs, rows, outputs] += 1
    if grad_inputs:
        products[rows, outputs, grad_inputs] += 1
    return products


HEAD = linear(B, N, V, N)


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
    config = GatedOptions(True, True, True, True, True, "both").network(2, N)
    assert step_products(config) == HEAD + first + second


def test_state_that_only_the_next_step_reads_takes_no_backward_products():
    """With source old, candidate and gates have no gradient."""
    config = GatedOptions(False, True, False, True, True, "old").network(1, N)
    forward = Counter({(U, N, 3 * N): 1, (B, N, 3 * N): 1})
    assert step_products(config) == HEAD + forward + linear(U, N, N, N) + linear(B, N, N, 0)


ALL = gated_configs(2, N, ["state"])


def test_mixed_stack_takes_the_products_of_its_networks_and_no_other():
    configs = representatives(ALL)
    alone = [step_products(config) for config in configs]
    assert step_products(*configs) == sum(alone, Counter())


def test_stack_has_one_order_of_networks_that_differ_in_training_settings_alone():
    configs = [
        TrialConfig(ALL[0], optimizer=OptimizerConfig(name), varied=varied)
        for name in ("adam", "sgd")
        for varied in ((), (("learning_rate", 0.1),), (("learning_rate", 0.02),))
    ]
    shuffled = configs[::2] + configs[1::2]
    orders = {NetworkStack(order, 1).configs for order in (configs, configs[::-1], shuffled)}
    assert len(orders) == 1
    assert set(orders.pop()) == set(configs)
