"""Optuna's relational storage, made safe for many processes that share one study.

A point of a study is one trial for its whole life. It waits with its parameters fixed; a worker
claims it, and every later write of that worker holds only while its claim stands. The tables are
Optuna's own: plain Optuna reads such a study, and can drive it.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.engine import configure, writing
from studies.errors import ClaimLost
from studies.tables import (
    ATTRIBUTES,
    CURVE,
    SYSTEM,
    TRIALS,
    VALUES,
    attribute,
    insert,
    marked_as_point,
    now,
    without,
)

OWNER = "owner"
"""The system attribute that holds the token of a running trial's worker."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _as_writer(
    method: Callable[Concatenate["Storage", _P], _R],
) -> Callable[Concatenate["Storage", _P], _R]:
    @wraps(method)
    def write(self: "Storage", *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with writing():
            return method(self, *args, **kwargs)

    return write  # type: ignore[return-value]  # that self is named makes the difference


class Storage(RDBStorage):
    """Optuna's relational storage with claims that hold; see :func:`studies.opening.open_storage`.

    Optuna's own writing methods are kept as they are, but begin as writers, so that on SQLite too
    only one worker's claim of a waiting trial succeeds.
    """

    def __init__(self, url: str, engine_options: dict[str, Any]) -> None:
        # Optuna fills a URL in as a template: a brace in it, as of a password, is to stay one.
        template = url.replace("{", "{{").replace("}", "}}")
        super().__init__(template, engine_options, skip_table_creation=True)
        configure(self.engine)

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        configure(self.engine)

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

    def claim(self, study_id: int, owner: str) -> int | None:
        """Take the next waiting point for a worker.

        Args:
            study_id: of the study.
            owner: the worker's token, of this claim alone.

        Returns:
            The trial's id; None if no point waits.
        """
        next_waiting = (
            sa.select(TRIALS.c.trial_id)
            .where(
                TRIALS.c.study_id == study_id,
                TRIALS.c.state == TrialState.WAITING,
                marked_as_point(),
            )
            .order_by(TRIALS.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)  # on SQLite the writer is alone
        )
        with self.transaction() as connection:
            trial_id: int | None = connection.scalar(
                sa.update(TRIALS)
                .where(TRIALS.c.trial_id == next_waiting.scalar_subquery())
                .values(state=TrialState.RUNNING, datetime_start=now())
                .returning(TRIALS.c.trial_id)
            )
            if trial_id is not None:
                connection.execute(without(trial_id, SYSTEM, OWNER))
                connection.execute(sa.insert(SYSTEM), attribute("trial_id", trial_id, OWNER, owner))
        return trial_id

    def report(self, trial_id: int, owner: str, curve: Mapping[int, float]) -> None:
        """Record intermediate values, by step.

        Raises:
            ClaimLost: if the worker no longer holds the trial; nothing is written then.
        """
        with self._held(trial_id, owner) as connection:
            connection.execute(
                sa.delete(CURVE).where(CURVE.c.trial_id == trial_id, CURVE.c.step.in_(curve))
            )
            kind = models.TrialIntermediateValueModel
            for step, value in curve.items():
                stored, value_type = kind.intermediate_value_to_stored_repr(value)
                connection.execute(
                    sa.insert(CURVE).values(
                        trial_id=trial_id,
                        step=step,
                        intermediate_value=stored,
                        intermediate_value_type=value_type,
                    )
                )

    def finish(
        self,
        trial_id: int,
        owner: str,
        state: TrialState,
        value: float | None,
        attributes: Mapping[str, Any],
    ) -> None:
        """Record a trial's end, with what is known of it, in one transaction.

        Args:
            trial_id: of the trial.
            owner: the token that it was claimed with.
            state: COMPLETE, PRUNED or FAIL.
            value: of a complete trial, finite.
            attributes: the trial's user attributes.

        Raises:
            ClaimLost: if the worker no longer holds the trial; nothing is written then.
        """
        with self._held(trial_id, owner) as connection:
            if value is not None:
                assert math.isfinite(value)
                connection.execute(
                    sa.insert(VALUES).values(
                        trial_id=trial_id,
                        objective=0,
                        value=value,
                        value_type=models.TrialValueModel.TrialValueType.FINITE,
                    )
                )
            rows = [attribute("trial_id", trial_id, *item) for item in attributes.items()]
            connection.execute(without(trial_id, ATTRIBUTES, *attributes))
            insert(connection, ATTRIBUTES, rows)
            connection.execute(
                sa.update(TRIALS)
                .where(TRIALS.c.trial_id == trial_id)
                .values(state=state, datetime_complete=now())
            )

    def give_back(self, trial_id: int, owner: str) -> None:
        """Let a trial wait again as if it had never been claimed.

        Raises:
            ClaimLost: if the worker no longer holds the trial; nothing is written then.
        """
        with self._held(trial_id, owner) as connection:
            connection.execute(sa.delete(CURVE).where(CURVE.c.trial_id == trial_id))
            connection.execute(without(trial_id, SYSTEM, OWNER))
            connection.execute(
                sa.update(TRIALS)
                .where(TRIALS.c.trial_id == trial_id)
                .values(state=TrialState.WAITING, datetime_start=None)
            )

    # ------------------------------------------------------------------ transactions

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a transaction that writes; it is all done, or nothing of it."""
        with writing(), self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def _held(self, trial_id: int, owner: str) -> Iterator[Connection]:
        """Open a transaction in which the trial runs and is the owner's."""
        with self.transaction() as connection:
            state = connection.scalar(
                sa.select(TRIALS.c.state).where(TRIALS.c.trial_id == trial_id).with_for_update()
            )
            stored = connection.scalar(
                sa.select(SYSTEM.c.value_json).where(
                    SYSTEM.c.trial_id == trial_id, SYSTEM.c.key == OWNER
                )
            )
            if state is not TrialState.RUNNING or stored != json.dumps(owner):
                raise ClaimLost(f"trial id {trial_id} is no longer held by {owner}; it is dropped")
            yield connection
