"""Forecast how long a search that prunes still trains.

A trial trains on from a rung as long as its keep probability is not below that of the least
promising trial that trains on. Until it reaches that rung, the prediction of its final value moves.
The mean of a calibrated prediction is a martingale, and its variance is taken to shrink with the
steps that are left, so the mean moves as a Brownian motion does, and the chance to train on from
the rung follows from the keep probability of now.
"""

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.pruning.policy import PruningPolicy, StudyState
from search.pruning.predictions import MIN_COMPLETE, cumulate
from search.pruning.regression import Floats, Mask
from search.pruning.scheduler import PauseResumeScheduler, create_schedulers
from studies.attributes import STEPS_PER_SECOND
from studies.config import StudyConfig
from studies.space import COST_PARAMS
from studies.storage.reads import read_attribute_of_all
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import TrialStatus

_RESOLVED = 0.8
"""Share of the keep probability of trials that train on which is not left where they pause again.
Chosen on simulated searches: with 1, forecasts are a fifth too low."""

_MAX_RATIO = 2.0
"""Greatest ratio of the ends of a range to the estimate: few searches differ more from it."""


FORECAST_SECONDS = 10.0
"""Shortest time between two forecasts."""


@dataclass(frozen=True)
class Forecast:
    """Time that a search still trains, in seconds of one worker.

    Attributes:
        likely: the estimate.
        low: least of a range that contains most outcomes.
        high: most of this range.
    """

    likely: float
    low: float
    high: float

    @classmethod
    def from_bounds(cls, least: float, most: float) -> "Forecast":
        """Return the geometric mean of two extremes, and the part of them that is near it."""
        likely = math.sqrt(least * most)
        return cls(likely, max(least, likely / _MAX_RATIO), min(most, likely * _MAX_RATIO))


def forecast_training(
    policy: PruningPolicy, stored: StudyState, is_audited: Mask, seconds_per_step: Floats
) -> Forecast | None:
    """Forecast the rest of a search.

    The least is that each trial trains to its end with its probability to finish among the best.
    The most is that results of other trials change no prediction: they narrow it.

    Args:
        policy: the pruning policy for the state of the study, with N trials.
        stored: that state, with audited trials where they are and not where decisions see them.
        is_audited: (N,) which trials are audited.
        seconds_per_step: (N,) pace of each trial, or of the runs of a candidate together; NaN if
            it is unknown.

    Returns:
        None without predictions, or if the pace of a trial that may train is unknown.
    """
    if np.isfinite(stored.values).sum() < MIN_COMPLETE:
        return None
    unfinished = stored.in_stage(TrialStatus.WAITING, TrialStatus.RUNNING, TrialStatus.PAUSED)
    reached = stored.rungs_reached[:, None]
    places = np.arange(len(stored.steps_to_next_rung))  # of the rungs from which trials train on
    is_left = unfinished[:, None] & (places >= reached)  # (N, R + 1)
    is_next = unfinished[:, None] & (places == reached)
    is_running = stored.in_stage(TrialStatus.RUNNING)[:, None]
    is_paused = stored.in_stage(TrialStatus.PAUSED)[:, None]
    is_sure = (is_next & ~is_paused) | (is_left & is_audited[:, None])
    seconds = seconds_per_step[:, None] * stored.steps_to_next_rung
    seconds = np.where(is_next & is_running, seconds / 2, seconds)  # half done on average
    least = np.where(is_sure, 1.0, policy.keep_probabilities[:, None])
    most = np.where(is_sure, 1.0, np.maximum(least, _chances_to_train(policy)))
    if np.isnan(seconds[is_left]).any():
        return None
    return Forecast.from_bounds(
        float((least * seconds)[is_left].sum()), float((most * seconds)[is_left].sum())
    )


