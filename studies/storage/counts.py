"""State of a study, counted by the database: trials by state, the best, timings, workers.

The database computes it, so that little is read.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from rnn.errors import UserError
from studies.attributes import (
    CONFIG,
    EARLIER_CODE,
    EARLIER_TORCH,
    FAILURE,
    GRID_SIZE,
    LEASE,
    PAUSED,
    RETRY_COUNTS,
    SECONDS,
    Failure,
    VersionRecord,
    parse_trial_attribute,
)
from studies.errors import StorageLostError, StudyNotFoundError
from studies.messages import did_you_mean, format_duration, format_trials, shorten
from studies.space import COST_PARAMS, REPLICATE, TASK
from studies.storage.database import error_message, is_transient, redact
from studies.storage.leases import Lease, database_seconds
from studies.storage.tables import (
    IS_FINITE,
    STUDIES,
    STUDY_DIRECTIONS,
    STUDY_SYSTEM_ATTRS,
    STUDY_USER_ATTRS,
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_USER_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    has_system_attr,
    is_attr,
    is_grid_trial,
    raw,
    read_study_attrs,
    select_trial_ids,
)
from studies.storage.trials import (
    TrialStatus,
    decode_json,
    decode_state,
    decode_time,
    find_status,
    locating,
)

if TYPE_CHECKING:
    from studies.storage.storage import LeasedRDBStorage

_MAX_LISTED = 5


@dataclass(frozen=True)
class TrialCounts:
    """Number of a study's grid trials in each state.

    Attributes:
        diverged: number of trials whose loss was not finite, those that plain Optuna completed with
            an infinite value included.
        told: number of trials that are complete without the record of a training, and excluded.
        paused: number of waiting trials that the pruner has paused.
    """

    complete: int = 0
    told: int = 0
    pruned: int = 0
    diverged: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    paused: int = 0

    @property
    def planned(self) -> int:
        """Number of all grid trials."""
        return self.finished + self.running + self.waiting

    @property
    def finished(self) -> int:
        """Number of trials that will not run again."""
        return self.complete + self.told + self.pruned + self.diverged + self.failed

    def describe(self) -> str:
        """Return them as text, without states of no trial: ``12 of 96 finished, 4 running``."""
        states = ("running", "paused", "told", "pruned", "diverged", "failed")
        numbers = [f"{getattr(self, state)} {state}" for state in states if getattr(self, state)]
        return ", ".join([f"{self.finished} of {self.planned} finished", *numbers])


@dataclass(frozen=True)
class TimingStats:
    """Number and mean duration of the trials of one shape.

    Attributes:
        seconds: mean duration of the complete trials.
    """

    complete: int = 0
    running: int = 0
    waiting: int = 0
    seconds: float = 0.0


def count_statuses(statuses: Mapping[TrialStatus, int]) -> TrialCounts:
    """Return the numbers of trials by state, given those by status."""
    counts = {status.value.lower(): count for status, count in statuses.items()}
    failed = counts.pop("fail", 0)
    waiting = counts.pop("waiting", 0)
    return TrialCounts(**counts, failed=failed, waiting=waiting + counts.get("paused", 0))


def read_config(connection: Connection, study_id: int) -> dict[str, Any]:
    """Read the config of a study as it is stored; empty if there is none."""
    stored = read_study_attrs(connection, STUDY_USER_ATTRS, study_id, [CONFIG])
    with locating(study_id):
        config = decode_json(stored.get(CONFIG, "{}"), CONFIG)
    return config if isinstance(config, dict) else {}


def is_told(config: Mapping[str, Any]) -> sa.ColumnElement[bool]:
    """Return the condition that a study excludes a trial: it is complete, and no training recorded.

    This alone decides which trials are told. Imported ones never are: another program trained them.
    """
    if config.get("told") == "include" or config.get("results"):
        return sa.false()
    rows = sa.select(TRIAL_USER_ATTRS.c.trial_id).where(is_attr(TRIAL_USER_ATTRS, SECONDS))
    return sa.and_(TRIALS.c.state == TrialState.COMPLETE, ~sa.exists(rows.correlate(TRIALS)))


def count_trials(storage: "LeasedRDBStorage", study_id: int) -> TrialCounts:
    """Count a study's grid trials by state."""
    failure = sa.select(TRIAL_USER_ATTRS.c.value_json).where(is_attr(TRIAL_USER_ATTRS, FAILURE))
    of_trial = sa.exists().where(TRIAL_VALUES.c.trial_id == TRIALS.c.trial_id)
    columns = {
        "failure": failure.scalar_subquery(),
        "is_paused": has_system_attr(PAUSED),
        "is_infinite": of_trial.where(~IS_FINITE),
    }
    counts: Counter[TrialStatus] = Counter()
    with storage.reading() as connection, locating(study_id):
        columns["is_told"] = is_told(read_config(connection, study_id))
        query: sa.Select[Any] = (
            sa.select(
                raw(TRIALS.c.state),
                *(column.label(name) for name, column in columns.items()),
                sa.func.count(),
            )
            .where(TRIALS.c.study_id == study_id, is_grid_trial())
            .group_by(TRIALS.c.state, *map(sa.literal_column, columns))
        )
        for stored, failed_by, is_paused, is_infinite, told, count in connection.execute(query):
            reason = None if failed_by is None else parse_trial_attribute(FAILURE, failed_by)
            state = decode_state(stored)
            status = find_status(state, reason, bool(is_paused), not is_infinite, bool(told))
            counts[status] += count
    return count_statuses(counts)


