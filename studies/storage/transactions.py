"""Transactions on the tables of Optuna's RDB storage."""

import contextlib
import contextvars
import json
from collections.abc import Callable, Container, Iterator, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import Connection

from studies.attributes import (
    IMPORTED,
    IS_GRID_TRIAL,
    is_grid_trial,
    parse_trial_attribute,
)
from studies.errors import StudyFormatError
from studies.storage.damage import (
    READ_ERRORS,
    DamagedTrialError,
    DamagedTrials,
    check_grid_trial,
    name_trial,
    parse_choice,
    parse_imported,
    raw,
    reading,
    reports_damage,
)
from studies.storage.engine import configure, read_transaction, write_transaction
from studies.storage.leases import LEASE
from studies.storage.presence import DatabaseFile, StudyIdentity
from studies.storage.trial_rows import STUDIES, STUDY_SYSTEM_ATTRS, STUDY_USER_ATTRS, TRIALS

_MAX_TRIAL_ID = 2**31 - 1
"""Largest id of a trial on PostgreSQL."""

_reading: contextvars.ContextVar[Connection | None] = contextvars.ContextVar(
    "reading", default=None
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _as_writer(
    method: Callable[Concatenate["TransactionalRDBStorage", _P], _R],
) -> Callable[Concatenate["TransactionalRDBStorage", _P], _R]:
    @wraps(method)
    def write(self: "TransactionalRDBStorage", *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with write_transaction():
            return method(self, *args, **kwargs)

    return write  # type: ignore[return-value]  # Concatenate names self


class _WithoutLease:
    """A stored trial without its lease, since Optuna fails on an attribute that it cannot parse."""

    def __init__(self, trial: models.TrialModel) -> None:
        self._trial = trial
        self.system_attributes = [each for each in trial.system_attributes if each.key != LEASE]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)


def _name_attribute(trial: models.TrialModel, error: BaseException) -> BaseException:
    """Return an error that names the system attribute that caused it, if one did."""
    for attribute in trial.system_attributes:
        try:
            if attribute.key != LEASE:
                json.loads(attribute.value_json)
        except READ_ERRORS as cause:
            return ValueError(f"attribute {attribute.key}: {cause}")
    return error


class TransactionalRDBStorage(RDBStorage):
    """Optuna's RDB storage with transactions over several statements.

    Optuna's writing methods are unchanged but begin as writers, so that on SQLite too only one
    worker claims a waiting trial.

    Attributes:
        file: the SQLite file that it opened; None for a server.
    """

    file: DatabaseFile | None
    _required_study: StudyIdentity | None = None

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
            self.file = DatabaseFile.of(value.url)
            event.listen(value, "do_connect", self._require_file)
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
        with write_transaction(), self.engine.begin() as connection:
            self._require_study(connection)
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
        with self.snapshot() as connection:
            token = _reading.set(connection)
            try:
                yield connection
            finally:
                _reading.reset(token)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Open another reading transaction on a consistent snapshot."""
        # SQLite transactions are snapshots by default.
        is_file = self.engine.dialect.name == "sqlite"
        level = {} if is_file else {"isolation_level": "REPEATABLE READ"}
        connection = self.engine.connect().execution_options(**level)
        with read_transaction(), connection, connection.begin():
            yield connection

    def get_trials(self, study_id: int, trial_ids: Sequence[int]) -> list[FrozenTrial]:
        """Return trials of a study by their ids, read in a fixed number of statements.

        Damaged ones are left out with a warning, as from all methods that read several trials.
        """
        trials = self._get_trials(study_id, None, set(trial_ids), _MAX_TRIAL_ID)
        by_id = {trial._trial_id: trial for trial in trials}
        return [by_id[trial_id] for trial_id in trial_ids if trial_id in by_id]

    def _require_file(self, *connection: object) -> None:
        """Check the file, also before a connection is opened: SQLite would create a missing one."""
        if self.file is not None:
            self.file.require_in_place()

    def _require_study(self, connection: Connection) -> None:
        if self._required_study is not None:
            self._required_study.require_stored(connection)

    def _build_frozen_trial_from_trial_model(self, trial: models.TrialModel) -> FrozenTrial:
        """Build Optuna's object for a trial whose rows are checked."""
        try:
            places = [value.objective for value in trial.values]
            if not all(place in range(len(places)) for place in places):
                raise ValueError(f"its value has the objective {places[0]!r}")
            for attribute in trial.user_attributes:
                parse_trial_attribute(attribute.key, attribute.value_json)
            marks = [a.value_json for a in trial.system_attributes if a.key == IS_GRID_TRIAL]
            parse = parse_imported if marks == [json.dumps(IMPORTED)] else parse_choice
            for param in trial.params if marks else ():
                with reading(f"parameter {param.param_name}"):
                    parse(param.param_value, param.distribution_json)
            built = super()._build_frozen_trial_from_trial_model(
                _WithoutLease(trial)  # type: ignore[arg-type]
            )
            if is_grid_trial(built):
                check_grid_trial(built)
        except READ_ERRORS as error:
            cause = _name_attribute(trial, error)
            raise DamagedTrialError(trial.study.study_name, trial.number, cause) from error
        return built

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Return trials; one by one if that fails, to leave out those that are damaged."""
        try:
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        except (*READ_ERRORS, DamagedTrialError):
            self.get_study_name_from_id(study_id)  # KeyError if it does not exist
        query = sa.select(TRIALS.c.trial_id, raw(TRIALS.c.number)).where(
            TRIALS.c.study_id == study_id,
            TRIALS.c.trial_id.in_(included_trial_ids) | (TRIALS.c.trial_id > trial_id_greater_than),
        )
        if states is not None:
            wanted = [state for state in TrialState if state in states]
            query = query.where(TRIALS.c.state.in_(wanted))
        with self.reading() as connection:
            numbers = dict(connection.execute(query.order_by(TRIALS.c.trial_id)).all())
        damaged, trials = DamagedTrials(), []
        for trial_id, number in numbers.items():
            try:
                trials.append(self.get_trial(trial_id))
            except DamagedTrialError as error:
                damaged.add(name_trial(trial_id, number), error)
        damaged.report(self, study_id)
        return trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial.

        Raises:
            KeyError: if it does not exist.
            DamagedTrialError: if it is damaged.
        """
        query = sa.select(STUDIES.c.study_name, raw(TRIALS.c.number)).join(
            TRIALS, TRIALS.c.study_id == STUDIES.c.study_id
        )
        try:
            return super().get_trial(trial_id)
        except READ_ERRORS as error:  # an unknown state, a malformed time
            with self.reading() as connection:
                found = connection.execute(query.where(TRIALS.c.trial_id == trial_id)).first()
            if found is None:
                raise
            raise DamagedTrialError(*found, error) from error

    @reports_damage
    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the directions of a study."""
        return super().get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the user attributes of a study."""
        return self._read_study_attrs(study_id, STUDY_USER_ATTRS)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the system attributes of a study."""
        return self._read_study_attrs(study_id, STUDY_SYSTEM_ATTRS)

    @reports_damage
    def _read_study_attrs(self, study_id: int, table: sa.Table) -> dict[str, Any]:
        query = sa.select(table.c.key, table.c.value_json).where(table.c.study_id == study_id)
        with self.reading() as connection:
            rows = connection.execute(query).all()
        if not rows:
            self.get_study_name_from_id(study_id)  # KeyError if it does not exist
        attributes = {}
        for key, stored in rows:
            with reading(f"attribute {key}"):
                attributes[key] = json.loads(stored)
        return attributes

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return all studies; a damaged one has its name and an attribute ``damaged`` only."""
        try:
            return super().get_all_studies()
        except (LookupError, RecursionError, TypeError, ValueError):  # of any study
            query = sa.select(STUDIES.c.study_id, STUDIES.c.study_name).order_by(STUDIES.c.study_id)
            with self.reading() as connection:
                return [self._read_study(*row) for row in connection.execute(query).all()]

    def _read_study(self, study_id: int, name: str) -> FrozenStudy:
        try:
            directions = self.get_study_directions(study_id)
            user_attrs = self.get_study_user_attrs(study_id)
            system_attrs = self.get_study_system_attrs(study_id)
        except StudyFormatError as error:
            directions, system_attrs = [StudyDirection.NOT_SET], {}
            user_attrs = {"damaged": str(error)}
        return FrozenStudy(name, None, user_attrs, system_attrs, study_id, directions=directions)
