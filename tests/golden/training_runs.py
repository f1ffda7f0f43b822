"""Tiny training runs: the one module of the golden results that knows how networks are trained."""

import contextlib
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from user_cells import CELLS, EXAMPLES, cell_config

from rnn.autograd import AutogradStack, lockstep_obstacle
from rnn.config import BASELINE_CELLS, GatedOptions, NetworkConfig, Precision, TrialConfig
from rnn.engines import build_network, stack_key
from rnn.native.engine import NativeStack
from rnn.native.library import load_library
from rnn.stacked.engine import NetworkStack, can_stack
from rnn.tasks.text import TextData, select_eval_windows
from rnn.training.checkpoint import deserialize_checkpoint, serialize_checkpoint
from rnn.training.evaluation import compute_eval_losses
from rnn.training.loop import TrainConfig, TrainLoop

ENGINES = {"native": NativeStack, "stacked": NetworkStack, "autograd": AutogradStack}

VOCAB_SIZE, SEED, IDENTITY = 11, 1, "settings of the training"

TRAIN_CONFIG = TrainConfig(
    steps=16,
    batch_size=3,
    sequence_length=8,
    log_every=4,
    smoothing=0.5,
    seed=3,
    average_fraction=0.25,
)

TEXT = np.array([(i * i // 5 + i // 7) % VOCAB_SIZE for i in range(240)], np.uint8)


class Case(NamedTuple):
    """A network and how it is trained, with a name in a user's words."""

    name: str
    config: TrialConfig


def make_case(network, cell, options, bptt_steps, optimizer, replicate=0) -> Case:
    """Return the training of two layers of a cell, built in or a user's own."""
    if cell in CELLS or cell in EXAMPLES:
        # So small that no tensor has 16 random normal numbers, which depend on the kind of CPU.
        architecture = cell_config(cell, 2, 3, **options)
    elif cell in BASELINE_CELLS:
        architecture = NetworkConfig(cell, 2, 5)
    else:
        architecture = GatedOptions(**options).network(layers=2, state_size=5)
    schedule = "" if optimizer.schedule == "constant" else f", {optimizer.schedule}"
    name = f"{network}, bptt_steps {bptt_steps}, {optimizer.name}{schedule}"
    config = TrialConfig(architecture, replicate, bptt_steps, optimizer)
    return Case(f"{name} #{replicate}" if replicate else name, config)


def can_train(engine: str, cases: Sequence[Case], precision: Precision) -> bool:
    """Return whether an engine can train these networks together on this machine."""
    configs = [case.config for case in cases]
    if engine == "autograd":
        return len({(config.architecture, config.bptt_steps) for config in configs}) == 1
    has_library = engine == "stacked" or load_library(precision) is not None
    return has_library and all(map(can_stack, configs))


def lockstep_groups(cases: Sequence[Case]) -> list[tuple[Case, ...]]:
    """Return the cases that can train together."""
    groups: dict[Hashable, tuple[Case, ...]] = {}
    for case in cases:
        if lockstep_obstacle(case.config.architecture) is None:
            key = stack_key(case.config)
            groups[key] = (*groups.get(key, ()), case)
    return [group for group in groups.values() if len(group) > 1]


class Run:
    """Training of networks together, by an engine or the project's own choice of it."""

    def __init__(self, cases, precision, engine=None, checkpoints=()) -> None:
        self._cases, self._arguments = cases, (precision, engine)
        configs = [case.config for case in cases]
        states = {
            config: deserialize_checkpoint(IDENTITY, content)
            for config, content in zip(configs, checkpoints, strict=False)
        }
        weights = {config: state.weights for config, state in states.items()}
        build = build_network if engine is None else ENGINES[engine]
        data = TextData(TEXT[:200], VOCAB_SIZE)
        stack = build(configs, SEED, precision, data.spec, weights=weights)
        self._loop = TrainLoop(stack, data, TRAIN_CONFIG, states)

    def interrupt(self, step: int) -> "Run":
        """Train up to a step, and return a run that resumes from checkpoints written there."""
        loop = self._loop

        def stop() -> None:
            if loop.step == step:
                raise InterruptedError

        with contextlib.suppress(InterruptedError):
            list(loop.train(stop))
        states = [loop.train_state(case.config) for case in self._cases]
        checkpoints = [serialize_checkpoint(state, IDENTITY) for state in states]
        return Run(self._cases, *self._arguments, checkpoints)

    def finish(self) -> dict[str, dict[str, float]]:
        """Train to the end; return the results of each network by its name.

        These are the smoothed loss at each log point, and the held-out loss of the last weights and
        of their average.
        """
        loop = self._loop
        list(loop.train())
        results = [{f"step {step}": loss for step, loss in curve.items()} for curve in loop.curves]
        for name in ("held out", "held out, averaged"):
            losses = compute_eval_losses(loop.stack, select_eval_windows(TEXT[200:], 3, 9))
            for result, loss in zip(results, losses.mean(1).tolist(), strict=True):
                result[name] = loss
            loop.swap_in_averaged_weights()
        return {case.name: results[loop.configs.index(case.config)] for case in self._cases}
