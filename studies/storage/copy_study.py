"""Copies of a study's rows, within a database or to another, in one transaction at the target.

Rows are streamed: the memory that a copy takes does not grow with the curves. PostgreSQL takes them
by ``COPY``, SQLite by one prepared statement.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from studies.attributes import PUBLISHED, REPORT_CLAIM
from studies.errors import StorageError, StudyExistsError
from studies.storage.bulk_insert import insert_rows, list_columns
from studies.storage.damage import name_trial, parse_state, parse_time, raw, reading
from studies.storage.held_trials import find_study, require_unheld
from studies.storage.study_changes import (
    ARTIFACT_PREFIX,
    STUDY_TABLES,
    TRIAL_TABLES,
    outdate_publication,
)
from studies.storage.trial_rows import (
    INTERMEDIATE_VALUES,
    STUDIES,
    STUDY_SYSTEM_ATTRS,
    STUDY_USER_ATTRS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_USER_ATTRS,
    TRIALS,
)

_STREAMED = {"yield_per": 5000}
"""Have a driver read that many rows at a time."""

_OF_TRIAL = re.compile(r"dashboard:(?:artifacts:)?(\d+):")
"""Keys of a study's system attributes that contain the id of a trial: its note and its files."""

_COPY_LOCK = 0x524E4F  # arbitrary key of a PostgreSQL advisory lock

Fingerprint = tuple[Any, ...]
"""What changes when anything is written to the trials of a study."""


@dataclass(frozen=True)
class StudyCopy:
    """A copy of a study to make.

    Attributes:
        source: name of the study.
        name: name of the copy.
        folder: artifact folder of the copy.
        artifact_ids: names of the files of the copy by those of the study.
    """

    source: str
    name: str
    folder: str
    artifact_ids: Mapping[str, str] = field(default_factory=dict)


def read_fingerprint(connection: Connection, name: str) -> Fingerprint:
    """Read what changes when anything is written to the trials of a study.

    Raises:
        StudyNotFoundError: if the study does not exist.
        StudyHeldError: if workers hold trials of it.
    """
    study_id = find_study(connection, name)
    require_unheld(connection, name, study_id)
    times = map(raw, (TRIALS.c.datetime_start, TRIALS.c.datetime_complete))
    states = sa.select(raw(TRIALS.c.state), sa.func.count(), *map(sa.func.max, times))
    states = states.where(TRIALS.c.study_id == study_id).group_by(TRIALS.c.state)
    rows: list[Any] = sorted(map(repr, connection.execute(states)))
    for table in (TRIAL_USER_ATTRS, TRIAL_SYSTEM_ATTRS):
        lengths = sa.func.sum(sa.func.length(table.c.value_json))
        query = sa.select(sa.func.count(), lengths).where(_of_trials(table, study_id))
        rows += map(tuple, connection.execute(query))
    curves = sa.select(sa.func.count()).where(_of_trials(INTERMEDIATE_VALUES, study_id))
    return (study_id, *rows, connection.scalar(curves))


def lock_copies(connection: Connection) -> None:
    """Have other processes that copy to the same database wait until the transaction ends."""
    if connection.dialect.name != "sqlite":  # where one process writes at a time
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_COPY_LOCK)))


def require_free_name(connection: Connection, name: str, option: str = "--as") -> None:
    """Check that no study has a name; ``option`` is that of the command which names another.

    Raises:
        StudyExistsError: if one has.
    """
    if connection.scalar(sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)):
        raise StudyExistsError(
            f"study {name!r} exists there already: expected another name ({option})"
        )


def copy_rows(source: Connection, target: Connection, copy: StudyCopy) -> dict[str, int]:
    """Copy a study's rows.

    Args:
        source: connection with a snapshot of the storage that holds the study.
        target: connection in a writing transaction.
        copy: the copy to make.

    Returns:
        The number of rows by table.

    Raises:
        StudyExistsError: if the name is taken.
        StorageError: if the copy does not have as many rows as the study.
    """
    require_free_name(target, copy.name)
    study_id = find_study(source, copy.source)
    (new_id,) = target.execute(
        sa.insert(STUDIES).values(study_name=copy.name).returning(STUDIES.c.study_id)
    ).one()
    trial_ids = _copy_trials(source, target, study_id, new_id)
    counts = {TRIALS.name: len(trial_ids)}
    for table in STUDY_TABLES:
        rename = _study_renamer(table, copy, trial_ids)
        rows = (
            (new_id, *renamed)
            for _, *row in _stream(source, table, table.c.study_id == study_id)
            if (renamed := rename(row)) is not None
        )
        counts[table.name] = insert_rows(target, table, rows)
    for table in TRIAL_TABLES:
        rename = _trial_renamer(table, copy)
        rows = (
            (trial_ids[trial_id], *rename(row))
            for trial_id, *row in _stream(source, table, _of_trials(table, study_id))
        )
        counts[table.name] = insert_rows(target, table, rows)
    if copy.name != copy.source:
        outdate_publication(target, new_id)
    _verify(target, new_id, counts)
    return counts


