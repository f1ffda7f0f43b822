"""Optuna's tables as they are used here, and the only code that inserts studies and trials.

The number of statements does not depend on the number of trials: many rows are written by one
``executemany``, or by PostgreSQL's ``COPY``, which need one round trip to a server.
"""

import itertools
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import AUDIT, IS_GRID_TRIAL, LONG_RESULTS
from studies.errors import StorageError
from studies.storage.database import redact
from studies.storage.optuna_tables import (
    FINITE,
    METADATA,
    intermediate_value_to_stored_repr,
    value_to_stored_repr,
)
from studies.storage.trials import StoredStudy, StoredTrial

METRIC_NAMES = "study:metric_names"
"""System attribute that Optuna's ``set_metric_names`` writes."""

ARTIFACT_PREFIX = "artifacts:"
"""Prefix of the system attributes that Optuna writes for the files of a study or a trial."""

MAX_IDS = 500
"""Maximum number of trial ids in one statement; databases limit the number of parameters."""

_BATCH = 1000
"""Number of trials that are inserted at once."""

_TABLES = METADATA.tables

TRIALS = _TABLES["trials"]
STUDIES = _TABLES["studies"]
STUDY_DIRECTIONS = _TABLES["study_directions"]
STUDY_USER_ATTRS = _TABLES["study_user_attributes"]
STUDY_SYSTEM_ATTRS = _TABLES["study_system_attributes"]
TRIAL_PARAMS = _TABLES["trial_params"]
TRIAL_USER_ATTRS = _TABLES["trial_user_attributes"]
TRIAL_SYSTEM_ATTRS = _TABLES["trial_system_attributes"]
TRIAL_VALUES = _TABLES["trial_values"]
INTERMEDIATE_VALUES = _TABLES["trial_intermediate_values"]
HEARTBEATS = _TABLES["trial_heartbeats"]

STUDY_TABLES = (STUDY_DIRECTIONS, STUDY_USER_ATTRS, STUDY_SYSTEM_ATTRS)
"""Tables of what a study has, other than its trials."""

TRIAL_TABLES = (
    TRIAL_PARAMS,
    TRIAL_USER_ATTRS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_VALUES,
    INTERMEDIATE_VALUES,
)
"""Tables of what a trial has, heartbeats of plain Optuna aside."""

IS_FINITE = TRIAL_VALUES.c.value_type == FINITE
"""Condition that the value of a trial is finite."""


# ------------------------------------------------------------------ parts of queries


def raw(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return a column whose values are not converted: SQLite stores any type in any column."""
    return sa.type_coerce(column, sa.types.NullType())


def select_trial_ids(study_id: int) -> sa.Select[int]:
    """Return the query for the ids of a study's trials."""
    return sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)


def of_study(table: sa.Table, study_id: int) -> sa.ColumnElement[bool]:
    """Return the condition that a row belongs to a study."""
    if table in TRIAL_TABLES:
        return table.c.trial_id.in_(select_trial_ids(study_id))
    return table.c.study_id == study_id


def is_attr(table: sa.Table, key: str) -> sa.ColumnElement[bool]:
    """Return the condition that a row of a table of attributes is that one of the trial."""
    return sa.and_(table.c.key == key, table.c.trial_id == TRIALS.c.trial_id)


def has_system_attr(key: str) -> sa.ColumnElement[bool]:
    """Return the condition that a trial has a system attribute."""
    rows = sa.select(TRIAL_SYSTEM_ATTRS.c.trial_id).where(is_attr(TRIAL_SYSTEM_ATTRS, key))
    return sa.exists(rows.correlate(TRIALS))


def is_grid_trial() -> sa.ColumnElement[bool]:
    """Return the condition that a trial belongs to the grid."""
    return has_system_attr(IS_GRID_TRIAL)


def select_in_batches(
    connection: Connection, query: sa.Select[Any], table: sa.Table, trial_ids: Collection[int]
) -> Iterator[Any]:
    """Yield the rows of these trials, in batches of ascending ids."""
    ids = sorted(trial_ids)
    for first in range(0, len(ids), MAX_IDS):
        batch = ids[first : first + MAX_IDS]
        yield from connection.execute(query.where(table.c.trial_id.in_(batch)))


def read_attribute(
    connection: Connection, table: sa.Table, key: str, trial_ids: Collection[int]
) -> dict[int, str]:
    """Read an attribute of trials as it is stored, by trial id; those that lack it are absent."""
    query = sa.select(table.c.trial_id, table.c.value_json).where(table.c.key == key)
    return dict(select_in_batches(connection, query, table, trial_ids))


