"""Updates every U steps by gradients through W steps equal those of a plain PyTorch loop."""

import numpy as np
import pytest
import torch
from networks import extract
from torch import nn
from user_cells import cell_config

from rnn.config import (
    WHOLE_SEQUENCE,
    GatedOptions,
    NetworkConfig,
    OptimizerConfig,
    TaskSpec,
    TrialConfig,
)
from rnn.engines import build_network
from rnn.network import Batch, Network
from rnn.training.checkpoint import deserialize_checkpoint, serialize_checkpoint
from rnn.training.loop import TrainConfig, TrainLoop

STEPS, STREAMS = 7, 3
LEARNING_RATE = 0.01
GRU = NetworkConfig("gru", 2, 4)
LSTM = NetworkConfig("lstm", 1, 4)
GATED = GatedOptions.of_largest().network(2, 4)
LEARNED = cell_config("Everything", 2, 4)
"""Its state is a tuple; where a sequence begins or a stream is reset, it is learned."""
SHIFTED = cell_config("Shifted", 2, 4)
"""It has a sequence form, besides."""

WINDOWS = {
    "every step": (1, 1),
    "no gradient crosses a step": (1, 3),
    "windows side by side": (3, 3),
    "overlapping windows": (6, 3),
    "windows that begin within others": (5, 2),
    "one gradient of many steps at every step": (4, 1),
    "whole sequences": (WHOLE_SEQUENCE, WHOLE_SEQUENCE),
}


class RandomData:
    """Random numbers to read and predict; every third update of a stream has no target.

    Args:
        masked: whether targets have weights, most of them 0, and sequences of other lengths.
        resets: whether streams are reset within a batch, and go on with the next one.
        classes: whether tokens are read and classes predicted.
    """

    initial_loss = None

    def __init__(self, masked=False, resets=False, classes=False):
        self.masked, self.resets, self.classes = masked, resets, classes
        sizes = (5, 4, True, True) if classes else (2, 3, False, False)
        self.spec = TaskSpec(*sizes, is_dense=not (masked or resets))

    def steps_per_sequence(self, sequence_length):
        return STEPS

    def train_batch(self, seed, index, replicate, batch_size, sequence_length):
        rng = np.random.default_rng([seed, index, replicate])
        shape = STEPS, batch_size
        if self.classes:
            inputs, targets = rng.integers(0, 5, shape), rng.integers(0, 4, shape)
        else:
            inputs, targets = rng.normal(size=(*shape, 2)), rng.normal(size=(*shape, 3))
        mask = resets = None
        if self.masked:
            mask = np.where(rng.random(shape) < 0.3, rng.random(shape), 0).astype(np.float32)
            mask[: 3 * (index % 3)] = 0
        if self.resets:
            resets = rng.random(shape) < 0.2
            resets[0] = index == 0
        return Batch(inputs, targets, mask, resets)


