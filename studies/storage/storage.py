"""Optuna's relational storage, made safe for many processes that share one study.

A point of a study is one trial for its whole life. It waits with its parameters fixed; a worker
claims it, and every later write of that worker holds only while its claim stands. The tables are
Optuna's own: plain Optuna reads such a study, and can drive it.
"""

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

    return write  # type: ignore[return-value]  # that self is named makes the difference


class LeasedRDBStorage(RDBStorage):
    """Optuna's RDB storage with leases; open it with :func:`studies.storage.open.open_storage`.

    Optuna's own writing methods are kept as they are, but begin as writers, so that on SQLite too
    only one worker's claim of a waiting trial succeeds.
    """

    def __init__(self, url: str, engine_options: dict[str, Any]) -> None:
        # Optuna fills a URL in as a template: a brace in it, as of a password, is to stay one.
        template = url.replace("{", "{{").replace("}", "}}")
        super().__init__(
            template, engine_options, skip_compatibility_check=True, skip_table_creation=True
        )

    def __setattr__(self, name: str, value: Any) -> None:
        # However Optuna comes to its engine, here or when it is unpickled: before it connects.
        if name == "engine":
            configure(value)
        super().__setattr__(name, value)

    def close(self) -> None:
        """Close all connections.

        The last to close an SQLite file clears up beside it, which who only reads cannot: let a
        writer outlive the readers of its process.
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

    # ------------------------------------------------------------------ one point's life

    def claim(
        self,
        study_id: int,
        claim_token: str,
        lease_seconds: float = 120,
        exclude: Collection[int] = (),
        paused_ids: Sequence[int] | None = None,
    ) -> int | None:
        """Take the next waiting point for a worker.

        Args:
            study_id: of the study.
            claim_token: the worker's token, of this claim alone.
            lease_seconds: without a renewal, after which the trial is anybody's.
            exclude: the ids of trials that are not taken.
            paused_ids: ids of paused trials, the first of which is claimed; None for the first
                trial that is not paused.

        Returns:
            The trial's id; None if no such point waits.
        """
        waiting = waiting_query(study_id, exclude, paused_ids)
        with self.transaction() as connection:
            taken = dequeue(connection, waiting, Lease(claim_token, lease_seconds))
        return taken[0] if taken else None

    def claim_matching(
        self,
        trial_id: int,
        claim_token: str,
        limit: int,
        parameters: Sequence[str],
        exclude: Collection[int] = (),
        paused_ids: Sequence[int] | None = None,
    ) -> list[int]:
        """Take waiting points that are like one that a worker has just claimed, in their order.

        Of those that wait it takes no more than its share: as many as each worker that runs trials
        of the study would get.

        Args:
            trial_id: of the claimed one.
            claim_token: the token that it was claimed with, and the others will be.
            limit: the most to take.
            parameters: those that must have the same values.
            exclude: the ids of trials that are not taken.
            paused_ids: the ids of paused trials to take; None for trials that are not paused.

        Returns:
            The trials' ids.

        Raises:
            LeaseLostError: if the worker does not hold that one; nothing is taken then.
        """
        with self._leased_transaction(trial_id, claim_token) as (connection, lease):
            return dequeue_matching(
                connection, trial_id, lease, limit, parameters, exclude, paused_ids
            )

    def heartbeat(self, trial_id: int, claim_token: str) -> None:
        """Say that the trial's worker lives.

        Raises:
            LeaseLostError: if the worker no longer holds the trial; nothing is written then.
        """
        with self._leased_transaction(trial_id, claim_token) as (connection, lease):
            write_lease(connection, trial_id, lease.with_heartbeat())

    def report(
        self, trial_id: int, claim_token: str, curve: Mapping[int, float], replace_all: bool = False
    ) -> None:
        """Record intermediate values, by step.

        Args:
            trial_id: of the trial.
            claim_token: the token that it was claimed with.
            curve: values, which take the place of those of the same steps.
            replace_all: of all others too.

        Raises:
            LeaseLostError: if the worker no longer holds the trial; nothing is written then.
        """
        with self._leased_transaction(trial_id, claim_token) as (connection, _):
            write_intermediate_values(connection, trial_id, curve, replace_all)

    def flush(self, trials: Iterable[PendingWrite]) -> list[int]:
        """Record what there is of several trials that a worker holds, in one transaction.

        Returns:
            The ids of those that the worker no longer holds; of them nothing is written.
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
        """Record a trial's end, with what is known of it, in one transaction.

        Args:
            trial_id: of the trial.
            claim_token: the token that it was claimed with.
            state: COMPLETE, PRUNED or FAIL.
            value: of a complete trial, finite.
            attributes: the trial's user attributes.
            curve: its last intermediate values, by step.

        Raises:
            LeaseLostError: if the worker no longer holds the trial; nothing is written then.
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
        """Tell whether a trial is finished, and by this owner.

        A connection that is lost while a transaction is committed leaves open whether it was.
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
        """Let a trial wait again, with the curve that it has and a note of the cause.

        Args:
            trial_id: of the trial.
            claim_token: the token that it was claimed with.
            cause: counted among the trial's setbacks.
            error: the exception, in one line.
            curve: its last intermediate values, by step.

        Raises:
            LeaseLostError: if the worker no longer holds the trial; nothing is written then.
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
        """Let a trial wait until the pruner wants it; nobody takes it who does not name it.

        Args:
            trial_id: of the trial.
            claim_token: the token that it was claimed with.
            attributes: the trial's user attributes.
            curve: its last intermediate values, by step.

        Raises:
            LeaseLostError: if the worker no longer holds the trial; nothing is written then.
        """
        with self._leased_transaction(trial_id, claim_token) as (connection, _):
            write_intermediate_values(connection, trial_id, curve)
            write_attributes(connection, trial_id, attributes)
            pause(connection, trial_id)

    def prune_paused(
        self, study_id: int, planned: int, trials: Mapping[int, Mapping[str, Any]]
    ) -> list[int]:
        """Prune paused trials for good, in one transaction, if no other point is unfinished.

        Args:
            study_id: of the study.
            planned: how many points it has: if it has more by now, nothing is done.
            trials: their user attributes, by the trials' ids.

        Returns:
            The ids of those that were paused, and are pruned now.
        """
        with self.transaction() as connection:
            if not all_finished_or_paused(connection, study_id, planned):
                return []
            # Whoever locks several does so in the same order.
            return [
                trial_id
                for trial_id in sorted(trials)
                if prune_paused(connection, trial_id, trials[trial_id])
            ]

    # ------------------------------------------------------------------ others' leases

    def running_leases(self, study_id: int) -> dict[int, Lease]:
        """Return the leases of a study's running trials, by trial id.

        A trial that plain Optuna runs has none.
        """
        with self.engine.begin() as connection:
            return running_leases(connection, study_id)

    def expire_leases(
        self, study_id: int, watch: LeaseMonitor, clock: Callable[[], float]
    ) -> list[int]:
        """Let those trials wait again whose leases an observer has seen run out.

        It is seen and done in one transaction that writes: who cannot write judges nobody, for
        then nobody can renew.

        Args:
            study_id: of the study.
            watch: the observer's.
            clock: monotonic, in seconds.

        Returns:
            The ids of the trials that wait again.
        """
        released = []
        with self.transaction() as connection:
            seen = running_leases(connection, study_id)
            for trial_id in watch.observe(seen.items(), clock()):
                state, lease = read_state_and_lease(connection, trial_id)
                # On PostgreSQL its worker, or another observer, may have been quicker.
                if state is TrialState.RUNNING and lease == seen[trial_id]:
                    requeue(connection, trial_id, Failure.LEASE_EXPIRED)
                    released.append(trial_id)
        return released

    # ------------------------------------------------------------------ transactions

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a transaction that writes; it is all done, or nothing of it."""
        with write_transaction(), self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Open a transaction that reads, all of it as of one instant."""
        # An SQLite transaction is so by itself.
        is_file = self.engine.dialect.name == "sqlite"
        level = {} if is_file else {"isolation_level": "REPEATABLE READ"}
        connection = self.engine.connect().execution_options(**level)
        with connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def _leased_transaction(
        self, trial_id: int, claim_token: str
    ) -> Iterator[tuple[Connection, Lease]]:
        """Open a transaction in which the trial runs and is the owner's."""
        with self.transaction() as connection:
            lease = check_lease(connection, trial_id, claim_token)
            if lease is None:
                raise LeaseLostError(
                    f"trial id {trial_id} is no longer held by {claim_token}; it is dropped"
                )
            yield connection, lease
