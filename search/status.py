"""Progress of a study, read from its storage, and what a worker reports of its trials."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from rnn.config import TrialConfig
from search.pruning.forecast import Forecast, forecast_training, measure_pace
from search.pruning.scheduler import PauseResumeScheduler, compute_rungs
from search.worker.claims import ClaimManager
from studies.attributes import STEPS_PER_SECOND, AuditLook, Failure
from studies.best import Best, BestReader
from studies.config import StudyConfig, to_trial_config
from studies.space import COST_PARAMS
from studies.storage.counts import (
    ActiveWorker,
    RungCounts,
    TimingStats,
    TrialCounts,
    count_at_rung,
    count_audited,
    count_retries,
    count_trials,
    read_active_workers,
    read_leaders,
    timing_by_shape,
)
from studies.storage.reads import read_audit_looks, read_last_losses, read_numbers
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import StoredTrial

READ_TIMEOUT = 2.0
"""Seconds that a worker waits for the storage before it takes the last known status."""

RECENT_TIMEOUT = 0.5
"""Seconds that a display waits for the storage before it shows the last known status."""

REFRESH_SECONDS = 2.0
"""Interval between reads of the status for a display that is redrawn."""

MEASURE_SECONDS = 10.0
"""Shortest time between two measurements of the checkpoints, and between two forecasts."""

LEADERS = 3
"""Number of trials that a status names at the first rung."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class RunningTrial:
    """A trial in the middle of its training, at its last logged step, 0 before the first."""

    number: int
    trial_config: TrialConfig
    step: int
    steps: int
    smoothed_loss: float | None = None


@dataclass(frozen=True)
class TrialEvent:
    """End of a worker's training of a trial.

    Attributes:
        trial: the trial as it was claimed.
        message: description of the outcome.
        value: objective value of a complete trial, else None.
        seconds: time since its training began.
        is_paused: whether the trial is paused and may resume.
    """

    trial: FrozenTrial
    message: str
    value: float | None
    seconds: float
    is_paused: bool = False