def count_all(storage: "LeasedRDBStorage", study_id: int) -> TrialCounts:
    """Count all trials of a study of plain Optuna by state."""
    state = raw(TRIALS.c.state)
    query = sa.select(state, sa.func.count()).where(TRIALS.c.study_id == study_id).group_by(state)
    with storage.reading() as connection, locating(study_id):
        return count_statuses(
            {
                TrialStatus[decode_state(stored).name]: count
                for stored, count in connection.execute(query)
            }
        )


def count_where(connection: Connection, study_id: int, *where: sa.ColumnElement[bool]) -> int:
    """Count the grid trials of a study that meet conditions."""
    query = sa.select(sa.func.count()).select_from(TRIALS)
    query = query.where(TRIALS.c.study_id == study_id, is_grid_trial(), *where)
    return connection.scalar(query) or 0


def count_retries(storage: "LeasedRDBStorage", study_id: int) -> dict[Failure, int]:
    """Count how often a study's grid trials were requeued, by reason."""
    counts: Counter[str] = Counter()
    for _, retries, trials in _count_distinct(storage, study_id, [RETRY_COUNTS]):
        counts.update({failure: count * trials for failure, count in retries.items()})
    return {failure: counts[failure] for failure in Failure if counts[failure]}


def distinct_versions(storage: "LeasedRDBStorage", study_id: int) -> dict[str, set[str]]:
    """Return all versions that trained a study's grid trials, by field of `VersionRecord`."""
    names = {name: name for name in VersionRecord.model_fields}
    names |= {EARLIER_CODE: "code", EARLIER_TORCH: "torch"}
    versions: dict[str, set[str]] = {name: set() for name in VersionRecord.model_fields}
    for key, recorded, _ in _count_distinct(storage, study_id, names):
        versions[names[key]].update([recorded] if isinstance(recorded, str) else recorded)
    return versions


def _count_distinct(
    storage: "LeasedRDBStorage", study_id: int, keys: Collection[str]
) -> list[tuple[str, Any, int]]:
    """Return key, value and number of trials of the distinct user attributes of grid trials."""
    stored = TRIAL_USER_ATTRS.c
    query = (
        sa.select(stored.key, stored.value_json, sa.func.count())
        .join(TRIALS, TRIALS.c.trial_id == stored.trial_id)
        .where(TRIALS.c.study_id == study_id, stored.key.in_(keys), is_grid_trial())
        .group_by(stored.key, stored.value_json)
    )
    with storage.reading() as connection, locating(study_id):
        return [
            (key, parse_trial_attribute(key, text), count)
            for key, text, count in connection.execute(query)
        ]


def top_trials(
    storage: "LeasedRDBStorage", study_id: int, limit: int, task: int | None = None
) -> list[tuple[int, int, float]]:
    """Return id, number and value of at most ``limit`` complete trials, the best first.

    Of a study of several tasks those of one, by the place of its choice.
    """
    is_of_study = STUDY_DIRECTIONS.c.study_id == study_id
    direction = sa.select(raw(STUDY_DIRECTIONS.c.direction)).where(is_of_study)
    value = TRIAL_VALUES.c.value
    query = (
        sa.select(TRIALS.c.trial_id, TRIALS.c.number, value)
        .join_from(TRIALS, TRIAL_VALUES, TRIAL_VALUES.c.trial_id == TRIALS.c.trial_id)
        .where(
            TRIALS.c.study_id == study_id,
            TRIALS.c.state == TrialState.COMPLETE,
            IS_FINITE,
            is_grid_trial(),
        )
    )
    if task is not None:
        param = TRIAL_PARAMS.c
        is_task = sa.and_(param.trial_id == TRIALS.c.trial_id, param.param_name == TASK)
        query = query.join(TRIAL_PARAMS, is_task).where(param.param_value == task)
    with storage.reading() as connection:
        query = query.where(~is_told(read_config(connection, study_id)))
        is_maximized = "MAXIMIZE" in connection.scalars(direction)
        order = value.desc() if is_maximized else value
        rows = connection.execute(query.order_by(order, TRIALS.c.number).limit(limit))
        return [tuple(row) for row in rows]


