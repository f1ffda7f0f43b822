"""Optuna's RDB storage with leases: claims, and writes that hold only under a claim token."""

import contextlib
import contextvars
import math
import sqlite3
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from functools import wraps
from types import MappingProxyType
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection

from studies.attributes import AUDIT, PAUSED, AuditState, Failure, parse_trial_system_attribute
from studies.errors import LeaseLostError, RowError, StorageLostError, StudyFormatError
from studies.messages import shorten
from studies.storage.counts import StudyIdentity, count_where
from studies.storage.database import DatabaseFile, begin_as, configure, engine_options
from studies.storage.leases import (
    Lease,
    LeaseMonitor,
    PendingWrite,
    dequeue,
    end_claims,
    has_same_value,
    lock_trials,
    requeue,
    running_leases,
    waiting_query,
    write_pending,
)
from studies.storage.optuna_tables import FINITE
from studies.storage.reads import RESULTS, Rung, TrialReader, read_whole_trials
from studies.storage.tables import (
    STUDIES,
    STUDY_DIRECTIONS,
    STUDY_SYSTEM_ATTRS,
    STUDY_USER_ATTRS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    delete_attrs,
    insert,
    raw,
    read_attribute,
    read_study_attrs,
    update_trials,
    utcnow,
    write_attrs,
    write_user_attrs,
)
from studies.storage.trials import decode_direction, decode_json, locating
from studies.study_settings import DEFAULT_LEASE_SECONDS

_reading: contextvars.ContextVar[Connection | None] = contextvars.ContextVar(
    "reading", default=None
)

