"""Progress of a study, read from its storage, and as text."""

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna
from optuna.trial import TrialState

from search.pruning.audited_trials import describe_look
from search.pruning.forecast import Forecaster
from search.worker.claims import ClaimManager
from studies.attributes import AUDIT, ERROR, AuditLook, Failure, select_looks
from studies.best import Best, BestReader, top_count
from studies.config import StudyConfig
from studies.messages import format_duration, shorten, to_line
from studies.space import COST_PARAMS
from studies.storage.counts import (
    ActiveWorker,
    TimingStats,
    TrialCounts,
    count_retries,
    count_trials,
    count_where,
    read_active_workers,
    timing_by_shape,
)
from studies.storage.reads import read_audit_looks
from studies.storage.storage import LeasedRDBStorage
from studies.storage.tables import has_system_attr
from studies.storage.trials import StoredTrial

RECENT_TIMEOUT = 0.5
"""Seconds that a display waits for the storage before it shows the last known status."""

REFRESH_SECONDS = 2.0
"""Interval between reads of the status for a display that is redrawn."""

MAX_LINE = 120
"""Number of characters of a line of progress."""

MAX_WORKERS = 20
"""Number of workers that a status lists."""


@dataclass(frozen=True)
class Status:
    """Progress of a study.

    Attributes:
        counts: number of grid trials by state.
        best: what is best so far; None before the first complete trial, and of several tasks.
        seconds_left: estimated time with the current workers; None if unknown.
        retries: number of requeued trials, by reason.
        audited: number of trials that are trained to the end whatever the pruner decides.
        looks: planned looks at these trials so far, by name.
        workers: workers that hold trials.
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
    best_by_task: Mapping[str, Best] = field(default_factory=dict)

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
            "retries": dict(self.retries),
            "audit": {
                "trials": self.audited,
                "looks": {name: look.model_dump() for name, look in self.looks.items()},
            },
            "workers": [worker.as_json() for worker in self.workers],
        }


def read_status(study: optuna.Study, storage: LeasedRDBStorage, config: StudyConfig) -> Status:
    """Read the progress of a study once."""
    return StatusReader(study, storage, config).read_status()


class StatusReader:
    """Reads a study's progress again and again; returns the last known state during outages.

    There are at least so many ``workers``, including those that hold no trial just now.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: LeasedRDBStorage,
        config: StudyConfig,
        workers: int = 0,
    ) -> None:
        self._config = config
        self._study = study
        self._storage = storage
        self._workers = workers
        self._read_at = 0.0
        self._best_reader = BestReader(study, storage, config)
        self._forecaster = Forecaster(storage, study._study_id, config)
        self._claims: ClaimManager | None = None
        self._status = self._read()

    def attach(self, claims: ClaimManager) -> None:
        """Read through the storage thread of a claim manager, so that callers do not block."""
        self._claims = claims

    def read_status(self) -> Status:
        """Return the status; during a run the last known one if the storage does not answer."""
        if self._claims is not None:
            self._status = self._claims.query(self._read, self._status)
        return self._status

    def recent_status(self) -> Status:
        """Return the status, read at most every :data:`REFRESH_SECONDS`, for a display's thread.

        It waits up to :data:`RECENT_TIMEOUT`, raises nothing and reports no outage.
        """

        def read() -> None:
            self._status = self._read()

        is_due = time.monotonic() >= self._read_at
        if is_due and self._claims is not None and not self._claims.unavailable_reason:
            futures.wait([self._claims.submit(read)], RECENT_TIMEOUT)
            self._read_at = time.monotonic() + REFRESH_SECONDS
        return self._status

    def _read(self) -> Status:
        storage = self._storage
        study_id = self._study._study_id
        with storage.reading() as connection:  # one for all queries
            storage.verify()
            name = self._study.study_name
            with contextlib.suppress(KeyError):  # it was deleted
                name = storage.get_study_name_from_id(study_id)
            counts = count_trials(storage, study_id)
            holders = read_active_workers(connection, study_id)
            is_pruned = self._config.pruning.enabled
            audited = count_where(connection, study_id, has_system_attr(AUDIT)) if is_pruned else 0
            return Status(
                name,
                counts,
                self._best_reader.read(),
                self._estimate_time(counts, holders),
                count_retries(storage, study_id),
                audited,
                read_audit_looks(storage, study_id) if audited else {},
                holders,
                self._best_reader.read_tasks(),
            )

    def _estimate_time(self, counts: TrialCounts, holders: Sequence[ActiveWorker]) -> float | None:
        """Return the seconds that are left with the current workers; None if that is unknown."""
        # Of programs without a lease, each is taken to run one trial.
        alive = [worker for worker in holders if not worker.is_expired]
        active = sum(1 if worker.name else len(worker.trials) for worker in alive)
        active = max(active, self._workers)
        if not (self._config.pruning.enabled and counts.waiting):
            grid = self._config.grid
            params = [name for name in COST_PARAMS if grid is None or name in grid.search_space]
            timing = timing_by_shape(self._storage, self._study._study_id, params)
            return estimate_seconds_left(timing, counts, active)
        # Pruning decides how many trials are needed.
        seconds = self._forecaster.read() if active else None
        return None if seconds is None else seconds / active


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


# ------------------------------------------------------------------ text


def format_progress(status: Status, with_best: bool = True) -> str:
    """Format the progress of a study in 120 characters: ``12 of 96 finished, …, best …``."""
    parts = [status.counts.describe()]
    if seconds := _format_seconds_left(status):
        parts.append(f"{seconds} left")
    if with_best and (best := format_best(status)):
        parts.append(f"best {best}")
    return shorten(", ".join(parts), MAX_LINE)


