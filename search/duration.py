"""Estimate how long a grid takes, before any of its trials was trained."""

import contextlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from rnn.config import BYTE_VOCAB_SIZE, ParamValue, TaskSpec, TrialConfig
from rnn.engines import build_network
from rnn.network import count_parameters
from rnn.tasks.corpus import TextData
from rnn.tasks.task import TrainingData
from rnn.training.loop import TrainConfig, TrainLoop
from rnn.training.step import WARMUP_STEPS
from search.errors import is_bug
from search.worker.lockstep_size import auto_lockstep, differing_params
from studies.cli import print_bug
from studies.config import StudyConfig, to_trial_config, training_settings
from studies.space import COST_PARAMS, Params
from studies.text import format_duration

MAX_SHAPES = 3
"""Number of shapes that are measured; they are evenly spaced in their order of cost."""

MEASURE_SECONDS = 0.3
"""Seconds for which each of them is trained, if a step does not take longer."""

_SAMPLE_SIZE = 64
"""Number of trials of each shape from which networks are chosen."""


def describe_duration(
    config: StudyConfig, count: int, device: torch.device, data: TrainingData | None = None
) -> str:
    """Describe about how long trials of a grid take; return "" if that cannot be measured.

    Args:
        config: config with a search space.
        count: number of trials.
        device: device to train on.
        data: what to train on; None for random bytes.
    """
    try:
        seconds = count * config.training.steps * _measure_step(config, device, data)
    except Exception as error:  # such as too little memory: an estimate must not end a search
        if is_bug(error):
            print_bug(error)
        return ""
    return f", about {format_duration(seconds)} for one worker of this machine"


def to_train_config(
    config: StudyConfig, params: Mapping[str, Any] = MappingProxyType({})
) -> TrainConfig:
    """Return the settings of a training.

    Args:
        config: config of the study.
        params: parameters of the trial, which may set some; none for the study's settings.
    """
    training = training_settings(params, config)
    return TrainConfig(
        steps=training.steps,
        batch_size=training.batch_size,
        sequence_length=training.sequence_length,
        log_every=training.log_every,
        smoothing=training.smoothing,
        seed=config.seed,
        average_fraction=config.evaluation.average,
    )


def sequence_steps(config: StudyConfig, params: Mapping[str, Any]) -> int:
    """Return the number of steps of a trial's training sequences."""
    if config.task_record is not None:
        return config.task_record.steps
    return training_settings(params, config).sequence_length - 1


@dataclass
class _Shape:
    """Trials of about the same cost.

    Attributes:
        count: number of the trials.
        sample: some of them, chosen at random.
    """

    count: int = 0
    sample: list[Params] = field(default_factory=list)

    def add(self, params: Params, generator: random.Random) -> None:
        """Count a trial; each is in the sample with the same probability."""
        self.count += 1
        if len(self.sample) < _SAMPLE_SIZE:
            self.sample.append(params)
        elif (index := generator.randrange(self.count)) < _SAMPLE_SIZE:
            self.sample[index] = params


def _measure_step(config: StudyConfig, device: torch.device, data: TrainingData | None) -> float:
    """Return the mean time of a training step of one network of the grid, in seconds."""
    grid = config.grid
    assert grid is not None
    generator = random.Random(config.seed)
    by_key: dict[tuple[ParamValue | None, ...], _Shape] = {}
    for params in grid.combinations():
        key = tuple(params.get(name) for name in COST_PARAMS)
        by_key.setdefault(key, _Shape()).add(params, generator)
    shapes = sorted(by_key.values(), key=lambda shape: _estimate_cost(config, shape.sample[0]))
    measured = min(MAX_SHAPES, len(shapes))
    seconds = []
    for index in range(measured):
        sample = shapes[(2 * index + 1) * len(shapes) // (2 * measured)].sample
        settings = to_train_config(config, sample[0])
        trained = data or _random_text(settings)
        networks = _select_lockstep(sample, config, device, trained.spec)
        seconds.append(_time_steps(networks, trained, settings, device) / len(networks))
    return fmean(seconds)


def _select_lockstep(
    sample: Sequence[Params], config: StudyConfig, device: torch.device, spec: TaskSpec
) -> list[TrialConfig]:
    """Return the networks of trials that a worker would train in lockstep with the first."""
    first = to_trial_config(sample[0], config)
    streams = max(to_train_config(config, sample[0]).batch_size, config.evaluation.windows)
    steps = sequence_steps(config, sample[0])
    limit = auto_lockstep(first, streams, "fp32", device, spec, steps)
    differing = differing_params(first, spec)

    def common(params: Params) -> Params:
        return {name: value for name, value in params.items() if name not in differing}

    matching = [params for params in sample if common(params) == common(sample[0])]
    return [to_trial_config(params, config) for params in matching[:limit]]


def _estimate_cost(config: StudyConfig, params: Params) -> int:
    """Return a number that grows with the time of a training step."""
    trial_config = to_trial_config(params, config)
    weights = count_parameters(trial_config.architecture)
    # Steps that are computed for each step of the training.
    repeated = max(1, trial_config.bptt_steps // trial_config.update_every)
    return weights * repeated * to_train_config(config, params).batch_size


def _random_text(settings: TrainConfig) -> TextData:
    length = settings.batch_size + 2 * settings.sequence_length
    text = np.random.default_rng(0).integers(BYTE_VOCAB_SIZE, size=length, dtype=np.uint8)
    return TextData(text)


def _time_steps(
    networks: Sequence[TrialConfig], data: TrainingData, settings: TrainConfig, device: torch.device
) -> float:
    """Train networks for a moment; return the seconds of a step."""
    settings = replace(settings, steps=10**9, log_every=10**9, average_fraction=0.0)
    network = build_network(networks, settings.seed, spec=data.spec, device=device)
    loop = TrainLoop(network, data, settings)
    # The first update takes longer, for it allocates memory; on a GPU, until one is recorded.
    first = WARMUP_STEPS if device.type == "cuda" else 0
    ends: list[float] = []
    steps: list[int] = []

    def on_step() -> None:
        ends.append(time.monotonic())
        steps.append(loop.step)
        if len(ends) > first + 1 and ends[-1] - ends[first] >= MEASURE_SECONDS:
            raise _MeasuredError

    with contextlib.suppress(_MeasuredError):
        for _ in loop.train(on_step):
            pass
    if device.type == "cuda":  # steps are only queued
        torch.cuda.synchronize(device)
        ends[-1] = time.monotonic()
    return (ends[-1] - ends[first]) / (steps[-1] - steps[first])


class _MeasuredError(Exception):
    """Ends a training that has been measured."""
