"""Which matrix products a training step takes, exactly: so that waste cannot come back unseen.

B lanes, n states; a product (i, j, k) is one of (i, j) by (j, k). Everything is worked out by hand
from the equations in :class:`rnn.stacked.layer.StackedLayer`.
"""

import itertools
from collections import Counter

import numpy as np
import pytest
from network_configs import representatives

from benchmarks.matmul_limit import matmul_shapes
from rnn.config import STATE_SOURCES, GatedConfig, TrialConfig
from rnn.stacked.network import NetworkStack
from rnn.training.loop import TrainConfig, TrainLoop

B, N, V = 40, 6, 256
U = 16
"""The distinct symbols of a step here: twelve, and what fills them up to a multiple of 16."""

TEXT = np.tile(np.arange(12, dtype=np.uint8), 50)
SETTINGS = TrainConfig(5, B, 9, 5, 0.001, 0.9, seed=0)


def step(*architectures, static_graph=False):
    configs = [TrialConfig(architecture) for architecture in architectures]
    return matmul_shapes(
        TrainLoop(NetworkStack(configs, 0, static_graph=static_graph), TEXT, SETTINGS)
    )


def affine(streams, inputs, outputs, needed):
    """An affine map: forward, for its weights, and for as many inputs as need a gradient."""
    found = Counter({(streams, inputs, outputs): 1})
    found[inputs, streams, outputs] += 1
    if needed:
        found[streams, outputs, needed] += 1
    return found


HEAD = affine(B, N, V, N)


def test_the_best_published_architecture():
    """Two layers, forget gate, state gate, residual, new state."""
    first = (
        affine(U, N, 3 * N, N)  # x, once a symbol: candidate and both gates at once
        + affine(B, N, 3 * N, 0)  # h needs no gradient
        + affine(U, N, N, N)  # the read-out of x
        + affine(B, N, N, N)  # and of u
    )
    second = affine(B, 2 * N, 3 * N, N) + affine(B, 2 * N, N, 2 * N)
    assert step(GatedConfig(False, True, False, True, True, "new", 2, N)) == HEAD + first + second


def test_everything_on():
    first = (
        affine(U, N, 2 * N, N)  # the input gate of x
        + affine(B, N, 2 * N, 0)  # and of h
        + affine(B, 2 * N, 3 * N, 2 * N)  # [x' ; h'] to candidate and both gates
        + affine(U, N, 2 * N, N)  # x to read-out and output gate
        + affine(B, 2 * N, 2 * N, 2 * N)  # [u ; h'] to both
        + affine(B, N, N, N)  # the read-out to the output gate
    )
    second = (
        affine(B, 2 * N, 2 * N, N)
        + affine(B, 2 * N, 3 * N, 2 * N)
        + affine(B, 3 * N, 2 * N, 3 * N)
        + affine(B, N, N, N)
    )
    assert step(GatedConfig(True, True, True, True, True, "both", 2, N)) == HEAD + first + second


def test_gates_that_see_the_candidate():
    a = GatedConfig(False, True, False, True, False, "new", 1, N, "candidate")
    expected = (
        affine(U, N, 3 * N, N)
        + affine(B, N, 3 * N, 0)
        + affine(B, N, N, N)  # the candidate to the state gate
        + affine(B, N, N, N)  # the mixed state to the forget gate
        + affine(B, N, N, N)  # the read-out
    )
    assert step(a) == HEAD + expected


def test_a_state_that_only_the_next_step_reads_teaches_nothing():
    """Source old: candidate and gates go forward, and nothing comes back to them."""
    a = GatedConfig(False, True, False, True, True, "old", 1, N)
    forward = Counter({(U, N, 3 * N): 1, (B, N, 3 * N): 1})
    assert step(a) == HEAD + forward + affine(U, N, N, N) + affine(B, N, N, 0)


def test_an_input_gate_of_an_old_state_learns_by_its_half():
    a = GatedConfig(True, False, False, False, True, "old", 1, N)
    forward = Counter({(U, N, 2 * N): 1, (B, N, 2 * N): 1, (B, 2 * N, N): 1})
    half = Counter({(N, U, N): 1, (U, N, N): 1, (N, B, N): 1})
    read_out = affine(U, N, N, N) + affine(B, N, N, N)
    assert step(a) == HEAD + forward + half + read_out


def test_layers_below_one_that_does_not_read_its_input_only_go_forward():
    a = GatedConfig(False, False, False, False, False, "old", 2, N)
    first = Counter({(U, N, N): 1, (B, N, N): 2})
    second = Counter({(B, 2 * N, N): 1}) + affine(B, N, N, 0)
    assert step(a) == HEAD + first + second


ALL = [
    GatedConfig(*switches, source, 2, N)
    for switches in itertools.product((False, True), repeat=5)
    for source in STATE_SOURCES
]


@pytest.mark.parametrize(
    "configs",
    [representatives(ALL, together=3), pytest.param(ALL, marks=pytest.mark.extended)],
    ids=["some", "all"],
)
def test_a_mixed_population_takes_each_members_products_and_no_other(configs):
    alone = [step(a) for a in configs]
    assert step(*configs) == sum(alone, Counter())


@pytest.mark.parametrize("architecture", ALL[::5], ids=lambda a: a.label)
def test_where_every_step_is_to_be_the_same_each_lane_is_multiplied(architecture):
    """As a recorded graph needs it; then there is one product for what else are two."""
    found = step(architecture, static_graph=True)
    assert not any(i == U or j == U for i, j, _ in found)
    assert sum(found.values()) <= sum(step(architecture).values())