def has_replicates(storage: "LeasedRDBStorage", study_id: int) -> bool:
    """Return whether the grid trials of a study have several numbers of replicates."""
    param = TRIAL_PARAMS.c
    is_replicate = (param.trial_id == TRIALS.c.trial_id) & (param.param_name == REPLICATE)
    number = sa.func.coalesce(param.param_value, -1)  # of trials of before an extension
    query = (
        sa.select(sa.func.count(sa.distinct(number)))
        .select_from(TRIALS.outerjoin(TRIAL_PARAMS, is_replicate))
        .where(TRIALS.c.study_id == study_id, is_grid_trial())
    )
    with storage.reading() as connection:
        return (connection.scalar(query) or 0) > 1


def timing_by_shape(
    storage: "LeasedRDBStorage", study_id: int, names: Collection[str] = COST_PARAMS
) -> list[TimingStats]:
    """Return timings by those of :data:`studies.space.COST_PARAMS` that vary."""
    seconds = sa.cast(TRIAL_USER_ATTRS.c.value_json, sa.Float)
    complete = sa.case((TRIALS.c.state == TrialState.COMPLETE, seconds))
    counts: list[sa.ColumnElement[Any]] = [
        sa.func.count(complete),  # those whose duration is recorded
        *(
            sa.func.count(sa.case((TRIALS.c.state == state, 1)))
            for state in (TrialState.RUNNING, TrialState.WAITING)
        ),
    ]
    mean = sa.func.avg(complete)
    trials = TRIALS.outerjoin(TRIAL_USER_ATTRS, is_attr(TRIAL_USER_ATTRS, SECONDS))
    values = []
    for name in names:
        param = TRIAL_PARAMS.alias()
        is_param = (param.c.trial_id == TRIALS.c.trial_id) & (param.c.param_name == name)
        trials = trials.outerjoin(param, is_param)
        values.append(param.c.param_value)
    query = (
        sa.select(*counts, sa.func.coalesce(mean, 0.0))
        .select_from(trials)
        .where(TRIALS.c.study_id == study_id, is_grid_trial())
        .group_by(*values)
    )
    with storage.reading() as connection:
        rows: Any = connection.execute(query)
        return [TimingStats(*row) for row in rows]


def read_times(connection: Connection, study_id: int) -> tuple[datetime | None, datetime | None]:
    """Return when the first trial was started, and when the last one was started or finished."""
    start = raw(TRIALS.c.datetime_start)
    end = raw(TRIALS.c.datetime_complete)
    query = sa.select(sa.func.min(start), sa.func.max(start), sa.func.max(end))
    row = connection.execute(query.where(TRIALS.c.study_id == study_id)).one()
    with locating(study_id):
        first, *last = map(decode_time, row)
    return first, max((time for time in last if time is not None), default=None)


# ------------------------------------------------------------------ workers


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
    columns = TRIALS.c.trial_id, TRIALS.c.number, TRIAL_SYSTEM_ATTRS.c.value_json
    query = (
        sa.select(*columns, database_seconds(connection))
        .outerjoin(TRIAL_SYSTEM_ATTRS, is_attr(TRIAL_SYSTEM_ATTRS, LEASE))
        .where(
            TRIALS.c.study_id == study_id,
            TRIALS.c.state == TrialState.RUNNING,
            TRIAL_SYSTEM_ATTRS.c.value_json.is_not(None) | is_grid_trial(),
        )
        .order_by(TRIALS.c.number)
    )
    held: dict[str | None, list[tuple[int, float | None, float | None]]] = {}
    for trial_id, number, stored, now in connection.execute(query):
        name = silent = seconds = None
        if stored is not None:
            lease = Lease.parse(trial_id, stored)
            name = lease.worker
            seconds = lease.seconds
            silent = max(0.0, float(now) - lease.heard)
        held.setdefault(name, []).append((number, silent, seconds))
    workers = []
    for name, rows in held.items():
        silences = [silent for _, silent, _ in rows if silent is not None]
        durations = [seconds for _, _, seconds in rows if seconds is not None]
        numbers = tuple(number for number, _, _ in rows)
        last = min(silences, default=None)
        longest = max(durations, default=None)
        workers.append(ActiveWorker(name, numbers, last, longest))
    return sorted(workers, key=lambda each: (each.name is None, -(each.silent_seconds or 0.0)))


