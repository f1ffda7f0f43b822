"""The workers that hold a study's trials, and when the database last heard of them.

Leases expire by an observer's own monotonic clock alone; what is here is for people to read. A
heartbeat is dated by the database as it is written, and its age is computed by the database as it
is read: one clock, and never that of a worker's or a reader's machine. The clock of an SQLite file
is that of the machine that has it.
"""

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.storage.lease_rows import database_seconds
from studies.storage.leases import HEARD, LEASE, Lease
from studies.storage.trial_rows import TRIAL_SYSTEM_ATTRS, TRIALS, is_grid_trial
from studies.text import format_duration, format_trials


@dataclass(frozen=True)
class ActiveWorker:
    """A worker that holds trials of a study; it may have died.

    Attributes:
        name: ``host/pid``, or ``host/pid/job`` on a cluster; None for a program that holds trials
            without a lease, as plain Optuna does.
        trials: numbers of the trials.
        silent_seconds: time since its last claim or heartbeat by the database's clock; None if
            that is unknown.
        lease_seconds: time without a heartbeat after which other workers requeue its trials; None
            without a lease.
    """

    name: str | None
    trials: tuple[int, ...]
    silent_seconds: float | None = None
    lease_seconds: float | None = None

    @property
    def host(self) -> str | None:
        """Name of its machine; None if that is unknown."""
        host, slash, _ = (self.name or "").partition("/")
        return host if slash else None

    @property
    def is_expired(self) -> bool:
        """Whether it was silent for longer than its lease."""
        if self.silent_seconds is None or self.lease_seconds is None:
            return False
        return self.silent_seconds > self.lease_seconds

    @property
    def description(self) -> str:
        """What it holds and when it was heard of, for a message."""
        holds = f"holds {format_trials(self.trials)}"
        if self.name is None:
            return f"a program without a lease, such as plain Optuna, {holds}"
        text = f"{self.name} {holds}"
        if self.silent_seconds is None or self.lease_seconds is None:
            return text
        text += f", last heard of {format_duration(self.silent_seconds)} ago"
        if self.is_expired:
            text += f", longer than its lease of {format_duration(self.lease_seconds)}"
        return text

    def as_json(self) -> dict[str, Any]:
        """Return the worker as ``--json`` prints it."""
        return {
            "worker": self.name,
            "host": self.host,
            "trials": list(self.trials),
            "silent_seconds": self.silent_seconds,
            "lease_seconds": self.lease_seconds,
        }


def read_active_workers(connection: Connection, study_id: int) -> list[ActiveWorker]:
    """Read which workers hold trials of a study, the one that was silent for longest first.

    Grid trials without a lease are the last entry.
    """
    query = (
        sa.select(TRIALS.c.number, TRIAL_SYSTEM_ATTRS.c.value_json, database_seconds(connection))
        .outerjoin(
            TRIAL_SYSTEM_ATTRS,
            (TRIAL_SYSTEM_ATTRS.c.trial_id == TRIALS.c.trial_id)
            & (TRIAL_SYSTEM_ATTRS.c.key == LEASE),
        )
        .where(
            TRIALS.c.study_id == study_id,
            TRIALS.c.state == TrialState.RUNNING,
            TRIAL_SYSTEM_ATTRS.c.value_json.is_not(None) | is_grid_trial(),
        )
        .order_by(TRIALS.c.number)
    )
    trials: dict[str | None, list[int]] = {}
    silences: dict[str | None, list[float]] = {}
    durations: dict[str | None, float] = {}
    for number, stored, now in connection.execute(query):
        lease = None if stored is None else Lease.parse(stored)
        name = None if lease is None else lease.worker
        trials.setdefault(name, []).append(number)
        if lease is not None:
            durations[name] = max(lease.seconds, durations.get(name, 0.0))
            if (heard := _parse_heard(stored)) is not None:
                silences.setdefault(name, []).append(max(0.0, float(now) - heard))
    workers = [
        ActiveWorker(
            name, tuple(numbers), min(silences.get(name, ()), default=None), durations.get(name)
        )
        for name, numbers in trials.items()
    ]
    return sorted(workers, key=lambda each: (each.name is None, -(each.silent_seconds or 0.0)))


def _parse_heard(stored: str) -> float | None:
    """Return when a stored lease was written; None for an earlier version's or a damaged one."""
    try:
        heard = json.loads(stored)[HEARD]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return float(heard) if type(heard) in (int, float) else None
