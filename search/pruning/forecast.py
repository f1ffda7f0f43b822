"""Forecast how long a search that prunes still trains.

A trial trains on from a rung as long as its keep probability is not below that of the least
promising trial that trains on now. The prediction of its final value moves until then: of a
calibrated prediction the mean is a martingale, and what is left of its variance is taken to shrink
with the steps that are left. So the mean moves as a Brownian motion does, and the chance to train
on from a later rung follows from the keep probability.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.pruning.policy import PruningPolicy, StudyState
from search.pruning.predictions import MIN_COMPLETE, cumulate
from search.pruning.regression import Floats, Mask
from studies.space import COST_PARAMS
from studies.storage.trials import TrialStatus


@dataclass(frozen=True)
class Forecast:
    """Time that a search still trains, in seconds of one worker.

    Attributes:
        low: if each trial trained to its end with its probability of finishing among the best.
        high: if results of other trials did not change a prediction: they narrow it, by so much the
            more as fewer are complete.
    """

    low: float
    high: float

    @property
    def likely(self) -> float:
        """Geometric mean of both."""
        return math.sqrt(self.low * self.high)


def forecast_training(
    policy: PruningPolicy, stored: StudyState, is_audited: Mask, seconds_per_step: Floats
) -> Forecast | None:
    """Forecast the rest of a search.

    Args:
        policy: the pruning policy for the state of the study, with N trials.
        stored: that state, with audited trials where they are and not where decisions see them.
        is_audited: (N,) which trials are audited.
        seconds_per_step: (N,) pace of each trial; NaN if it is unknown.

    Returns:
        None without predictions, or if the pace of a trial that may train is unknown.
    """
    if np.isfinite(stored.values).sum() < MIN_COMPLETE:
        return None
    unfinished = stored.in_stage(TrialStatus.WAITING, TrialStatus.RUNNING, TrialStatus.PAUSED)
    # (N, R + 1) each row: from the start and from each rung to the next.
    seconds = seconds_per_step[:, None] * stored.steps_to_next_rung
    places = np.arange(seconds.shape[1])
    is_left = unfinished[:, None] & (places >= stored.rungs_reached[:, None])
    is_next = unfinished[:, None] & (places == stored.rungs_reached[:, None])
    is_running = stored.in_stage(TrialStatus.RUNNING)
    seconds = np.where(is_next & is_running[:, None], seconds / 2, seconds)  # half done on average
    is_sure = is_next & ~stored.in_stage(TrialStatus.PAUSED)[:, None]
    is_sure |= is_left & is_audited[:, None]
    low = np.where(is_sure, 1.0, policy.keep_probabilities[:, None])
    high = np.maximum(low, np.where(is_sure, 1.0, _chances_to_train(policy)))
    if np.isnan(seconds[is_left & (high > 0)]).any():
        return None
    totals = [float((chance * seconds)[is_left & (high > 0)].sum()) for chance in (low, high)]
    return Forecast(*totals)


def _chances_to_train(policy: PruningPolicy) -> Floats:
    """Return the chance of each trial to train from the start and from each rung on, (N, R + 1)."""
    state = policy.state
    reached = state.rungs_reached[:, None]
    ends = np.cumsum(state.steps_to_next_rung)
    left = 1 - np.concatenate([[0.0], ends[:-1]]) / ends[-1]  # (R + 1,) share of the steps
    scores = policy.prediction.compute_scores(np.array(policy.top_threshold))
    places = np.arange(len(left))
    ratio = np.sqrt(left / left[reached])  # of the scale at a later rung to that at this one
    later = places > reached
    moved = np.sqrt(1 - np.where(later, ratio, 0.0) ** 2)
    least = scores[policy.to_train].min(initial=math.inf)
    chances = cumulate((scores[:, None] - ratio * least) / moved)
    is_next = np.zeros(len(scores))
    is_next[policy.to_train] = 1.0
    chances = np.where(later, chances, is_next[:, None])
    return np.minimum.accumulate(chances, axis=1)


def measure_pace(trials: Sequence[Mapping[str, Any]], rates: Sequence[float | None]) -> Floats:
    """Return the seconds per step of each trial: the mean of those of its shape, (N,).

    Args:
        trials: parameters of the trials.
        rates: steps per second of each; None if it is unknown.

    Returns:
        NaN where no trial of a shape has a rate.
    """
    shapes = [tuple(params.get(name) for name in COST_PARAMS) for params in trials]
    known: dict[tuple[Any, ...], list[float]] = {}
    for shape, rate in zip(shapes, rates, strict=True):
        if rate:
            known.setdefault(shape, []).append(1 / rate)
    means = {shape: float(np.mean(paces)) for shape, paces in known.items()}
    return np.array([means.get(shape, math.nan) for shape in shapes], dtype=np.float64)
