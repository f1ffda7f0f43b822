"""A study's points and curves in a few plain queries: a tenth of what Optuna's objects cost."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import TrialState

from studies.records import LANES, PAUSED
from studies.storage import Storage
from studies.tables import (
    ATTRIBUTES,
    CURVE,
    PARAMS,
    SYSTEM,
    TRIALS,
    VALUES,
    marked,
    marked_as_point,
)


@dataclass
class StoredPoint:
    """A point of a study as it is stored, its curve apart.

    Attributes:
        number: of its trial.
        state: of its trial.
        params: a value for each parameter.
        attributes: its user attributes.
        value: of a complete one.
        started: when its last worker claimed it, UTC.
        completed: when it was finished, UTC.
        is_paused: whether it waits until the pruner wants it.
    """

    number: int
    state: TrialState
    params: dict[str, Any]
    attributes: dict[str, Any]
    value: float | None = None
    started: datetime | None = None
    completed: datetime | None = None
    is_paused: bool = False


def read_points(storage: Storage, study_id: int) -> list[StoredPoint]:
    """Read all points of a study, by number, without their curves."""
    own = _points_of(study_id)
    with storage.engine.begin() as connection:
        points = {
            row.trial_id: StoredPoint(
                row.number,
                row.state,
                {},
                {},
                started=row.datetime_start,
                completed=row.datetime_complete,
                is_paused=row.state is TrialState.WAITING and bool(row.is_paused),
            )
            for row in connection.execute(
                sa.select(TRIALS, marked(PAUSED).label("is_paused"))
                .where(TRIALS.c.study_id == study_id, marked_as_point())
                .order_by(TRIALS.c.number)
            )
        }
        for table, columns in (
            (PARAMS, (PARAMS.c.param_name, PARAMS.c.param_value, PARAMS.c.distribution_json)),
            (ATTRIBUTES, (ATTRIBUTES.c.key, ATTRIBUTES.c.value_json)),
            (VALUES, (VALUES.c.value,)),
        ):
            query = sa.select(table.c.trial_id, *columns).where(table.c.trial_id.in_(own))
            for trial_id, *found in connection.execute(query):
                point = points.get(trial_id)
                if point is None:  # added between two of these queries
                    continue
                if table is PARAMS:
                    name, stored, distribution = found
                    point.params[name] = _distribution(distribution).to_external_repr(stored)
                elif table is ATTRIBUTES:
                    key, stored = found
                    point.attributes[key] = json.loads(stored)
                elif point.state is TrialState.COMPLETE:
                    (point.value,) = found
    return list(points.values())


def read_curves(
    storage: Storage, study_id: int, numbers: Collection[int] | None = None
) -> list[tuple[int, int, float]]:
    """Read the points' intermediate values.

    Args:
        storage: that holds the study.
        study_id: of the study.
        numbers: of the trials; None for all.

    Returns:
        (number, step, value) by number and step; a value that is not finite is NaN.
    """
    query = (
        sa.select(
            TRIALS.c.number,
            CURVE.c.step,
            CURVE.c.intermediate_value,
            CURVE.c.intermediate_value_type,
        )
        .join(TRIALS, TRIALS.c.trial_id == CURVE.c.trial_id)
        .where(TRIALS.c.study_id == study_id, marked_as_point())
        .order_by(TRIALS.c.number, CURVE.c.step)
    )
    if numbers is not None:
        query = query.where(TRIALS.c.number.in_(numbers))
    finite = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
    with storage.engine.begin() as connection:
        return [
            (number, step, value if kind is finite else float("nan"))
            for number, step, value, kind in connection.execute(query)
        ]


def read_lanes(storage: Storage, study_id: int, split: str) -> dict[int, list[float]]:
    """Read the points' bits per character on each lane of a held-out split, by trial number.

    Args:
        storage: that holds the study.
        study_id: of the study.
        split: ``validation`` or ``test``.
    """
    query = (
        sa.select(TRIALS.c.number, SYSTEM.c.value_json)
        .join(TRIALS, TRIALS.c.trial_id == SYSTEM.c.trial_id)
        .where(TRIALS.c.study_id == study_id, SYSTEM.c.key == LANES[split])
        .order_by(TRIALS.c.number)
    )
    with storage.engine.begin() as connection:
        return {number: json.loads(stored) for number, stored in connection.execute(query)}


def _points_of(study_id: int) -> sa.Select[tuple[int]]:
    return sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)


@cache
def _distribution(stored: str) -> CategoricalDistribution:
    distribution = json_to_distribution(stored)
    assert isinstance(distribution, CategoricalDistribution)
    return distribution
