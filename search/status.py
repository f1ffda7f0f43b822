"""Progress of a study, read from its storage, and what a worker reports of its trials."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import optuna
from optuna.trial import FrozenTrial

from rnn.config import TrialConfig
from search.worker.claims import ClaimManager
from studies.attributes import AuditLook, Failure
from studies.best import Best, BestReader
from studies.config import StudyConfig, to_trial_config
from studies.storage.counts import (
    ActiveWorker,
    TimingStats,
    TrialCounts,
    count_audited,
    count_retries,
    count_trials,
    read_active_workers,
    timing_by_shape,
)
from studies.storage.reads import read_audit_looks, read_last_losses
from studies.storage.storage import LeasedRDBStorage

READ_TIMEOUT = 2.0
"""Seconds that a display waits for the storage before it shows the last known status."""

RECENT_TIMEOUT = 0.5
"""Seconds that a progress line waits for the storage before it shows the last known status."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class RunningTrial:
    """A trial that a worker is training.

    Attributes:
        number: number of the trial.
        trial_config: network that is trained.
        step: last logged step, 0 before the first.
        steps: steps of the whole training.
        smoothed_loss: smoothed training loss at that step.
    """

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


class WorkerCallbacks:
    """Hooks that a worker calls from its main thread; override those of interest."""

    def on_log(self, running: Sequence[RunningTrial]) -> None:
        """Handle a log point.

        Args:
            running: the running trials and their progress.
        """

    def on_poll(self) -> None:
        """Handle a check of claims and signals, several times a second during training."""

    def on_trial_end(self, event: TrialEvent) -> None:
        """Handle the end of a trial in this worker: finished, paused, requeued or lost."""

    def on_wait(self) -> None:
        """Handle waiting for trials that other workers run, with none left to claim."""


@dataclass(frozen=True)
class Status:
    """Progress of a study.

    Attributes:
        name: name of the study.
        counts: number of grid trials by state.
        best: what is best so far; None before the first complete trial.
        seconds_left: estimated time with the current workers; None if unknown.
        retries: number of requeued trials, by reason.
        audited: number of trials that are trained to the end whatever the pruner decides.
        looks: planned looks at these trials so far, by name.
        workers: workers that hold trials.
    """

    name: str
    counts: TrialCounts
    best: Best | None
    seconds_left: float | None
    retries: Mapping[Failure, int]
    audited: int = 0
    looks: Mapping[str, AuditLook] = field(default_factory=dict)
    workers: Sequence[ActiveWorker] = ()

    @property
    def is_finished(self) -> bool:
        """Whether every grid trial is finished."""
        return self.counts.finished == self.counts.planned

    def as_json(self) -> dict[str, Any]:
        """Return the status as printed by ``--json``."""
        return {
            "study": self.name,
            "planned": self.counts.planned,
            **asdict(self.counts),
            "best": self.best.as_json() if self.best else None,
            "seconds_left": self.seconds_left,
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
) -> Status:
    """Read the progress of a study.

    Args:
        study: study to read.
        storage: storage that holds it.
        config: config of the study.
        workers: minimum number of active workers, including those that hold no trial just now.
        best_reader: reader that a caller keeps for further calls.
    """
    study_id = study._study_id
    with storage.reading() as connection:  # one for all queries
        name = study.study_name
        with contextlib.suppress(KeyError):  # it was deleted
            name = storage.get_study_name_from_id(study_id)
        counts = count_trials(storage, study_id)
        best = (best_reader or BestReader(study, storage, config)).read()
        holders = read_active_workers(connection, study_id)
        # Of programs without a lease, each is taken to run one trial.
        alive = [each for each in holders if not each.is_expired]
        active = sum(1 if each.name else len(each.trials) for each in alive)
        active = max(active, workers)
        seconds_left = None  # unknown while pruning decides how many waiting trials are needed
        if not (config.pruning.enabled and counts.waiting):
            timing = timing_by_shape(storage, study_id)
            seconds_left = estimate_seconds_left(timing, counts, active)
        retries = count_retries(storage, study_id)
        audited = count_audited(storage, study_id) if config.pruning.enabled else 0
        looks = read_audit_looks(storage, study_id) if audited else {}
    return Status(name, counts, best, seconds_left, retries, audited, looks, holders)