# ------------------------------------------------------------------ one study


@dataclass(frozen=True)
class StudyIdentity:
    """Identity of a stored study, unlike that of a later study of the same name.

    The id is not enough: SQLite gives the id of a deleted study to the next one.

    Attributes:
        artifact_folder: its unique folder of artifacts.
        count_grid: counts the combinations of the grid that this process knows, where the study was
            extended; None if it trains none.
    """

    study_id: int
    name: str
    artifact_folder: str
    count_grid: Callable[[], int] | None = None

    def require_stored(self, connection: Connection) -> None:
        """Check that the study is stored, with the grid that this process knows.

        Raises:
            StorageLostError: if it is not, or the tables cannot be read any more.
        """
        stored_size = sa.select(STUDY_SYSTEM_ATTRS.c.value_json).where(
            STUDY_SYSTEM_ATTRS.c.study_id == self.study_id, STUDY_SYSTEM_ATTRS.c.key == GRID_SIZE
        )
        query = sa.select(stored_size.scalar_subquery()).where(
            STUDY_USER_ATTRS.c.study_id == self.study_id,
            STUDY_USER_ATTRS.c.key == "artifact_folder",
            STUDY_USER_ATTRS.c.value_json == json.dumps(self.artifact_folder),
        )
        storage = redact(connection.engine.url)
        try:
            found = connection.execute(query).one_or_none()
        except DBAPIError as error:
            if is_transient(error):
                raise
            raise StorageLostError(
                f"storage {storage} was damaged or emptied while this search used it "
                f"({error_message(error)}): restore it from a backup to resume"
            ) from error
        if found is None:
            raise StorageLostError(
                f"study {self.name!r} was deleted from {storage} while this search used it: "
                "restore it from a backup to resume, or run the same command to start it again"
            )
        size = found[0]
        if self.count_grid and size is not None and size != json.dumps(self.count_grid()):
            raise StorageLostError(
                f"study {self.name!r} was extended to {size} trials while this search used it: "
                "run the same command to continue; recorded results are kept"
            )


def find_study(connection: Connection, name: str, lock: bool = False) -> int:
    """Return the id of a study, which is locked until the transaction ends if ``lock``.

    Raises:
        StudyNotFoundError: if it does not exist; the message lists the studies that do.
    """
    query = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)
    study_id = connection.scalar(query.with_for_update() if lock else query)
    if study_id is None:
        names = sa.select(STUDIES.c.study_name).order_by(STUDIES.c.study_name)
        existing = connection.scalars(names).all()
        known = shorten(", ".join(existing) or "none", 1000)
        raise StudyNotFoundError(
            f"study {shorten(name)!r} is not in {redact(connection.engine.url)}: "
            f"{did_you_mean(name, existing)}check the name (existing studies: {known})"
        )
    return int(study_id)


def lock_unheld(connection: Connection, name: str, allow_held: bool = False) -> int:
    """Lock a study and its trials until the transaction ends; return its id.

    Raises:
        StudyNotFoundError: if it does not exist.
        UserError: if workers hold trials of it, unless that is allowed.
    """
    study_id = find_study(connection, name, lock=True)
    lock_all_trials(connection, study_id)
    workers = read_active_workers(connection, study_id)
    if workers and not allow_held:
        listed = "; ".join(worker.description for worker in workers[:_MAX_LISTED])
        others = len(workers) - _MAX_LISTED
        more = f"; and {others} other{'s' * (others > 1)}" if others > 0 else ""
        raise UserError(
            f"trials of study {name!r} are held: {listed}{more}; stop these workers first; those "
            "of dead workers wait again once another has run for the length of their lease"
        )
    return study_id


def lock_all_trials(connection: Connection, study_id: int) -> None:
    """Lock the trials of a study until the transaction ends; workers skip them meanwhile."""
    query = select_trial_ids(study_id).order_by(TRIALS.c.trial_id)
    connection.execute(query.with_for_update())
