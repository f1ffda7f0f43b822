"""Optuna's tables, and the few ways in which this package writes them."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from sqlalchemy.engine import Connection

from studies.records import POINT


def _table(model: type[models.BaseModel]) -> sa.Table:
    table = model.__table__
    assert isinstance(table, sa.Table)
    return table


TRIALS = _table(models.TrialModel)
STUDIES = _table(models.StudyModel)
DIRECTIONS = _table(models.StudyDirectionModel)
STUDY_ATTRIBUTES = _table(models.StudyUserAttributeModel)
STUDY_SYSTEM = _table(models.StudySystemAttributeModel)
PARAMS = _table(models.TrialParamModel)
ATTRIBUTES = _table(models.TrialUserAttributeModel)
SYSTEM = _table(models.TrialSystemAttributeModel)
VALUES = _table(models.TrialValueModel)
CURVE = _table(models.TrialIntermediateValueModel)


def insert(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, which may be none."""
    if rows:
        connection.execute(sa.insert(table), rows)


def attribute(column: str, row_id: int, key: str, value: Any) -> dict[str, Any]:
    """Return an attribute's row, which belongs to the study or trial that the column names."""
    return {column: row_id, "key": key, "value_json": json.dumps(value)}


def marked(key: str) -> sa.ColumnElement[bool]:
    """Return the condition that a trial has a system attribute."""
    marks = sa.select(SYSTEM.c.trial_id).where(SYSTEM.c.key == key)
    return sa.exists(marks.where(SYSTEM.c.trial_id == TRIALS.c.trial_id).correlate(TRIALS))


def marked_as_point() -> sa.ColumnElement[bool]:
    """Return the condition that a trial is a point of its study."""
    return marked(POINT)


def without(trial_id: int, table: sa.Table, *keys: str) -> sa.Delete:
    """Return the statement that removes a trial's attributes of these keys."""
    return sa.delete(table).where(table.c.trial_id == trial_id, table.c.key.in_(keys))


def now() -> datetime:
    """Return the time as Optuna stores it: UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)