def list_columns(table: sa.Table) -> list[sa.Column[Any]]:
    """Return the columns of a table, that of the study or trial first, without its own id."""
    owners = ("study_id", "trial_id")
    others = [
        column for column in table.columns if not (column.primary_key or column.name in owners)
    ]
    return [next(table.c[name] for name in owners if name in table.c), *others]


# ------------------------------------------------------------------ rows


def utcnow() -> datetime:
    """Return the time as Optuna stores it: UTC, naive."""
    return datetime.now(UTC).replace(tzinfo=None)


def execute_many(
    connection: Connection,
    statement: sa.Delete | sa.Update | sa.Insert,
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Execute a statement once for each row of parameters, possibly for none."""
    if rows:
        connection.execute(statement, rows)


def insert(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, possibly none."""
    execute_many(connection, sa.insert(table), rows)


def update_trials(connection: Connection, values: Mapping[int, Mapping[str, Any]]) -> None:
    """Set values of trials' rows by trial id, the same columns for each."""
    statement = sa.update(TRIALS).where(TRIALS.c.trial_id == sa.bindparam("old_trial_id"))
    rows = [{"old_trial_id": trial_id, **row} for trial_id, row in values.items()]
    execute_many(connection, statement, rows)


def delete_rows(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Delete the rows that have given values in some columns, the same columns for each."""
    columns = rows[0] if rows else ()
    is_given = [table.c[name] == sa.bindparam(name) for name in columns]
    execute_many(connection, sa.delete(table).where(*is_given), rows)


def delete_attrs(
    connection: Connection, table: sa.Table, trial_keys: Sequence[tuple[int, str]]
) -> None:
    """Delete attributes of trials, given as pairs of trial id and key."""
    delete_rows(
        connection, table, [{"trial_id": trial_id, "key": key} for trial_id, key in trial_keys]
    )


def write_attrs(
    connection: Connection, table: sa.Table, attributes: Mapping[int, Mapping[str, Any]]
) -> None:
    """Write attributes by id of their study or trial, in place of those of the same keys."""
    owner = list_columns(table)[0].name
    old = [
        {owner: owner_id, "key": key} for owner_id, values in attributes.items() for key in values
    ]
    delete_rows(connection, table, old)
    rows = [
        {owner: owner_id, "key": key, "value_json": json.dumps(value)}
        for owner_id, values in attributes.items()
        for key, value in values.items()
    ]
    insert(connection, table, rows)


def write_user_attrs(connection: Connection, attributes: Mapping[int, Mapping[str, Any]]) -> None:
    """Write user attributes by trial id; long results become system attributes."""
    for table, is_system in ((TRIAL_USER_ATTRS, False), (TRIAL_SYSTEM_ATTRS, True)):
        written = {
            trial_id: {
                key: value for key, value in values.items() if (key in LONG_RESULTS) == is_system
            }
            for trial_id, values in attributes.items()
        }
        write_attrs(connection, table, written)


def read_study_attrs(
    connection: Connection, table: sa.Table, study_id: int, keys: Collection[str] | None = None
) -> dict[str, str]:
    """Read attributes of a study as they are stored; all of them without keys."""
    query = sa.select(table.c.key, table.c.value_json).where(table.c.study_id == study_id)
    if keys is not None:
        query = query.where(table.c.key.in_(keys))
    return {str(key): stored for key, stored in connection.execute(query)}


def write_curves(
    connection: Connection, curves: Mapping[int, Mapping[int, float]], replaced: Collection[int]
) -> None:
    """Write intermediate values by trial id and step, in place of those of the same steps.

    Of the trials ``replaced`` they replace all stored values.
    """
    delete_rows(connection, INTERMEDIATE_VALUES, [{"trial_id": trial_id} for trial_id in replaced])
    old = [
        {"trial_id": trial_id, "step": step} for trial_id, curve in curves.items() for step in curve
    ]
    delete_rows(connection, INTERMEDIATE_VALUES, old)
    names = [column.name for column in list_columns(INTERMEDIATE_VALUES)]
    rows = [dict(zip(names, point, strict=True)) for point in _list_points(curves)]
    insert(connection, INTERMEDIATE_VALUES, rows)


def _list_points(curves: Mapping[int, Mapping[int, float]]) -> Iterator[tuple[Any, ...]]:
    for trial_id, curve in curves.items():
        for step, value in curve.items():
            if math.isfinite(value):  # Optuna's function takes a microsecond
                yield trial_id, step, value, "FINITE"
            else:
                stored, kind = intermediate_value_to_stored_repr(value)
                yield trial_id, step, stored, kind.name


# ------------------------------------------------------------------ studies and trials


def insert_study(connection: Connection, study: StoredStudy) -> None:
    """Store a study with its trials.

    A number that no trial has becomes a failed trial that is not of the grid: Optuna numbers the
    trials of a study without gaps.

    Raises:
        StorageError: if the database refuses a row.
    """
    query = sa.insert(STUDIES).values(study_name=study.name).returning(STUDIES.c.study_id)
    study_id: int = connection.execute(query).scalar_one()
    row = {"study_id": study_id, "objective": 0, "direction": study.direction}
    insert(connection, STUDY_DIRECTIONS, [row])
    write_attrs(connection, STUDY_USER_ATTRS, {study_id: study.attributes})
    metric = {METRIC_NAMES: [study.metric]} if study.metric else {}
    write_attrs(connection, STUDY_SYSTEM_ATTRS, {study_id: {**study.system_attributes, **metric}})
    insert_trials(connection, study_id, study.distributions, _fill_gaps(study.trials))


def _fill_gaps(trials: Iterable[StoredTrial]) -> Iterator[StoredTrial]:
    count = 0
    for trial in trials:
        for _ in range(count, trial.number):
            yield StoredTrial(state=TrialState.FAIL, is_grid=False)
        yield trial
        count = trial.number + 1


def insert_trials(
    connection: Connection,
    study_id: int,
    distributions: Mapping[str, BaseDistribution],
    trials: Iterable[StoredTrial],
) -> None:
    """Append trials to a study, with everything that they have, in the order of their new numbers.

    Raises:
        StorageError: if the database refuses one.
    """
    query = sa.select(sa.func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id)
    first = connection.scalar(query) or 0
    texts = {
        name: distribution_to_json(distribution) for name, distribution in distributions.items()
    }
    remaining = iter(trials)
    while batch := list(itertools.islice(remaining, _BATCH)):
        rows = [
            {
                "study_id": study_id,
                "number": number,
                "state": trial.state,
                "datetime_start": trial.started,
                "datetime_complete": trial.completed,
            }
            for number, trial in enumerate(batch, first)
        ]
        insert(connection, TRIALS, rows)
        ids = select_trial_ids(study_id).where(TRIALS.c.number >= first).order_by(TRIALS.c.number)
        created: dict[int, StoredTrial] = dict(zip(connection.scalars(ids), batch, strict=True))
        written: dict[sa.Table, list[tuple[Any, ...]]] = {table: [] for table in TRIAL_TABLES}
        for trial_id, trial in created.items():
            for name, value in trial.params.items():
                internal = float(distributions[name].to_internal_repr(value))
                written[TRIAL_PARAMS].append((trial_id, name, internal, texts[name]))
            for key, value in trial.attributes.items():
                written[TRIAL_USER_ATTRS].append((trial_id, key, json.dumps(value)))
            for key, value in _list_system_attrs(trial).items():
                written[TRIAL_SYSTEM_ATTRS].append((trial_id, key, json.dumps(value)))
            own = {} if trial.value is None else {0: trial.value}
            for objective, value in (trial.values or own).items():
                stored, kind = value_to_stored_repr(value)
                written[TRIAL_VALUES].append((trial_id, objective, stored, kind.name))
        points = _list_points({trial_id: trial.curve for trial_id, trial in created.items()})
        for table, values in (written | {INTERMEDIATE_VALUES: points}).items():
            _insert_rows(connection, table, values)
        first += len(batch)


def _list_system_attrs(trial: StoredTrial) -> dict[str, Any]:
    """Return the system attributes of a trial, among them what marks it as a grid trial."""
    mark = {IS_GRID_TRIAL: True} if trial.is_grid else {}
    audit = {} if trial.audit is None else {AUDIT: trial.audit.model_dump()}
    return {**mark, **audit, **trial.system_attributes}


def _insert_rows(target: Connection, table: sa.Table, rows: Iterable[Sequence[Any]]) -> None:
    """Insert values of :func:`list_columns`.

    This uses ``COPY`` on PostgreSQL, and one prepared statement on SQLite.
    """
    columns = ", ".join(column.name for column in list_columns(table))
    places = ", ".join("?" * len(list_columns(table)))
    cursor: Any = target.connection.cursor()
    try:
        if target.dialect.name == "sqlite":
            statement = f"INSERT INTO {table.name} ({columns}) VALUES ({places})"
            cursor.executemany(statement, rows)
        else:
            with cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
    except target.dialect.loaded_dbapi.Error as error:
        summary = str(error).partition("\n")[0]
        raise StorageError(
            f"rows of {table.name} cannot be written to {redact(target.engine.url)} ({summary}): "
            "nothing was written"
        ) from error
