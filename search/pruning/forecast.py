"""Forecast how long a search that prunes still trains."""

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search.pruning.policy import PruningPolicy, StudyState
from search.pruning.predictions import MIN_COMPLETE
from search.pruning.regression import Floats, Mask
from search.pruning.scheduler import PauseResumeScheduler, create_schedulers
from studies.attributes import STEPS_PER_SECOND
from studies.config import StudyConfig
from studies.space import COST_PARAMS
from studies.storage.reads import read_attribute_of_all
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import TrialStatus

FORECAST_SECONDS = 10.0
"""Shortest time between two forecasts."""


def forecast_training(
    policy: PruningPolicy, stored: StudyState, is_audited: Mask, seconds_per_step: Floats
) -> float | None:
    """Forecast the seconds of one worker that the rest of a search takes.

    It is the geometric mean of two extremes: of the paused trials, each trains to its end with its
    probability to finish among the best, or all do that are to train on if predictions stay as they
    are.

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
    if np.isnan(seconds[is_left]).any():
        return None
    least = policy.keep_probabilities
    most = least.copy()
    most[policy.plan_training()] = 1.0
    extremes = [np.where(is_sure, 1.0, chances[:, None]) * seconds for chances in (least, most)]
    return math.sqrt(math.prod(float(extreme[is_left].sum()) for extreme in extremes))


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
        self._forecast: float | None = None
        self._due_at = -math.inf

    def read(self) -> float | None:
        """Return the seconds of one worker, computed anew if that is due; None if unknown."""
        started_at = time.monotonic()
        if started_at >= self._due_at:
            # A forecast that fails must not end a search whose decisions may fail.
            with contextlib.suppress(np.linalg.LinAlgError, MemoryError):
                self._forecast = self._compute()
            now = time.monotonic()
            self._due_at = now + max(FORECAST_SECONDS, 100 * (now - started_at))
        return self._forecast

    def _compute(self) -> float | None:
        rates = read_attribute_of_all(self._storage, self._study_id, STEPS_PER_SECOND)
        found = [_forecast_task(scheduler, rates) for scheduler in self._schedulers.values()]
        known = [seconds for seconds in found if seconds is not None]
        return sum(known) if len(known) == len(found) else None


def _forecast_task(scheduler: PauseResumeScheduler, rates: Mapping[int, float]) -> float | None:
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
