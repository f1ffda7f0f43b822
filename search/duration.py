"""Estimate how long a grid takes, before any of its trials was trained."""

import contextlib
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import torch

from rnn.config import BYTE_VOCAB_SIZE, TrialConfig
from rnn.models.factory import build_network
from rnn.models.shapes import count_parameters
from rnn.training.loop import TrainConfig, TrainLoop
from search.worker.lockstep_size import auto_lockstep
from studies.config import StudyConfig, to_trial_config
from studies.space import COST_PARAMS, Params
from studies.text import format_duration

MAX_SHAPES = 3
"""Number of shapes that are measured; they are evenly spaced in the number of weights."""

MEASURE_SECONDS = 0.3
"""Seconds for which each of them is trained, if a step does not take longer."""


def describe_duration(config: StudyConfig, count: int, device: torch.device) -> str:
    """Describe about how long trials of a grid take; return "" if that cannot be measured.

    Args:
        config: config with a search space.
        count: number of trials.
        device: device to train on.
    """
    try:
        seconds = count * config.training.steps * _measure_step(config, device)
    except Exception:  # such as too little memory: an estimate must not end a search
        return ""
    return f", about {format_duration(seconds)} for one worker of this machine"


def to_train_config(config: StudyConfig) -> TrainConfig:
    """Return the settings of the training of all trials of a study."""
    training = config.training
    return TrainConfig(
        steps=training.steps,
        batch_size=training.batch_size,
        sequence_length=training.sequence_length,
        log_every=training.log_every,
        smoothing=training.smoothing,
        seed=config.seed,
        average_fraction=config.evaluation.average,
    )


def _measure_step(config: StudyConfig, device: torch.device) -> float:
    """Return the mean time of a training step of one network of the grid, in seconds."""
    space = config.grid
    assert space is not None
    names = [name for name in space.parameters if name in COST_PARAMS]
    shapes: list[Params] = [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*map(space.values, names))
    ]
    first = next(space.combinations())
    shapes.sort(key=lambda shape: _count_weights(config, first | shape))
    measured = min(MAX_SHAPES, len(shapes))
    generator = random.Random(config.seed)
    seconds = []
    for index in range(measured):
        shape = shapes[(2 * index + 1) * len(shapes) // (2 * measured)]
        # As a worker would train them: in lockstep, with different switches.
        streams = max(config.training.batch_size, config.evaluation.windows)
        limit = auto_lockstep(to_trial_config(first | shape, config), streams, "fp32", device)
        combinations = [
            {name: generator.choice(space.values(name)) for name in space.parameters} | shape
            for _ in range(limit)
        ]
        networks = list(dict.fromkeys(to_trial_config(each, config) for each in combinations))
        seconds.append(_time_steps(networks, to_train_config(config), device) / len(networks))
    return fmean(seconds)


def _count_weights(config: StudyConfig, params: Params) -> int:
    return count_parameters(to_trial_config(params, config).architecture)


def _time_steps(
    networks: Sequence[TrialConfig], settings: TrainConfig, device: torch.device
) -> float:
    """Train networks on random bytes for a moment; return the seconds of a step."""
    settings = replace(settings, steps=10**6, log_every=10**6, average_fraction=0.0)
    length = settings.batch_size + 2 * settings.sequence_length
    text = np.random.default_rng(0).integers(BYTE_VOCAB_SIZE, size=length, dtype=np.uint8)
    loop = TrainLoop(build_network(networks, settings.seed, device=device), text, settings)
    ends: list[float] = []

    def on_step() -> None:
        ends.append(time.monotonic())
        # The first step takes longer, for it allocates memory.
        if len(ends) > 1 and ends[-1] - ends[0] >= MEASURE_SECONDS:
            raise _MeasuredError

    with contextlib.suppress(_MeasuredError):
        for _ in loop.train(on_step):
            pass
    if device.type == "cuda":  # steps are only queued
        torch.cuda.synchronize(device)
        ends[-1] = time.monotonic()
    return (ends[-1] - ends[0]) / (len(ends) - 1)


class _MeasuredError(Exception):
    """Ends a training that has been measured."""