def train_plainly(config, data, train_config, weights):
    """Train as PyTorch's users would; return the weights, and the mean loss of each update."""
    module = Network(config.architecture, data.spec).double()
    module.load_state_dict(weights)
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    reach, every = min(config.bptt_steps, STEPS), min(config.update_every, STEPS)
    losses, carried = [], None
    for index in range(-(-train_config.steps // STEPS)):
        batch = data.train_batch(train_config.seed, index, config.replicate, STREAMS, 0)
        inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
        mask = torch.from_numpy(batch.weights).double()
        before = [carried]  # the states before each step; None for the initial ones
        for first in range(0, STEPS, every):
            stop = min(first + every, STEPS)
            start = first if reach == 1 else max(0, first + every - reach)
            initial, total = module.initial_states(STREAMS), 0.0
            states = before[start] or initial
            for t in range(start, stop):
                if batch.resets is not None:
                    chosen = torch.from_numpy(batch.resets[t])
                    states = [
                        torch.where(chosen.view(-1, *[1] * (old.ndim - 1)), new, old)
                        for new, old in zip(initial, states, strict=True)
                    ]
                outputs, states = module(inputs[t : t + 1], states)
                outputs = outputs[0]  # of one step
                if t >= first:
                    before.append([state.detach() for state in states])
                    if data.classes:
                        each = nn.functional.cross_entropy(outputs, targets[t], reduction="none")
                    else:
                        each = (outputs - targets[t]).square().mean(1)
                    total = total + (each * mask[t]).sum()
                if reach == 1:
                    states = [state.detach() for state in states]
            if (count := mask[first:stop].sum()) > 0:
                for weight in module.parameters():  # zero where a window does not reach it
                    weight.grad = torch.zeros_like(weight)
                (total / count).backward()
                optimizer.step()
                losses.append((total / count).item())
        carried = before[-1] if data.resets else None
    return module.state_dict(), losses


TRAININGS = {
    "numbers": (GRU, RandomData()),
    "classes": (GATED, RandomData(classes=True)),
    "masks": (LSTM, RandomData(masked=True)),
    "resets": (LEARNED, RandomData(resets=True, classes=True)),
    "learned states": (LEARNED, RandomData(masked=True)),
    "masks and resets": (GATED, RandomData(masked=True, resets=True)),
    "sequence form": (SHIFTED, RandomData()),
    "sequence form, resets": (SHIFTED, RandomData(masked=True, resets=True, classes=True)),
}


@pytest.mark.parametrize(
    ("window", "training"),
    [
        pytest.param(
            window, training, marks=[pytest.mark.extended] * ((row + column) % 2), id=f"{a}, {b}"
        )
        for row, (a, window) in enumerate(WINDOWS.items())
        for column, (b, training) in enumerate(TRAININGS.items())
    ],
)
def test_updates_are_those_of_a_plain_loop(window, training):
    architecture, data = training
    train_config = TrainConfig(3 * STEPS, STREAMS, 0, log_every=STEPS, smoothing=0.0, seed=1)
    reach, every = window
    configs = [
        TrialConfig(architecture, 0, reach, OptimizerConfig(learning_rate=rate), (), every)
        for rate in (LEARNING_RATE, 0.1)
    ]
    for together in (configs, configs[:1]):
        network = build_network(together, 0, "fp64", data.spec)
        initial = {name: each.clone() for name, each in extract(network).items()}
        loop = TrainLoop(network, data, train_config)
        points = list(loop.train())
        if together is configs:
            expected, losses = train_plainly(configs[0], data, train_config, initial)
        assert loop.updates == len(losses)
        assert points[-1].ema_losses[0] == pytest.approx(losses[-1], rel=1e-9)
        for name, trained in extract(network).items():
            torch.testing.assert_close(trained, expected[name], rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_resumed_training_repeats_bit_for_bit(window):
    """Training stops after each window in turn, also within a sequence."""
    data = RandomData(masked=True, resets=True)
    config = TrialConfig(GRU, bptt_steps=window[0], update_every=window[1])
    train_config = TrainConfig(3 * STEPS, STREAMS, 0, STEPS, 0.9, seed=1, average_fraction=0.5)

    def train(states):
        weights = {each: state.weights for each, state in states.items()}
        network = build_network([config], 0, "fp32", data.spec, weights=weights)
        loop = TrainLoop(network, data, train_config, states)
        saved = []

        def save():
            saved.append(serialize_checkpoint(loop.train_state(config), "identity"))

        list(loop.train(save))
        return saved

    def content(checkpoint):
        state = deserialize_checkpoint("identity", checkpoint)
        first, second = state.moments
        groups = state.weights, first, second, state.average or {}
        numbers = [each.tolist() for group in groups for each in group.values()]
        others = [each.tolist() for each in (*state.states, state.ema_loss)]
        return numbers, others, state.curve, state.updates, state.averaged, state.step

    whole = train({})
    for stop in range(1, len(whole), max(1, len(whole) // 4)):
        state = deserialize_checkpoint("identity", whole[stop - 1])
        resumed = train({config: state})
        # NaN equals itself as a text.
        assert str(list(map(content, resumed))) == str(list(map(content, whole[stop:])))