@dataclass(frozen=True)
class FirstRung:
    """Trials of a pruned study at the first step at which they are compared.

    Attributes:
        step: step of the rung.
        reached: number of grid trials that have trained to it.
        leaders: those with the lowest losses there, the best first.
        seconds_left: estimated time until all have; None if unknown.
        is_at_least: whether that leaves out networks of sizes whose pace is not known yet.
    """

    step: int
    reached: int
    leaders: Sequence[RunningTrial] = ()
    seconds_left: float | None = None
    is_at_least: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the rung as ``--json`` prints it."""
        leaders = [
            {
                "number": trial.number,
                "architecture": trial.trial_config.label,
                "loss": trial.smoothed_loss,
            }
            for trial in self.leaders
        ]
        return vars(self) | {"leaders": leaders}


@dataclass(frozen=True)
class Status:
    """Progress of a study.

    Attributes:
        name: name of the study.
        counts: number of grid trials by state.
        best: what is best so far; None before the first complete trial, and of several tasks.
        seconds_left: estimated time with the current workers; None if unknown.
        seconds_range: of a search that prunes, the least and the most that it is likely to be.
        retries: number of requeued trials, by reason.
        audited: number of trials that are trained to the end whatever the pruner decides.
        looks: planned looks at these trials so far, by name.
        workers: workers that hold trials.
        first_rung: trials at the first rung; None without pruning, and once every trial has begun
            and one is complete.
        checkpoint_bytes: size of the checkpoints; None if it is not measured.
        best_by_task: what is best so far in each of several tasks, by name.
    """

    name: str
    counts: TrialCounts
    best: Best | None
    seconds_left: float | None
    retries: Mapping[Failure, int]
    audited: int = 0
    looks: Mapping[str, AuditLook] = field(default_factory=dict)
    workers: Sequence[ActiveWorker] = ()
    first_rung: FirstRung | None = None
    checkpoint_bytes: int | None = None
    best_by_task: Mapping[str, Best] = field(default_factory=dict)
    seconds_range: tuple[float, float] | None = None

    @property
    def is_finished(self) -> bool:
        """Whether every grid trial is finished."""
        return self.counts.finished == self.counts.planned

    def as_json(self) -> dict[str, Any]:
        """Return the status as printed by ``--json``."""
        of_tasks = {name: best.as_json() for name, best in self.best_by_task.items()}
        return ({"best_by_task": of_tasks} if of_tasks else {}) | {
            "study": self.name,
            "planned": self.counts.planned,
            **asdict(self.counts),
            "best": self.best.as_json() if self.best else None,
            "seconds_left": self.seconds_left,
            "seconds_range": self.seconds_range,
            "first_rung": self.first_rung.as_json() if self.first_rung else None,
            "checkpoint_bytes": self.checkpoint_bytes,
            "retries": dict(self.retries),
            "audit": {
                "trials": self.audited,
                "looks": {name: look.model_dump() for name, look in self.looks.items()},
            },
            "workers": [worker.as_json() for worker in self.workers],
        }


def read_status(
    study: optuna.Study,
    storage: LeasedRDBStorage,
    config: StudyConfig,
    workers: int = 0,
    best_reader: BestReader | None = None,
    checkpoints: Path | None = None,
    forecaster: "Forecaster | None" = None,
) -> Status:
    """Read the progress of a study, and measure the folder of its checkpoints, if one is given.

    There are at least so many ``workers``, including those that hold no trial just now. A caller
    keeps the reader of the best and the forecaster for further calls.
    """
    study_id = study._study_id
    with storage.reading() as connection:  # one for all queries
        name = study.study_name
        with contextlib.suppress(KeyError):  # it was deleted
            name = storage.get_study_name_from_id(study_id)
        counts = count_trials(storage, study_id)
        best_reader = best_reader or BestReader(study, storage, config)
        best, best_by_task = best_reader.read(), best_reader.read_tasks()
        holders = read_active_workers(connection, study_id)
        # Of programs without a lease, each is taken to run one trial.
        alive = [each for each in holders if not each.is_expired]
        active = sum(1 if each.name else len(each.trials) for each in alive)
        active = max(active, workers)
        is_pruned = config.pruning.enabled
        seconds_left = seconds_range = first_rung = None
        if is_pruned and counts.waiting:  # pruning decides how many are needed
            forecaster = forecaster or Forecaster(storage, study_id, config)
            forecast = forecaster.read() if active else None
            if forecast is not None:
                seconds_left = forecast.likely / active
                seconds_range = forecast.low / active, forecast.high / active
        else:
            timing = timing_by_shape(storage, study_id, _list_cost_params(config))
            seconds_left = estimate_seconds_left(timing, counts, active)
        has_unstarted = counts.waiting > counts.paused
        if is_pruned and (has_unstarted or (best is None and counts.finished < counts.planned)):
            first_rung = _read_first_rung(storage, study_id, config, active)
        retries = count_retries(storage, study_id)
        audited = count_audited(storage, study_id) if is_pruned else 0
        looks = read_audit_looks(storage, study_id) if audited else {}
    return Status(
        name,
        counts,
        best,
        seconds_left,
        retries,
        audited,
        looks,
        holders,
        first_rung,
        None if checkpoints is None else measure_folder(checkpoints),
        best_by_task,
        seconds_range,
    )


class Forecaster:
    """Forecasts the rest of a search that prunes, in at most one percent of the time."""

    def __init__(self, storage: LeasedRDBStorage, study_id: int, config: StudyConfig) -> None:
        self._storage = storage
        self._study_id = study_id
        self._scheduler = PauseResumeScheduler(storage, study_id, config)
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
            self._due_at = now + max(MEASURE_SECONDS, 100 * (now - started_at))
        return self._forecast

    def _compute(self) -> Forecast | None:
        progress = self._scheduler.read()
        rates = read_numbers(self._storage, self._study_id, STEPS_PER_SECOND)
        pace = measure_pace(
            [trial.params for trial in progress.trials],
            [rates.get(trial.trial_id) for trial in progress.trials],
        )
        is_audited = np.array([trial.is_audited for trial in progress.trials], dtype=bool)
        policy = self._scheduler.build_policy(progress)
        return forecast_training(policy, progress.state, is_audited, pace)


def _read_first_rung(
    storage: LeasedRDBStorage, study_id: int, config: StudyConfig, workers: int
) -> FirstRung | None:
    rungs = compute_rungs(config.training.steps, config.training.log_every)
    if not rungs:
        return None
    step = rungs[0].step
    shapes = count_at_rung(storage, study_id, step, _list_cost_params(config))
    rung = estimate_first_rung(shapes, step, config.training.steps, workers)
    leaders = read_leaders(storage, study_id, step, LEADERS)
    return replace(
        rung, leaders=[_to_running(trial, step, loss, config) for trial, loss in leaders]
    )


def _list_cost_params(config: StudyConfig) -> Sequence[str]:
    """Return the parameters in which trials of different cost can differ."""
    grid = config.grid
    return COST_PARAMS if grid is None else [n for n in COST_PARAMS if n in grid.search_space]


def _to_running(
    trial: StoredTrial, step: int, loss: float | None, config: StudyConfig
) -> RunningTrial:
    trial_config = to_trial_config(trial.params, config)
    return RunningTrial(trial.number, trial_config, step, config.training.steps, loss)


def measure_folder(folder: Path) -> int:
    """Return the bytes of the files in a folder; 0 if it cannot be read."""
    size = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # removed meanwhile
                size += entry.stat().st_size
    return size


class StatusReader:
    """Reads a study's progress for a display; returns the last known state during outages.

    Arguments are those of :func:`read_status`.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: LeasedRDBStorage,
        config: StudyConfig,
        workers: int = 0,
        checkpoints: Path | None = None,
    ) -> None:
        self.config = config
        self._study = study
        self._storage = storage
        self._workers = workers
        self._checkpoints = checkpoints
        self._checkpoint_bytes: int | None = None
        self._measure_at = self._read_at = 0.0
        self._best_reader = BestReader(study, storage, config)
        self._forecaster = Forecaster(storage, study._study_id, config)
        self._claims: ClaimManager | None = None
        self._status = self._read()
        self._running: list[RunningTrial] = []

    def attach(self, claims: ClaimManager) -> None:
        """Read through the storage thread of a claim manager, so that callers do not block."""
        self._claims = claims

    def read_status(self) -> Status:
        """Return the status, waiting up to :data:`READ_TIMEOUT`."""
        self._status = self._query(self._read, self._status)
        return self._status

    def recent_status(self) -> Status:
        """Return the status, read at most every :data:`REFRESH_SECONDS`, for a display's thread.

        It waits up to :data:`RECENT_TIMEOUT`, raises nothing and reports no outage.
        """

        def read() -> None:
            self._status = self._read()

        self._measure_checkpoints()
        is_due = time.monotonic() >= self._read_at
        if is_due and self._claims is not None and not self._claims.unavailable_reason:
            futures.wait([self._claims.submit(read)], RECENT_TIMEOUT)
            self._read_at = time.monotonic() + REFRESH_SECONDS
        return self._status

    def read_running(self) -> list[RunningTrial]:
        """Return the running trials of all workers, waiting up to :data:`READ_TIMEOUT`."""

        def read() -> list[RunningTrial]:
            rows = read_last_losses(self._storage, self._study._study_id)
            return [_to_running(*row, self.config) for row in rows]

        self._running = self._query(read, self._running)
        return self._running

    def _read(self) -> Status:
        status = read_status(
            self._study,
            self._storage,
            self.config,
            self._workers,
            self._best_reader,
            forecaster=self._forecaster,
        )
        return replace(status, checkpoint_bytes=self._checkpoint_bytes)

    def _query(self, query: Callable[[], _T], last: _T) -> _T:
        if self._claims is None:
            return last

        def verify_and_query() -> _T:
            with self._storage.reading():  # one connection for both
                self._storage.verify()
                return query()

        return self._claims.ask(verify_and_query, timeout=READ_TIMEOUT, default=last)

    def _measure_checkpoints(self) -> None:
        """Measure the checkpoints in at most one percent of the time; a network may be slow."""
        started_at = time.monotonic()
        if self._checkpoints is not None and started_at >= self._measure_at:
            self._checkpoint_bytes = measure_folder(self._checkpoints)
            now = time.monotonic()
            self._measure_at = now + max(MEASURE_SECONDS, 100 * (now - started_at))


