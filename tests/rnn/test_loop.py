"""The training loop: text, log points, smoothed losses, removal, averaging, initial weights."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.matmul_limit import matmul_shapes
from rnn.config import GatedOptions, OptimizerConfig, TrialConfig
from rnn.network import Batch, draw_initial_weights, network_shapes
from rnn.stacked.engine import NetworkStack
from rnn.tasks.text import TextData
from rnn.training.evaluation import CurveData
from rnn.training.loop import TrainConfig, TrainLoop

TEXT = np.frombuffer(b"It was the best of times, it was the worst of times. " * 30, np.uint8)
DATA = TextData(TEXT)
TRAIN_CONFIG = TrainConfig(20, batch_size=6, sequence_length=9, log_every=2, smoothing=0.9, seed=3)

OPTIMIZER = OptimizerConfig(learning_rate=0.01)
MIXED = [
    TrialConfig(GatedOptions(*switches).network(2, 8), optimizer=OPTIMIZER)
    for switches in (
        (False, True, False, True, True, "new"),
        (True, True, True, True, True, "both"),
        (False, False, False, False, False, "old"),
        (True, False, False, True, False, "both"),
    )
]
FROZEN = MIXED[0]._replace(optimizer=OptimizerConfig(learning_rate=1e-30))


def test_smoothed_loss_is_a_moving_average_that_starts_at_three():
    """Nine tokens give eight steps, from zero states: step 17 begins the third sequence."""
    stack = NetworkStack([FROZEN], 1, "fp64")
    points = list(TrainLoop(stack, DATA, replace(TRAIN_CONFIG, steps=18)).train())
    # With constant weights, the losses are those of the untrained network.
    ema, expected = 3.0, []
    for sequence in range(3):
        batch = DATA.train_batch(3, sequence, 0, 6, 9)
        states = stack.init_state(6)
        for tokens, targets in zip(*map(torch.from_numpy, batch[:2]), strict=True):
            states = [state.clone() for state in states]
            logits, states = stack.forward(tokens.long()[None], states)
            ema = 0.9 * ema + 0.1 * stack.losses(logits[:, 0], targets.long()).mean().item()
            expected.append(ema)
    smoothed = [point.ema_losses[0] for point in points]
    np.testing.assert_allclose(smoothed, expected[1:18:2], rtol=1e-9)


def test_log_points_are_the_multiples_of_log_every():
    train_config = replace(TRAIN_CONFIG, steps=20, log_every=6)
    run = TrainLoop(NetworkStack(MIXED[:1], 1), DATA, train_config)
    assert [point.step for point in run.train()] == [6, 12, 18]
    before = run.stack.parameters.values.clone()
    run.swap_in_averaged_weights()
    assert torch.equal(run.stack.parameters.values, before), "there are none"


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [*range(32, 641, 32)]),  # 20 points
        ({"log_every": 20}, [*range(40, 641, 40)]),  # at log points
        ({"eval_every": 0}, []),
        ({"eval_every": 300}, [300, 600, 640]),
        ({"steps": 70}, [30, 60, 70]),  # as many as are cheap
    ],
)
def test_points_of_held_out_curves(settings, steps):
    given = {"steps": 640, "log_every": 2, "eval_every": None} | settings
    tokens = np.arange(6).reshape(3, 2)
    data = CurveData(Batch(tokens[:-1], tokens[1:]), {})  # of two steps
    run = TrainLoop(NetworkStack(MIXED[:1], 1), DATA, replace(TRAIN_CONFIG, **given), None, data)
    list(run.train())
    assert [*run.metrics[0].get("validation_loss", {})] == steps


def test_batch_depends_on_seed_sequence_and_replicate_alone():
    first, *others = (
        DATA.train_batch(*numbers, 6, 9)
        for numbers in ((3, 0, 0), (3, 0, 0), (3, 1, 0), (4, 0, 0), (3, 0, 1))
    )
    are_equal = [np.array_equal(first.inputs, other.inputs) for other in others]
    assert are_equal == [True, False, False, False]
    assert np.array_equal(first.inputs[1:], first.targets[:-1])
    assert first.inputs[:, 0].tobytes() in TEXT.tobytes()


def test_sequences_reach_both_ends_of_the_text():
    data = TextData(np.arange(12, dtype=np.uint8))
    batches = [data.train_batch(3, sequence, 0, 6, 9) for sequence in range(30)]
    assert min(batch.inputs.min() for batch in batches) == 0
    assert max(batch.targets.max() for batch in batches) == 11


def test_initial_weights_are_uniform_within_one_over_the_root_of_the_inputs():
    architecture = GatedOptions(True, True, True, True, True, "both").network(1, 64)
    for name, (inputs, outputs) in network_shapes(architecture).linear_maps.items():
        drawn = draw_initial_weights(TrialConfig(architecture), 0)
        weight, bias = drawn[f"{name}.weight"], drawn[f"{name}.bias"]
        assert weight.shape == (outputs, inputs)
        assert bias.shape == (outputs,)
        bound = 1 / math.sqrt(inputs)
        assert 0.95 * bound < weight.abs().max() <= bound
        assert bias.abs().max() <= bound
        assert abs(weight.mean()) < 0.05 * bound


def test_removed_network_costs_no_matrix_products():
    run = TrainLoop(NetworkStack(MIXED, 1), DATA, TRAIN_CONFIG)
    smaller = TrainLoop(NetworkStack(MIXED[3:], 1), DATA, TRAIN_CONFIG)
    run.remove_configs(MIXED[:3])
    assert matmul_shapes(run) == matmul_shapes(smaller)
    assert run.stack.parameters.values.numel() == smaller.stack.parameters.values.numel()


def test_training_ends_when_all_networks_are_removed():
    run = TrainLoop(NetworkStack(MIXED, seed=1), DATA, TRAIN_CONFIG)

    def on_step():
        if run.step == 5:
            run.remove_configs(MIXED)

    assert [point.step for point in run.train(on_step)] == [2, 4]
    assert run.configs == ()


def test_seconds_are_an_equal_share_of_the_training_time(monkeypatch):
    """On a clock that advances by 1 s in each step and by 100 s at each log point."""
    now = 0.0
    monkeypatch.setattr("rnn.training.loop.time", SimpleNamespace(monotonic=lambda: now))

    def on_step():
        nonlocal now
        now += 1

    run = TrainLoop(NetworkStack(MIXED, seed=1), DATA, TRAIN_CONFIG)
    for _ in run.train(on_step):
        now += 100  # spent by the caller, not by training
    assert run.seconds == pytest.approx([TRAIN_CONFIG.steps / len(MIXED)] * len(MIXED))


def test_weights_are_averaged_over_the_last_steps_across_a_removal():
    """Three tenths of twenty steps are six."""
    train_config = replace(TRAIN_CONFIG, average_fraction=0.3)
    run = TrainLoop(NetworkStack(MIXED[:2], 1, "fp64"), DATA, train_config)
    removed, config = run.configs
    history = []

    def on_step():
        if run.step == 17:
            run.remove_configs([removed])
        k, parameters = run.configs.index(config), run.stack.parameters
        history.append(parameters.extract(k, parameters.values))

    list(run.train(on_step))
    run.swap_in_averaged_weights()
    averaged = run.stack.parameters.extract(0, run.stack.parameters.values)
    for name, average in averaged.items():
        expected = torch.stack([weights[name] for weights in history[-6:]]).mean(0)
        torch.testing.assert_close(average, expected)
    assert not torch.equal(averaged["head.weight"], history[-1]["head.weight"])