MAX_INCLUDED_IDS = 30_000
"""Number of unfinished trials above which Optuna reads all; databases limit the parameters."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _as_writer(
    method: Callable[Concatenate["LeasedRDBStorage", _P], _R],
) -> Callable[Concatenate["LeasedRDBStorage", _P], _R]:
    @wraps(method)
    def write(self: "LeasedRDBStorage", *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with begin_as(writer=True):
            return method(self, *args, **kwargs)

    return write  # type: ignore[return-value]  # Concatenate names self


class AuditDecision(NamedTuple):
    """What the pruner decides about an audited trial, which trains on regardless.

    Attributes:
        before: earlier decision, which must not have changed.
    """

    before: AuditState
    after: AuditState
    attributes: Mapping[str, Any] = {}


class LeasedRDBStorage(RDBStorage):
    """Optuna's RDB storage with leases; open it with :func:`studies.storage.open.open_storage`.

    Optuna's writing methods are unchanged but begin as writers, so that on SQLite too only one
    worker claims a waiting trial. Its methods that read trials use a fixed number of statements,
    which is ten times faster for a large study.

    A row that cannot be decoded ends the transaction with a :class:`StudyFormatError`, which names
    study, trial and attribute.

    Attributes:
        file: the SQLite file that it opened; None for a server.
    """

    file: DatabaseFile | None
    _required_study: StudyIdentity | None = None
    _readers: dict[Any, TrialReader]

    def __init__(self, url: URL) -> None:
        self._readers = {}
        # Optuna formats the URL as a template; escape braces, as in a password.
        template = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
        super().__init__(
            template, engine_options(url), skip_compatibility_check=True, skip_table_creation=True
        )

    def __setattr__(self, name: str, value: Any) -> None:
        # Optuna sets the engine here and when unpickled: configure it before it connects.
        if name == "engine":
            configure(value)
            self.file = DatabaseFile.of(value.url)
            event.listen(value, "do_connect", self._require_file)
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[Any, Any]:
        return super().__getstate__() | {"_readers": {}}  # another process reads anew

    def reader(
        self,
        study_id: int,
        columns: Collection[sa.Table] = RESULTS,
        rungs: Sequence[Rung] = (),
    ) -> TrialReader:
        """Return the reader of a study's trials, which all that ask for the same share."""
        key = study_id, tuple(columns), tuple(rungs)
        if key not in self._readers:
            self._readers[key] = TrialReader(self, *key)
        return self._readers[key]

    def close(self) -> None:
        """Close all connections.

        The last connection to an SQLite file removes its WAL files, which a read-only one cannot
        do: close readers before the writer of the same process.
        """
        self.engine.dispose()

    def merge_log(self) -> None:
        """Move SQLite's write-ahead log into the file, so that the file alone holds everything.

        Best effort: what other processes read or write at this moment stays in the log.
        """
        if self.file is None:
            return
        with (
            contextlib.suppress(sa.exc.SQLAlchemyError, sqlite3.Error, StorageLostError),
            contextlib.closing(self.engine.raw_connection()) as connection,
        ):
            connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")  # waits for no process

    # ------------------------------------------------------------------ transactions

    create_new_study = _as_writer(RDBStorage.create_new_study)
    delete_study = _as_writer(RDBStorage.delete_study)
    set_study_user_attr = _as_writer(RDBStorage.set_study_user_attr)
    set_study_system_attr = _as_writer(RDBStorage.set_study_system_attr)
    _create_new_trial = _as_writer(RDBStorage._create_new_trial)
    _set_trial_param = _as_writer(RDBStorage._set_trial_param)
    set_trial_state_values = _as_writer(RDBStorage.set_trial_state_values)
    set_trial_intermediate_value = _as_writer(RDBStorage.set_trial_intermediate_value)
    set_trial_user_attr = _as_writer(RDBStorage.set_trial_user_attr)
    set_trial_system_attr = _as_writer(RDBStorage.set_trial_system_attr)
    record_heartbeat = _as_writer(RDBStorage.record_heartbeat)

    def require_study(self, study: StudyIdentity) -> None:
        """Have :meth:`verify` and each later writing transaction check that a study exists."""
        self._required_study = study

    def verify(self) -> None:
        """Check that the file and the required study have not been deleted.

        Raises:
            StorageLostError: if one has.
        """
        self._require_file()
        with self.reading() as connection:
            self._require_study(connection)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a writing transaction.

        Raises:
            StorageLostError: if the file or the required study was deleted.
        """
        self._require_file()
        with begin_as(writer=True), self.engine.begin() as connection:
            self._require_study(connection)
            with _naming_damage(connection):
                yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a reading transaction on a snapshot, or continue the one in which this is called.

        Its queries agree with each other, whatever is written meanwhile. A server needs several
        round trips for each new connection.
        """
        outer = _reading.get()
        if outer is not None and outer.engine is self.engine:
            yield outer
            return
        # SQLite transactions are snapshots by default.
        is_file = self.engine.dialect.name == "sqlite"
        level = {} if is_file else {"isolation_level": "REPEATABLE READ"}
        connection = self.engine.connect().execution_options(**level)
        with begin_as(writer=False), connection, connection.begin(), _naming_damage(connection):
            token = _reading.set(connection)
            try:
                yield connection
            finally:
                _reading.reset(token)

    def _require_file(self, *connection: object) -> None:
        """Check the file, also before a connection is opened: SQLite would create a missing one."""
        if self.file is not None and not self.file.is_in_place:
            raise StorageLostError(
                f"{self.file.path} was deleted, moved or replaced while this search used it: move "
                "it back with its folders, or restore a backup, to resume"
            )

    def _require_study(self, connection: Connection) -> None:
        if self._required_study is not None:
            self._required_study.require_stored(connection)

    # ------------------------------------------------------------------ what Optuna reads

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial.

        Raises:
            KeyError: if it does not exist.
        """
        with self.reading() as connection:
            of_trial = TRIALS.c.trial_id == trial_id
            study_id = connection.scalar(sa.select(TRIALS.c.study_id).where(of_trial))
            if study_id is None:
                raise KeyError(f"no trial has the id {trial_id}")
            (trial,) = self._read_trials(study_id, [of_trial])
        return trial

    def get_trials(self, study_id: int, trial_ids: Sequence[int]) -> list[FrozenTrial]:
        """Return trials of a study by their ids, in this order."""
        found = self._read_trials(study_id, [TRIALS.c.trial_id.in_(trial_ids)])
        by_id = {trial._trial_id: trial for trial in found}
        return [by_id[trial_id] for trial_id in trial_ids]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        where: list[sa.ColumnElement[bool]] = []
        if len(included_trial_ids) <= MAX_INCLUDED_IDS:
            is_newer = TRIALS.c.trial_id > trial_id_greater_than
            where.append(TRIALS.c.trial_id.in_(included_trial_ids) | is_newer)
        if states is not None:
            where.append(TRIALS.c.state.in_([state for state in TrialState if state in states]))
        self.get_study_name_from_id(study_id)  # KeyError if it does not exist
        return [
            trial
            for trial in self._read_trials(study_id, where)
            if trial._trial_id > trial_id_greater_than or trial._trial_id in included_trial_ids
        ]

    def _read_trials(
        self, study_id: int, where: Sequence[sa.ColumnElement[bool]]
    ) -> list[FrozenTrial]:
        with self.reading() as connection:
            trials = read_whole_trials(connection, study_id, where)
        return [trial.freeze() for trial in sorted(trials, key=lambda each: each.trial_id)]

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study; raise a KeyError if it does not exist."""
        with self.reading() as connection:
            name: str | None = connection.scalar(
                sa.select(STUDIES.c.study_name).where(STUDIES.c.study_id == study_id)
            )
        if name is None:
            raise KeyError(f"no study has the id {study_id}")
        return name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the directions of a study."""
        columns = STUDY_DIRECTIONS.c
        query = sa.select(raw(columns.direction)).where(columns.study_id == study_id)
        with self.reading() as connection:
            stored = connection.scalars(query.order_by(columns.objective)).all()
            if not stored:
                self.get_study_name_from_id(study_id)  # KeyError if it does not exist
            with locating(study_id):
                return [decode_direction(direction) for direction in stored]

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the user attributes of a study."""
        return self._read_attributes(STUDY_USER_ATTRS, study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the system attributes of a study."""
        return self._read_attributes(STUDY_SYSTEM_ATTRS, study_id)

    def _read_attributes(self, table: sa.Table, study_id: int) -> dict[str, Any]:
        with self.reading() as connection:
            stored = read_study_attrs(connection, table, study_id)
            if not stored:
                self.get_study_name_from_id(study_id)  # KeyError if it does not exist
            with locating(study_id):
                return {key: decode_json(value, key) for key, value in stored.items()}

    # ------------------------------------------------------------------ one trial's life

    def claim(
        self,
        study_id: int,
        claim_token: str,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
        exclude: Collection[int] = (),
        paused_ids: Sequence[int] | None = None,
    ) -> int | None:
        """Claim the next waiting trial for a worker.

        Args:
            study_id: id of the study.
            claim_token: token unique to this claim.
            lease_seconds: time without a heartbeat after which the lease expires.
            exclude: ids of trials that are not claimed.
            paused_ids: ids of paused trials to claim, in this order; None for trials that are not
                paused, in the order of their numbers.

        Returns:
            The trial's id; None if no such trial waits.
        """
        waiting = waiting_query(study_id, exclude, paused_ids)
        with self.transaction() as connection:
            claimed = dequeue(connection, waiting, Lease(claim_token, lease_seconds))
        return claimed[0] if claimed else None

    def claim_matching(
        self,
        trial_id: int,
        claim_token: str,
        limit: int,
        parameters: Sequence[str],
        exclude: Collection[int] = (),
        paused_ids: Sequence[int] | None = None,
    ) -> list[int]:
        """Claim more waiting trials that match a claimed one.

        At most an equal share of them is claimed: their number divided by the number of workers
        that run trials of the study.

        Args:
            trial_id: id of the claimed trial.
            claim_token: token of its claim, which becomes that of the others.
            limit: maximum number to claim.
            parameters: names of the parameters whose values must match; one that a trial lacks
                must be lacking in the others.
            exclude: as for :meth:`claim`.
            paused_ids: as for :meth:`claim`.

        Raises:
            LeaseLostError: if the lease of the claimed trial is lost.
        """
        with self._leased_transaction(PendingWrite(trial_id, claim_token)) as (connection, lease):
            of_trial = TRIALS.c.trial_id == trial_id
            study_id = connection.scalar(sa.select(TRIALS.c.study_id).where(of_trial))
            assert study_id is not None
            waiting = waiting_query(study_id, exclude, paused_ids)
            for parameter in parameters:
                waiting = waiting.where(has_same_value(parameter, trial_id))
            count = connection.scalar(sa.select(sa.func.count()).select_from(waiting.subquery()))
            workers = {other.worker for other in running_leases(connection, study_id).values()}
            share = -(-((count or 0) + 1) // len(workers)) - 1  # the claimed trial counts
            lease = Lease(claim_token, lease.seconds)
            return dequeue(connection, waiting, lease, max(0, min(limit, share)))

    def flush(self, writes: Sequence[PendingWrite]) -> list[int]:
        """Write to several claimed trials in one transaction.

        Returns:
            Ids of the trials whose lease is lost; nothing is written to them.
        """
        with self.transaction() as connection:
            _, lost = write_pending(connection, writes)
        return lost

    def finish(
        self,
        trial_id: int,
        claim_token: str,
        state: TrialState,
        value: float | None,
        attributes: Mapping[str, Any],
        curve: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        """Finish a claimed trial as COMPLETE with a finite value, PRUNED or FAIL.

        One transaction also writes user attributes and the remaining intermediate values by step.

        Raises:
            LeaseLostError: if the lease is lost; nothing is written.
        """
        write = PendingWrite(trial_id, claim_token, curve)
        with self._leased_transaction(write) as (connection, _):
            if value is not None:
                assert math.isfinite(value)
                row = {"trial_id": trial_id, "objective": 0, "value": value, "value_type": FINITE}
                insert(connection, TRIAL_VALUES, [row])
            write_user_attrs(connection, {trial_id: attributes})
            update_trials(connection, {trial_id: {"state": state, "datetime_complete": utcnow()}})

    def is_finished_by(self, trial_id: int, claim_token: str) -> bool:
        """Return whether a trial was finished under this claim token.

        Answers whether a commit succeeded whose connection was lost.
        """
        with self.transaction() as connection:
            state, lease = lock_trials(connection, [trial_id]).get(trial_id, (None, None))
        is_finished = state is not None and state.is_finished()
        return is_finished and lease is not None and lease.claim_token == claim_token

    def requeue_all(
        self, writes: Sequence[PendingWrite], cause: Failure, error: str | None = None
    ) -> list[int]:
        """Set claimed trials waiting again in one transaction, after a last write to each.

        The cause is counted among the retries of each; an error is an exception in one line.

        Returns:
            Ids of the trials whose lease is lost; nothing is written to them.
        """
        with self.transaction() as connection:
            held, lost = write_pending(connection, writes)
            requeue(connection, held, cause, error)
        return lost

    def pause(
        self,
        trial_id: int,
        claim_token: str,
        attributes: Mapping[str, Any],
        curve: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        """Pause a claimed trial; only claims that name it resume it. See :meth:`finish`.

        Raises:
            LeaseLostError: if the lease is lost; nothing is written.
        """
        write = PendingWrite(trial_id, claim_token, curve)
        with self._leased_transaction(write) as (connection, _):
            write_user_attrs(connection, {trial_id: attributes})
            since = {PAUSED: utcnow().isoformat()}
            write_attrs(connection, TRIAL_SYSTEM_ATTRS, {trial_id: since})
            # The start time stays: a trial that is pruned later ran from then until now.
            end_claims(connection, {trial_id: {"state": TrialState.WAITING}})

    def write_audit(self, decisions: Mapping[int, AuditDecision]) -> list[int]:
        """Store decisions about audited trials by id, which train on regardless.

        Returns:
            Ids of the trials whose decision is stored: it is not if another was stored before.
        """
        with self.transaction() as connection:
            lock_trials(connection, decisions)
            stored = read_attribute(connection, TRIAL_SYSTEM_ATTRS, AUDIT, decisions)
            valid = []
            for trial_id in sorted(decisions.keys() & stored.keys()):
                with locating(trial_id=trial_id):
                    before = parse_trial_system_attribute(AUDIT, stored[trial_id])
                if before == decisions[trial_id].before:
                    valid.append(trial_id)
            after = {key: {AUDIT: decisions[key].after.model_dump()} for key in valid}
            write_attrs(connection, TRIAL_SYSTEM_ATTRS, after)
            write_user_attrs(connection, {key: decisions[key].attributes for key in valid})
        return valid

    def prune_paused(
        self, study_id: int, planned: int, groups: Sequence[Mapping[int, Mapping[str, Any]]]
    ) -> list[int]:
        """Prune those groups of trials of which all are still paused, in one transaction.

        They end as of the times of their pauses.

        Args:
            study_id: id of the study.
            planned: expected number of grid trials; with any other number nothing is done.
            groups: user attributes to write, by trial id, of trials that are pruned together.

        Returns:
            Ids of the trials that were pruned, in ascending order.
        """
        trials = {key: attributes for group in groups for key, attributes in group.items()}
        with self.transaction() as connection:
            # The study's row stays locked, so it is not extended meanwhile.
            study = sa.select(STUDIES).where(STUDIES.c.study_id == study_id)
            connection.execute(study.with_for_update())
            if count_where(connection, study_id) != planned:
                return []
            states = lock_trials(connection, trials)
            since = read_attribute(connection, TRIAL_SYSTEM_ATTRS, PAUSED, states)
            paused = {key for key in since if states[key][0] is TrialState.WAITING}
            ends = {}
            for trial_id in [key for group in groups if group.keys() <= paused for key in group]:
                time = parse_trial_system_attribute(PAUSED, since[trial_id])
                ends[trial_id] = {"state": TrialState.PRUNED, "datetime_complete": time}
            write_user_attrs(connection, {trial_id: trials[trial_id] for trial_id in ends})
            delete_attrs(connection, TRIAL_SYSTEM_ATTRS, [(trial_id, PAUSED) for trial_id in ends])
            end_claims(connection, ends)
        return sorted(ends)

    # ------------------------------------------------------------------ leases of other workers

    def running_leases(self, study_id: int) -> dict[int, Lease]:
        """Return the leases of a study's running trials, by trial id.

        A trial that plain Optuna runs has none.
        """
        with self.reading() as connection:
            return running_leases(connection, study_id)

    def expire_leases(
        self, study_id: int, monitor: LeaseMonitor, clock: Callable[[], float]
    ) -> list[int]:
        """Requeue the trials whose leases have expired by an observer's monotonic clock.

        Observation and requeue share one writing transaction: while an observer cannot write,
        other workers may be unable to send heartbeats.

        Returns:
            Ids of the requeued trials.
        """
        with self.transaction() as connection:
            leases = running_leases(connection, study_id)
            expired = monitor.observe(leases.items(), clock())
            if not expired:
                return []
            # On PostgreSQL their workers or other observers may have written meanwhile.
            requeued = [
                trial_id
                for trial_id, (state, lease) in lock_trials(connection, expired).items()
                if state is TrialState.RUNNING and lease == leases[trial_id]
            ]
            requeue(connection, requeued, Failure.LEASE_EXPIRED)
        return requeued

    @contextlib.contextmanager
    def _leased_transaction(self, write: PendingWrite) -> Iterator[tuple[Connection, Lease]]:
        """Open a writing transaction under a claim token, after a write to the trial."""
        with self.transaction() as connection:
            held, lost = write_pending(connection, [write])
            if lost:
                raise LeaseLostError(
                    f"trial id {write.trial_id} is no longer held by {write.claim_token}: nothing "
                    "was written"
                )
            yield connection, held[write.trial_id]


@contextlib.contextmanager
def _naming_damage(connection: Connection) -> Iterator[None]:
    """Raise an error that names study and trial for a row that cannot be decoded.

    Raises:
        StudyFormatError: if one cannot.
    """
    try:
        yield
    except RowError as error:
        study = sa.select(STUDIES.c.study_name).where(STUDIES.c.study_id == error.study_id)
        found = shorten(str(error), 180)
        if error.trial_id is not None:
            study = sa.select(STUDIES.c.study_name, TRIALS.c.number).join_from(STUDIES, TRIALS)
            study = study.where(TRIALS.c.trial_id == error.trial_id)
            name, number = connection.execute(study).one()
            found = f"trial {number}: {found}"
        else:
            name = connection.scalar(study)
        raise StudyFormatError(
            f"study {name!r} is damaged ({found}): restore the storage from a backup, or repair an "
            "SQLite file with sqlite3 FILE .recover"
        ) from error