def _chances_to_train(policy: PruningPolicy) -> Floats:
    """Return the chance of each trial to train on from the start and from each rung, (N, R + 1).

    The probability of a paused trial that is not to train on, p, rises to that of those that are,
    q, with a chance of p / q at most (Ville, *Étude critique de la notion de collectif*, 1939).
    """
    state = policy.state
    probabilities = policy.keep_probabilities
    planned = policy.plan_training(_RESOLVED)
    least_probable = max(probabilities[planned].min(initial=1.0), np.finfo(np.float64).tiny)
    resumes = np.minimum(1.0, probabilities / least_probable)
    resumes[planned] = 1.0
    resumes[state.in_stage(TrialStatus.WAITING, TrialStatus.RUNNING)] = 1.0
    reached = state.rungs_reached[:, None]
    ends = np.cumsum(state.steps_to_next_rung)
    left = 1 - np.concatenate([[0.0], ends[:-1]]) / ends[-1]  # (R + 1,) share of the steps
    is_later = np.arange(len(left)) > reached
    ratio = np.sqrt(left / left[reached])  # of the scale at a later rung to that at this one
    moved = np.sqrt(1 - np.where(is_later, ratio, 0.0) ** 2)
    scores = policy.prediction.compute_scores(np.array(policy.top_threshold))
    least = scores[planned].min(initial=math.inf)
    continues = cumulate((scores[:, None] - ratio * least) / moved)
    chances = np.where(is_later, continues, 1.0) * resumes[:, None]
    return np.minimum.accumulate(chances, axis=1)


def measure_pace(trials: Sequence[Mapping[str, Any]], rates: Sequence[float | None]) -> Floats:
    """Return the seconds per step of each trial: the mean of those of its shape, (N,).

    It is NaN where no trial of a shape has a rate in steps per second.
    """
    shapes = [tuple(params.get(name) for name in COST_PARAMS) for params in trials]
    known: dict[tuple[Any, ...], list[float]] = {}
    for shape, rate in zip(shapes, rates, strict=True):
        if rate:
            known.setdefault(shape, []).append(1 / rate)
    means = {shape: float(np.mean(paces)) for shape, paces in known.items()}
    return np.array([means.get(shape, math.nan) for shape in shapes], dtype=np.float64)


class Forecaster:
    """Forecasts the rest of a search that prunes, in at most one percent of the time."""

    def __init__(self, storage: LeasedRDBStorage, study_id: int, config: StudyConfig) -> None:
        self._storage = storage
        self._study_id = study_id
        self._schedulers = create_schedulers(storage, study_id, config)
        self._forecast: Forecast | None = None
        self._due_at = -math.inf

    def read(self) -> Forecast | None:
        """Return the forecast, computed anew if that is due; None if nothing is known yet."""
        started_at = time.monotonic()
        if started_at >= self._due_at:
            # A forecast that fails must not end a search whose decisions may fail.
            with contextlib.suppress(np.linalg.LinAlgError, MemoryError):
                self._forecast = self._compute()
            now = time.monotonic()
            self._due_at = now + max(FORECAST_SECONDS, 100 * (now - started_at))
        return self._forecast

    def _compute(self) -> Forecast | None:
        rates = read_attribute_of_all(self._storage, self._study_id, STEPS_PER_SECOND)
        found = [_forecast_task(scheduler, rates) for scheduler in self._schedulers.values()]
        known = [forecast for forecast in found if forecast is not None]
        if len(known) < len(found):
            return None
        return Forecast(
            sum(forecast.likely for forecast in known),
            sum(forecast.low for forecast in known),
            sum(forecast.high for forecast in known),
        )


def _forecast_task(scheduler: PauseResumeScheduler, rates: Mapping[int, float]) -> Forecast | None:
    """Forecast the rest of the search in one task, from the steps per second of trials."""
    progress = scheduler.read()
    pace = measure_pace(
        [trial.params for trial in progress.trials],
        [rates.get(trial.number) for trial in progress.trials],
    )
    of_trials = dict(zip((trial.number for trial in progress.trials), pace, strict=True))
    of_candidates = [
        sum(of_trials[run.number] for run in candidate.runs) for candidate in progress.candidates
    ]
    is_audited = [candidate.audit is not None for candidate in progress.candidates]
    policy = scheduler.build_policy(progress)
    return forecast_training(
        policy, progress.state, np.array(is_audited, dtype=bool), np.array(of_candidates)
    )