def estimate_seconds_left(
    shapes: Sequence[TimingStats], counts: TrialCounts, workers: int
) -> float | None:
    """Estimate the remaining time from the durations of complete trials of the same shape.

    Returns:
        Seconds. None without workers or complete trials, and while shapes without a complete trial
        are unfinished in the first half of a study, or are most of what is left: small networks may
        run first, and the estimate would be far too low.
    """
    if counts.finished == counts.planned:
        return 0.0
    complete = sum(shape.complete for shape in shapes)
    unknown = sum(shape.waiting + shape.running for shape in shapes if not shape.complete)
    unfinished = sum(shape.waiting + shape.running for shape in shapes)
    is_guess = unknown > 0 and (counts.finished < counts.planned / 2 or unknown > unfinished / 2)
    if not workers or not complete or is_guess:
        return None
    mean = sum(shape.seconds * shape.complete for shape in shapes) / complete
    seconds = sum(
        # Running trials are half done on average.
        (shape.seconds if shape.complete else mean) * (shape.waiting + shape.running / 2)
        for shape in shapes
    )
    return seconds / workers


def estimate_first_rung(
    shapes: Sequence[RungCounts], step: int, steps: int, workers: int
) -> FirstRung:
    """Estimate the time to the first rung.

    The pace of a shape is that of its trials that were paused or have ended. ``step`` is that of
    the rung, ``steps`` are those of a whole training.

    Returns:
        The rung, without leaders; without workers or any pace it has no time.
    """
    reached = sum(shape.reached for shape in shapes)
    known = [shape for shape in shapes if shape.seconds_per_step is not None]
    is_at_least = any(shape.running + shape.waiting for shape in shapes if shape not in known)
    if not (workers and known):
        return FirstRung(step, reached)
    to_rung = 0.0
    for shape in known:
        pace = (shape.seconds_per_step or 0.0) / workers
        # Running trials are half done on average. The audited ones train to the end at once.
        to_rung += pace * step * (shape.running / 2 + shape.waiting)
        to_rung += pace * (steps - step) * shape.audited
    return FirstRung(step, reached, (), to_rung, is_at_least)