def format_best(status: Status) -> str:
    """Format what is best so far: ``1.4321 nats (trial 14, 1×32 GRU)``; empty if nothing is."""
    best = status.best
    return f"{best.text} ({_name_trial(best)})" if best else ""


def format_status(status: Status, config: StudyConfig) -> str:
    """Format the status of a study as the table that ``rnn-search status`` prints."""
    counts = status.counts
    rows = []
    states = ["planned", "complete", "running", "waiting", "pruned", "diverged", "failed"]
    if config.results is not None:
        rows = [("imported", f"from {config.results.source}")]
        states = [state for state in states if state not in ("running", "waiting")]
    if counts.told:
        states.append("told")
    for state in states:
        paused = f" ({counts.paused} paused)" if state == "waiting" and counts.paused else ""
        rows.append((state, f"{getattr(counts, state)}{paused}"))
    if best := status.best:
        direction = "highest " if config.direction == "maximize" else ""
        rows.append(("best", f"{direction}{best.text}, {_name_trial(best)}"))
    lines = [
        f"{name}: {best.text}, {_name_trial(best)}" for name, best in status.best_by_task.items()
    ]
    rows += _list_lines("best", lines)
    if config.pruning.enabled:
        rows.append(("to keep", _format_kept(status, config)))
        rows += _list_lines("audit", _list_audit(status, config))
    if config.results is None:
        rows.append(("time left", _format_time_left(status, config)))
    if status.retries:
        retries = ", ".join(f"{count} {reason}" for reason, count in status.retries.items())
        rows.append(("requeued", retries))
    # The worker that was silent for longest comes first.
    lines = [worker.description for worker in status.workers[:MAX_WORKERS]]
    if len(status.workers) > MAX_WORKERS:
        lines.append(f"and {len(status.workers) - MAX_WORKERS} others: --json lists all")
    rows += _list_lines("workers", lines)
    return "\n".join(f"{name:9} {to_line(value)}" for name, value in rows)


def explain_failure(
    study: str, trials: Iterable[StoredTrial], counts: TrialCounts, config: StudyConfig
) -> str:
    """Return one line on why a finished study has no complete trial, and what to do."""
    errors = [
        (str(trial.completed), trial.attributes[ERROR])
        for trial in trials
        if trial.state is TrialState.FAIL and ERROR in trial.attributes
    ]
    last = f", the last with {max(errors)[1]}" if errors else ""
    ends = {"told": counts.told, "diverged": counts.diverged, f"failed{last}": counts.failed}
    causes = ", ".join(f"{count} {end}" for end, count in ends.items() if count)
    hint = (
        "change its settings, such as a lower training.learning_rate, and search again under "
        "another --name"
    )
    if config.loop is not None:
        hint = "correct the loop, and set them waiting again with rnn-search retry"
    if counts.told:
        hint = "to count told values, run it with --set 'told=\"include\"' --extend"
    return f"study {study!r} finished without a complete trial: {causes}; {hint}"


def _name_trial(best: Best) -> str:
    """Name trial and architecture of the best; of replicates the architecture first."""
    if best.runs is None:
        return f"trial {best.number}, {best.architecture}"
    return f"{best.architecture}, best run trial {best.number}"


def _list_lines(name: str, lines: Iterable[str]) -> list[tuple[str, str]]:
    """Return a row of a status for each line, the first one with the name."""
    return [("" if place else name, line) for place, line in enumerate(lines)]


def _format_kept(status: Status, config: StudyConfig) -> str:
    settings = config.pruning
    kept = f"top {top_count(settings.keep, status.counts.planned)}"
    if config.replicates > 1 or config.task_records:
        of_tasks = " in each task" if config.task_records else ""
        kept = f"top {100 * settings.keep:g}% of the architectures{of_tasks}"
    return f"{kept}, with confidence {settings.confidence:g}"


def _list_audit(status: Status, config: StudyConfig) -> list[str]:
    """List the number of audited trials, and the last look at them, of each of several tasks."""
    if not status.audited:
        return ["none: what pruning loses is not measured"]
    trials = f"{status.audited} trials"
    if not config.task_records:
        return [f"{trials}{_describe_last(status.looks)}"]
    of_tasks = {
        task: _describe_last(select_looks(status.looks, task)) for task in config.task_records
    }
    return [trials, *(f"{task}{text}" for task, text in of_tasks.items() if text)]


def _describe_last(looks: Mapping[str, AuditLook]) -> str:
    """Describe the last look at the audited trials of a task, or the last alarm."""
    alarms = [look for look in looks.values() if look.alarm]
    found = alarms or [look for look in looks.values() if look.trials]
    if not found:
        return ""
    last = max(found, key=lambda look: look.complete)
    return f"{'; alarm' if alarms else ''}: {describe_look(last)}"


def _format_time_left(status: Status, config: StudyConfig) -> str:
    if status.is_finished:
        return "none: every trial is finished"
    if text := _format_seconds_left(status):
        return f"{text} with the current workers"
    if not status.workers:
        return "unknown: no active worker"
    if config.pruning.enabled and status.counts.waiting:
        return "unknown: too few trials are complete to predict the others"
    if not config.has_networks:
        return "unknown: no trial is complete yet"
    return "unknown: no trial of some size is complete yet"


def _format_seconds_left(status: Status) -> str:
    return f"about {format_duration(status.seconds_left)}" if status.seconds_left else ""