def _copy_trials(
    source: Connection, target: Connection, study_id: int, new_id: int
) -> dict[int, int]:
    """Copy the rows of trials; return the ids of the copies by the ids of the trials."""
    columns = (TRIALS.c.state, TRIALS.c.datetime_start, TRIALS.c.datetime_complete)
    query = sa.select(TRIALS.c.trial_id, raw(TRIALS.c.number), *map(raw, columns))
    query = query.where(TRIALS.c.study_id == study_id).order_by(TRIALS.c.trial_id)
    statement = sa.insert(TRIALS).returning(TRIALS.c.trial_id, sort_by_parameter_order=True)
    ids: dict[int, int] = {}
    for rows in source.execute(query, execution_options=_STREAMED).partitions():
        values = []
        for trial_id, number, state, *times in rows:
            with reading(f"trial {name_trial(trial_id, number)}"):
                started, completed = map(parse_time, times)
                row = {"study_id": new_id, "number": number, "state": parse_state(state)}
                values.append(row | {"datetime_start": started, "datetime_complete": completed})
        copies = target.scalars(statement, values)
        ids.update(zip((row[0] for row in rows), copies, strict=True))
    return ids


def _stream(
    source: Connection, table: sa.Table, condition: sa.ColumnElement[bool]
) -> Iterator[Sequence[Any]]:
    """Yield the rows of a table, without its own id, as the driver returns them."""
    query = sa.select(*map(raw, list_columns(table))).where(condition)
    for rows in source.execute(query, execution_options=_STREAMED).partitions():
        yield from rows


def _of_trials(table: sa.Table, study_id: int) -> sa.ColumnElement[bool]:
    ids = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    return table.c.trial_id.in_(ids)


def _study_renamer(
    table: sa.Table, copy: StudyCopy, trial_ids: Mapping[int, int]
) -> Callable[[Sequence[Any]], Sequence[Any] | None]:
    """Return a function that renames what a row of a study names; it drops a row by None."""

    def rename(row: Sequence[Any]) -> Sequence[Any] | None:
        if table not in (STUDY_USER_ATTRS, STUDY_SYSTEM_ATTRS):
            return row
        key, value = row
        if table is STUDY_USER_ATTRS:
            return key, json.dumps(copy.folder) if key == "artifact_folder" else value
        if key == REPORT_CLAIM:  # the copy has none yet
            return None
        if match := _OF_TRIAL.match(key):
            old = int(match[1])
            key = f"{key[: match.start(1)]}{trial_ids.get(old, old)}{key[match.end(1) :]}"
        if key == PUBLISHED or ARTIFACT_PREFIX in key:
            for before, after in copy.artifact_ids.items():
                key, value = key.replace(before, after), value.replace(before, after)
        return key, value

    return rename


def _trial_renamer(table: sa.Table, copy: StudyCopy) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Return a function that renames the files that a row of a trial names."""

    def rename(row: Sequence[Any]) -> Sequence[Any]:
        key, value = row
        if key.startswith(ARTIFACT_PREFIX):
            before = key.removeprefix(ARTIFACT_PREFIX)
            after = copy.artifact_ids.get(before, before)
            return key.replace(before, after), value.replace(before, after)
        return row

    return rename if table is TRIAL_SYSTEM_ATTRS else lambda row: row


def _verify(target: Connection, study_id: int, counts: Mapping[str, int]) -> None:
    """Check that a copy has as many rows as were read."""
    for table in (TRIALS, *STUDY_TABLES, *TRIAL_TABLES):
        is_copy = (
            _of_trials(table, study_id) if table in TRIAL_TABLES else table.c.study_id == study_id
        )
        stored = target.scalar(sa.select(sa.func.count()).select_from(table).where(is_copy))
        if stored != counts[table.name]:
            raise StorageError(
                f"the copy has {stored:,} rows in {table.name}, expected {counts[table.name]:,}: "
                "nothing was written; copy again"
            )
