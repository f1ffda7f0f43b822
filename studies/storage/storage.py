"""Optuna's RDB storage with leases: claims, and writes that hold only under a claim token."""

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import Failure
from studies.errors import LeaseLostError
from studies.storage.engine import configure, write_transaction
from studies.storage.leases import Lease, LeaseMonitor
from studies.storage.queue import (
    PendingWrite,
    all_finished_or_paused,
    check_lease,
    dequeue,
    dequeue_matching,
    waiting_query,
    write_pending,
)
from studies.storage.trial_rows import (
    TRIAL_VALUES,
    TRIALS,
    pause,
    prune_paused,
    read_state_and_lease,
    requeue,
    running_leases,
    utcnow,
    write_attributes,
    write_intermediate_values,
    write_lease,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _as_writer(
    method: Callable[Concatenate["LeasedRDBStorage", _P], _R],
) -> Callable[Concatenate["LeasedRDBStorage", _P], _R]:
    @wraps(method)
    def write(self: "LeasedRDBStorage", *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with write_transaction():
            return method(self, *args, **kwargs)

    return write  # type: ignore[return-value]  # Concatenate names self


class LeasedRDBStorage(RDBStorage):
    """Optuna's RDB storage with leases; open it with :func:`studies.storage.open.open_storage`.

    Optuna's writing methods are unchanged but begin as writers, so that on SQLite too only one
    worker claims a waiting trial.
    """

    def __init__(self, url: str, engine_options: dict[str, Any]) -> None:
        # Optuna formats the URL as a template; escape braces, as in a password.
        template = url.replace("{", "{{").replace("}", "}}")
        super().__init__(
            template, engine_options, skip_compatibility_check=True, skip_table_creation=True
        )

    def __setattr__(self, name: str, value: Any) -> None:
        # Optuna sets the engine here and when unpickled: configure it before it connects.
        if name == "engine":
            configure(value)
        super().__setattr__(name, value)

    def close(self) -> None:
        """Close all connections.

        The last connection to an SQLite file removes its WAL files, which a read-only one cannot
        do: close readers before the writer of the same process.
        """
        self.engine.dispose()

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

    # ------------------------------------------------------------------ one trial's life

    def claim(
        self,
        study_id: int,
        claim_token: str,
        lease_seconds: float = 120,
        exclude: Collection[int] = (),
        paused_ids: Sequence[int] | None = None,
    ) -> int | None:
        """Claim the next waiting trial for a worker.

        Args:
            study_id: id of the study.
            claim_token: token unique to this claim.
            lease_seconds: time without a heartbeat after which the lease expires.
            exclude: ids of trials that are not claimed.
            paused_ids: ids of paused trials, the first of which is claimed; None for the first
                trial that is not paused.

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
            parameters: names of the parameters whose values must match.
            exclude: ids of trials that are not claimed.
            paused_ids: ids of paused trials to claim; None for trials that are not paused.

        Returns:
            The trials' ids.

        Raises:
            LeaseLostError: if the lease of the claimed trial is lost.
        """
        with self._leased_transaction(trial_id, claim_token) as (connection, lease):
            return dequeue_matching(
                connection, trial_id, lease, limit, parameters, exclude, paused_ids
            )

    def heartbeat(self, trial_id: int, claim_token: str) -> None:
        """Send a heartbeat of a claimed trial.

        Raises:
            LeaseLostError: if the lease is lost; nothing is written.
        """
        with self._leased_transaction(trial_id, claim_token) as (connection, lease):
            write_lease(connection, trial_id, lease.with_heartbeat())

    def report(
        self, trial_id: int, claim_token: str, curve: Mapping[int, float], replace_all: bool = False
    ) -> None:
        """Write intermediate values.

        Args:
            trial_id: id of the trial.
            claim_token: token of the claim.
            curve: values by step; they replace stored values of the same steps.
            replace_all: whether they replace all stored values.

        Raises:
            LeaseLostError: if the lease is lost; nothing is written.
        """
        with self._leased_transaction(trial_id, claim_token) as (connection, _):
            write_intermediate_values(connection, trial_id, curve, replace_all)

    def flush(self, trials: Iterable[PendingWrite]) -> list[int]:
        """Write to several claimed trials in one transaction.

        Returns:
            Ids of the trials whose lease is lost; nothing is written to them.
        """
        with self.transaction() as connection:
            return write_pending(connection, trials)

    def finish(
        self,
        trial_id: int,
        claim_token: str,
        state: TrialState,
        value: float | None,
        attributes: Mapping[str, Any],
        curve: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        """Finish a claimed trial in one transaction.

        Args:
            trial_id: id of the trial.
            claim_token: token of the claim.
            state: COMPLETE, PRUNED or FAIL.
            value: value of a complete trial, finite.
            attributes: user attributes to write.
            curve: remaining intermediate values by step.

        Raises:
            LeaseLostError: if the lease is lost; nothing is written.
        """
        with self._leased_transaction(trial_id, claim_token) as (connection, _):
            write_intermediate_values(connection, trial_id, curve)
            if value is not None:
                assert math.isfinite(value)
                connection.execute(
                    sa.insert(TRIAL_VALUES).values(
                        trial_id=trial_id,
                        objective=0,
                        value=value,
                        value_type=models.TrialValueModel.TrialValueType.FINITE,
                    )
                )
            write_attributes(connection, trial_id, attributes)
            connection.execute(
                sa.update(TRIALS)
                .where(TRIALS.c.trial_id == trial_id)
                .values(state=state, datetime_complete=utcnow())
            )

    def is_finished_by(self, trial_id: int, claim_token: str) -> bool:
        """Return whether a trial was finished under this claim token.

        Answers whether a commit succeeded whose connection was lost.
        """
        with self.engine.begin() as connection:
            state, lease = read_state_and_lease(connection, trial_id)
        return (
            state is not None
            and state.is_finished()
            and lease is not None
            and lease.claim_token == claim_token
        )

    def requeue(
        self,
        trial_id: int,
        claim_token: str,
        cause: Failure,
        error: str | None = None,
        curve: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        """Set a claimed trial waiting again, with its curve and the cause.

        Args:
            trial_id: id of the trial.
            claim_token: token of the claim.
            cause: reason, counted among the trial's retries.
            error: exception in one line.
            curve: remaining intermediate values by step.

        Raises:
            LeaseLostError: if the lease is lost; nothing is written.
        """
        with self._leased_transaction(trial_id, claim_token) as (connection, _):
            write_intermediate_values(connection, trial_id, curve)
            requeue(connection, trial_id, cause, error)

    def pause(
        self,
        trial_id: int,
        claim_token: str,
        attributes: Mapping[str, Any],
        curve: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        """Pause a claimed trial; only claims that name it resume it.

        Args:
            trial_id: id of the trial.
            claim_token: token of the claim.
            attributes: user attributes to write.
            curve: remaining intermediate values by step.

        Raises:
            LeaseLostError: if the lease is lost; nothing is written.
        """
        with self._leased_transaction(trial_id, claim_token) as (connection, _):
            write_intermediate_values(connection, trial_id, curve)
            write_attributes(connection, trial_id, attributes)
            pause(connection, trial_id)

    def prune_paused(
        self, study_id: int, planned: int, trials: Mapping[int, Mapping[str, Any]]
    ) -> list[int]:
        """Prune paused trials in one transaction, if every other grid trial is finished.

        Args:
            study_id: id of the study.
            planned: expected number of grid trials; with any other number nothing is done.
            trials: user attributes to write, by trial id.

        Returns:
            Ids of the trials that were pruned.
        """
        with self.transaction() as connection:
            if not all_finished_or_paused(connection, study_id, planned):
                return []
            # All writers lock trials in the order of their ids, to avoid deadlocks.
            return [
                trial_id
                for trial_id in sorted(trials)
                if prune_paused(connection, trial_id, trials[trial_id])
            ]

    # ------------------------------------------------------------------ leases of other workers

    def running_leases(self, study_id: int) -> dict[int, Lease]:
        """Return the leases of a study's running trials, by trial id.

        A trial that plain Optuna runs has none.
        """
        with self.engine.begin() as connection:
            return running_leases(connection, study_id)

    def expire_leases(
        self, study_id: int, monitor: LeaseMonitor, clock: Callable[[], float]
    ) -> list[int]:
        """Requeue the trials whose leases have expired.

        Observation and requeue share one writing transaction: while an observer cannot write,
        other workers may be unable to send heartbeats.

        Args:
            study_id: id of the study.
            monitor: monitor of the observer.
            clock: monotonic clock, in seconds.

        Returns:
            Ids of the requeued trials.
        """
        requeued = []
        with self.transaction() as connection:
            leases = running_leases(connection, study_id)
            for trial_id in monitor.observe(leases.items(), clock()):
                state, lease = read_state_and_lease(connection, trial_id)
                # On PostgreSQL its worker or another observer may have written meanwhile.
                if state is TrialState.RUNNING and lease == leases[trial_id]:
                    requeue(connection, trial_id, Failure.LEASE_EXPIRED)
                    requeued.append(trial_id)
        return requeued

    # ------------------------------------------------------------------ transactions

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a writing transaction."""
        with write_transaction(), self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Open a reading transaction on a consistent snapshot."""
        # SQLite transactions are snapshots by default.
        is_file = self.engine.dialect.name == "sqlite"
        level = {} if is_file else {"isolation_level": "REPEATABLE READ"}
        connection = self.engine.connect().execution_options(**level)
        with connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def _leased_transaction(
        self, trial_id: int, claim_token: str
    ) -> Iterator[tuple[Connection, Lease]]:
        """Open a writing transaction under a claim token."""
        with self.transaction() as connection:
            lease = check_lease(connection, trial_id, claim_token)
            if lease is None:
                raise LeaseLostError(
                    f"trial id {trial_id} is no longer held by {claim_token}: nothing was written"
                )
            yield connection, lease