def read_running_trials(
    study: optuna.Study, storage: LeasedRDBStorage, config: StudyConfig
) -> list[RunningTrial]:
    """Read the grid trials that are running now, by number."""
    return [
        RunningTrial(
            trial.number,
            to_trial_config(trial.params, config),
            step,
            config.training.steps,
            loss,
        )
        for trial, step, loss in read_last_losses(storage, study._study_id)
    ]


class StatusReader:
    """Reads a study's progress for a display; returns the last known state during outages.

    Args:
        study: study to read.
        storage: storage that holds it.
        config: config of the study.
        workers: minimum number of active workers.
    """

    def __init__(
        self, study: optuna.Study, storage: LeasedRDBStorage, config: StudyConfig, workers: int = 0
    ) -> None:
        self.config = config
        self._study = study
        self._storage = storage
        self._workers = workers
        self._best_reader = BestReader(study, storage, config)
        self._claims: ClaimManager | None = None
        self._status = self._read()
        self._running: list[RunningTrial] = []

    def attach(self, claims: ClaimManager) -> None:
        """Read through the storage thread of a claim manager, so that callers do not block."""
        self._claims = claims

    def count_trials(self) -> TrialCounts:
        """Count the study's trials; raises the storage's exceptions."""
        return count_trials(self._storage, self._study._study_id)

    def read_status(self) -> Status:
        """Return the status, waiting up to :data:`READ_TIMEOUT`."""
        self._status = self._query(self._read, self._status)
        return self._status

    def recent_status(self) -> Status:
        """Return the status, waiting up to :data:`RECENT_TIMEOUT`.

        May be called from any thread; raises nothing and reports no outage.
        """

        def read() -> None:
            self._status = self._read()

        if self._claims is not None and not self._claims.unavailable_reason:
            futures.wait([self._claims.submit(read)], RECENT_TIMEOUT)
        return self._status

    def read_running(self) -> list[RunningTrial]:
        """Return the running trials of all workers, waiting up to :data:`READ_TIMEOUT`."""

        def read() -> list[RunningTrial]:
            return read_running_trials(self._study, self._storage, self.config)

        self._running = self._query(read, self._running)
        return self._running

    def _read(self) -> Status:
        return read_status(
            self._study, self._storage, self.config, self._workers, self._best_reader
        )

    def _query(self, query: Callable[[], _T], last: _T) -> _T:
        if self._claims is None:
            return last

        def verify_and_query() -> _T:
            with self._storage.reading():  # one connection for both
                self._storage.verify()
                return query()

        return self._claims.ask(verify_and_query, timeout=READ_TIMEOUT, default=last)


def estimate_seconds_left(
    shapes: Sequence[TimingStats], counts: TrialCounts, workers: int
) -> float | None:
    """Estimate the remaining time from the durations of complete trials of the same shape.

    Args:
        shapes: timing of the study's trials by shape.
        counts: number of the study's trials by state.
        workers: number of active workers.

    Returns:
        Seconds. None without workers or complete trials, and in the first half of a study while
        some shape has no complete trial: small networks may run first, and the estimate would be
        far too low.
    """
    if counts.finished == counts.planned:
        return 0.0
    complete = sum(shape.complete for shape in shapes)
    is_unknown = any(shape.waiting and not shape.complete for shape in shapes)
    if not workers or not complete or (is_unknown and counts.finished < counts.planned / 2):
        return None
    mean = sum(shape.seconds * shape.complete for shape in shapes) / complete
    seconds = sum(
        # Running trials are half done on average.
        (shape.seconds if shape.complete else mean) * (shape.waiting + shape.running / 2)
        for shape in shapes
    )
    return seconds / workers
