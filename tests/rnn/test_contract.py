"""What holds for every implementation of networks; :mod:`networks` lists and builds them.

The text is random, so that a wrong position in it changes results.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import networks
import numpy as np
import pytest
import torch
from networks import (
    EVERY_OPTION,
    GPU_IMPLEMENTATIONS,
    IMPLEMENTATIONS,
    STREAMS,
    TOLERANCE,
    VOCAB_SIZE,
    Case,
    assert_evaluates_as_plain_modules,
    assert_trains_as_plain_modules,
    extract,
    list_cases,
)
from torch import Tensor
from user_cells import cell_config

from rnn.autograd import lockstep_obstacle
from rnn.config import GatedOptions, NetworkConfig, OptimizerConfig, TrialConfig
from rnn.engines import build_network, stack_key
from rnn.network import Batch, NamedTensors
from rnn.tasks.text import TextData
from rnn.training.checkpoint import TrainState
from rnn.training.evaluation import CurveData, compute_eval_losses
from rnn.training.loop import TrainConfig, TrainLoop

RANDOM = np.random.default_rng(0)
DATA = TextData(RANDOM.integers(0, VOCAB_SIZE, 500, dtype=np.uint8), VOCAB_SIZE)
WINDOWS = RANDOM.integers(0, VOCAB_SIZE, (9, 2 * STREAMS), dtype=np.uint8)

SETTINGS = TrainConfig(12, STREAMS, 6, 2, 0.9, seed=3, average_fraction=0.6, eval_every=5)
"""Two and a half sequences of five steps; weights are averaged from step 5 on."""

MIDDLE = 7
"""A step within a sequence, while weights are averaged."""

TOKENS = WINDOWS.astype(np.int64)
CURVE_DATA = CurveData(Batch(TOKENS[:-1], TOKENS[1:]), {})

ALL = [*IMPLEMENTATIONS, *GPU_IMPLEMENTATIONS]
STACKS = [
    each
    for each in ALL
    if all(len(group) > 1 for group in each.groups.values())
    and (each.place == "cuda" or each.name not in ("shared tokens", "recorded"))
]

complete = list_cases(ALL, is_complete=True)
each_case = pytest.mark.parametrize("case", list_cases(ALL), indirect=True)
each_complete_case = pytest.mark.parametrize(
    "case",
    [*list_cases(IMPLEMENTATIONS, is_complete=True), *list_cases(GPU_IMPLEMENTATIONS)],
    indirect=True,
)
each_stack = pytest.mark.parametrize("case", list_cases(STACKS), indirect=True)

# Of an operation without a batching rule.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


@pytest.fixture
def case(request, monkeypatch) -> Case:
    networks.prepare(request.param.implementation.place, monkeypatch)
    return request.param


class StopError(Exception):
    pass


def begin(case: Case, states: dict[TrialConfig, TrainState] | None = None) -> TrainLoop:
    weights = {config: state.weights for config, state in (states or {}).items()}
    return TrainLoop(case.build(weights), DATA, SETTINGS, states, CURVE_DATA)


def train_until(run: TrainLoop, step: int) -> None:
    """Train up to a step, at which the worker is interrupted."""

    def on_step() -> None:
        if run.step == step:
            raise StopError

    if run.step < step:
        with pytest.raises(StopError):
            list(run.train(on_step))


def store(run: TrainLoop) -> dict[TrialConfig, TrainState]:
    """Return the train states as a checkpoint has them, if there is safetensors."""
    states = {config: run.train_state(config) for config in run.configs}
    if not find_spec("safetensors"):
        return states
    from rnn.training.checkpoint import deserialize_checkpoint, serialize_checkpoint

    return {
        config: deserialize_checkpoint("contract", serialize_checkpoint(state, "contract"))
        for config, state in states.items()
    }


class Result(NamedTuple):
    """Train state of a network after the last step, and held-out losses of averaged weights."""

    state: TrainState
    eval_losses: Tensor


def finish(run: TrainLoop, on_step: Callable[[], None] = lambda: None) -> dict[TrialConfig, Result]:
    """Train to the last step and return the results."""
    list(run.train(on_step))
    states = [run.train_state(config) for config in run.configs]
    run.swap_in_averaged_weights()
    losses = compute_eval_losses(run.stack, WINDOWS).cpu()
    return dict(zip(run.configs, map(Result, states, losses), strict=True))


@cache
def train(case: Case) -> dict[TrialConfig, Result]:
    return finish(begin(case))


def tensors_of(result: Result) -> NamedTensors:
    state = result.state
    groups = {"weights": state.weights, "average": state.average or {}}
    groups |= {f"moments.{number}": moments for number, moments in enumerate(state.moments)}
    return {
        "eval_losses": result.eval_losses,
        "ema_loss": state.ema_loss,
        "curve": torch.tensor(list(state.curve.values()), dtype=torch.float64),
        **{name: torch.tensor([*curve.items()]) for name, curve in state.metrics.items()},
        **{f"states.{number}": each for number, each in enumerate(state.states)},
        **{f"{name}.{key}": each for name, group in groups.items() for key, each in group.items()},
    }


def assert_equal(result: Result, expected: Result) -> None:
    assert (result.state.step, [*result.state.curve]) == (12, [*range(2, 13, 2)])
    found, others = tensors_of(result), tensors_of(expected)
    assert found.keys() == others.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, others[name]), name


def assert_same(case: Case, result: Result, expected: Result) -> None:
    """Compare two trainings of a network in different stacks."""
    # RMSprop divides gradients that are next to zero by their size.
    tolerance = max(TOLERANCE[case.precision], 1e-6)
    for name in ("eval_losses", "curve", "ema_loss"):
        found, other = (tensors_of(each)[name] for each in (result, expected))
        torch.testing.assert_close(found, other, rtol=tolerance, atol=0, msg=name)


# ------------------------------------------------------------------ gradients


@pytest.mark.parametrize("case", complete, indirect=True)
def test_losses_gradients_and_states_are_those_of_the_plain_module(case):
    train_step = assert_trains_as_plain_modules(case.without_clipping().build(), case.precision)
    runner, implementation = train_step.graph_runner, case.implementation
    is_recorded = implementation.is_recorded and implementation.place != "cpu"
    assert (runner is not None and runner.is_recorded) == is_recorded


@pytest.mark.parametrize("case", list_cases(EVERY_OPTION), indirect=True)
def test_networks_of_every_option_train_as_the_plain_modules(case):
    assert_trains_as_plain_modules(case.without_clipping().build(), case.precision, lengths=[3])


# ------------------------------------------------------------------ resumption and evaluation


@each_complete_case
def test_training_that_is_interrupted_at_any_step_resumes_bit_for_bit(case):
    run = begin(case)
    # Before the first step, at a sequence's end, within one with averaged weights, at the end.
    for step in (0, 5, MIDDLE, 12):
        train_until(run, step)
        run = begin(case, store(run))
    assert list(run.train()) == []
    for config, result in finish(run).items():
        assert_equal(result, train(case)[config])


@each_case
def test_evaluation_equals_the_plain_modules_and_does_not_disturb_training(case):
    """Held-out curves, which are of averaged weights, do not disturb it either."""
    tolerance = max(TOLERANCE[case.precision], 1e-6)
    run = TrainLoop(case.build(), DATA, SETTINGS)  # without held-out curves

    def evaluate() -> None:
        if run.step == MIDDLE:
            assert_evaluates_as_plain_modules(run.stack, case.precision, WINDOWS)

    results = finish(run, evaluate)
    for config, expected in train(case).items():
        curve = expected.state.metrics["validation_loss"]
        assert [*curve] == [5, 10, 12]
        assert curve[12] == pytest.approx(expected.eval_losses.mean().item(), rel=tolerance)
        assert not results[config].state.metrics
        state = replace(results[config].state, metrics=expected.state.metrics)
        assert_equal(results[config]._replace(state=state), expected)


BY_NAME = {f"{each.name} {each.place}": each for each in ALL}
PAIRS = [
    ("native cpu", "stacked cpu"),
    ("recorded stand-in", "shared tokens cpu"),
    ("recorded cuda", "stacked cpu"),
    ("recorded autograd cuda", "autograd cpu"),
    ("lockstep cuda", "own cell cpu"),
]


@pytest.mark.parametrize(
    ("names", "precision"),
    [
        pytest.param(
            names,
            "fp32" if "native cpu" in names else "fp64",
            marks=[pytest.mark.gpu] * any("cuda" in name for name in names),
        )
        for pair in PAIRS
        for names in (pair, pair[::-1])
    ],
    ids=str,
)
def test_training_resumes_in_another_implementation_or_on_another_device(
    names, precision, monkeypatch
):
    networks.prepare("stand-in", monkeypatch)
    first, second = (BY_NAME[name] for name in names)
    configs = min(first.groups.values(), key=len)
    uninterrupted = Case(first, tuple(configs[:4]), precision)
    run = begin(uninterrupted)
    train_until(run, MIDDLE)
    resumed = finish(begin(replace(uninterrupted, implementation=second), store(run)))
    for config, result in train(uninterrupted).items():
        assert_same(uninterrupted, result, resumed[config])


# ------------------------------------------------------------------ stacks


@each_stack
def test_network_trains_in_a_stack_as_alone(case):
    for config in case.configs[::2]:
        assert_same(case, train(case)[config], train(case.of(config))[config])


@each_stack
def test_networks_leave_a_stack_and_resume_alone_without_affecting_the_others(case):
    run, leaving = begin(case), case.configs[::3]
    stored = {}

    def leave() -> None:
        if run.step == MIDDLE:
            stored.update(store(run))
            run.remove_configs(leaving)

    kept = finish(run, leave)
    assert set(kept) == {*case.configs} - {*leaving}
    resumed = finish(begin(case.of(leaving[0]), {leaving[0]: stored[leaving[0]]}))
    for config, result in (kept | resumed).items():
        assert_same(case, result, train(case)[config])


@each_stack
def test_network_that_diverges_does_not_affect_the_others(case):
    diverged = case.configs[1]
    weights = extract(case.of(diverged).build())
    weights["head.weight"].fill_(math.nan)
    run = TrainLoop(case.build({diverged: weights}), DATA, SETTINGS)
    for config, result in finish(run).items():
        if config == diverged:
            assert not result.state.ema_loss.isfinite()
            assert not result.eval_losses.isfinite().any()
        else:
            assert_same(case, result, train(case)[config])


# ------------------------------------------------------------------ weights


@each_case
def test_initial_weights_depend_on_seed_replicate_and_architecture_alone(case):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    network = case.build()
    assert torch.equal(torch.rand(3), expected)
    precision = case.implementation.precisions[-1]
    seen = []
    for k, config in enumerate(network.configs):
        other = config._replace(optimizer=networks.OPTIMIZERS[0])
        alone = replace(case.of(other), precision=precision)
        weights = extract(network, k)
        for name, weight in extract(alone.build()).items():
            assert torch.equal(weight.float(), weights[name].float()), name
        seen += [
            weights,
            extract(alone.build(seed=4)),
            extract(case.of(config._replace(replicate=7)).build()),
        ]
    starts = {tuple(weights["embedding.bias"].float().tolist()) for weights in seen}
    texts = {(config.architecture, config.replicate) for config in case.configs}
    assert len(starts) >= 3 * len(texts) - 1


# ------------------------------------------------------------------ what trains together

FULL = GatedOptions(True, True, True, True, True, "both").network(2, 5)
LSTM = NetworkConfig("lstm", 2, 5)
MIN_GRU = TrialConfig(cell_config("MinGRU"), 0, 2)


def test_configs_of_one_key_are_trained_together():
    gated = TrialConfig(FULL)
    others = replace(FULL.gated, forget_gate=False).network(2, 5)
    other_gates = TrialConfig(others, optimizer=OptimizerConfig("sgd"))
    far, lstm = gated._replace(bptt_steps=2), TrialConfig(LSTM)
    groups = [[gated, other_gates]]
    for config in (MIN_GRU, far, lstm):
        others = config._replace(replicate=1), config._replace(optimizer=OptimizerConfig("sgd"))
        groups.append([config, *others])
    for configs in groups:
        assert lockstep_obstacle(configs[0].architecture) is None
        assert len(set(map(stack_key, configs))) == 1
        assert set(build_network(configs, 0).configs) == set(configs)
    alone = TrialConfig(cell_config("TorchGRU"))
    assert lockstep_obstacle(alone.architecture) is not None
    assert build_network([alone], 0).configs == (alone,)


@pytest.mark.parametrize(
    "configs",
    [
        [TrialConfig(FULL), TrialConfig(replace(FULL, layers=1))],
        [TrialConfig(FULL), TrialConfig(FULL, replicate=1)],  # which reads another text
        [MIN_GRU, MIN_GRU._replace(bptt_steps=3)],
    ],
)
def test_configs_that_cannot_be_trained_together_are_refused(configs):
    with pytest.raises(ValueError, match="cannot be trained together: expected one stack_key"):
        build_network(configs, 0)
