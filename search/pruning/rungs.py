"""Rungs: the steps at which the pruner compares trials."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search.pruning.regression import Floats
from studies.storage.reads import Rung

Rungs = NDArray[np.int64]
"""Number of rungs of each trial."""

RUNG_FRACTIONS = (0.04, 0.08, 0.16, 0.32, 0.64)
"""Fractions of the training steps at which the rungs lie."""

SMOOTHING_FRACTION = 0.2
"""Last part of the steps to a rung over which the loss is averaged: single log points are noisy."""


def compute_rungs(steps: int, log_every: int) -> list[Rung]:
    """Return the rungs of a training: log points before its end."""
    rungs: list[Rung] = []
    last = 0
    for fraction in RUNG_FRACTIONS:
        step = math.ceil(fraction * steps / log_every) * log_every
        if last < step < steps:
            start = max(last, min(int((1 - SMOOTHING_FRACTION) * step), step - log_every))
            rungs.append(Rung(step, start))
            last = step
    return rungs


def compute_steps_to_next_rung(rungs: Sequence[Rung], steps: int) -> Floats:
    """Return the steps from the start and from each rung to the next rung or the end, (R + 1,)."""
    return np.diff([0, *(rung.step for rung in rungs), steps]).astype(float)
