"""Storage of a study whose trials are finished already, in one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import FAILURE, IMPORTED, IS_GRID_TRIAL, Failure
from studies.errors import StudyExistsError
from studies.storage.backup import merge_log
from studies.storage.create_study import insert_study
from studies.storage.engine import redact
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trial_rows import (
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_USER_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    attr_row,
    insert,
    write_curves,
)
from studies.text import to_line


@dataclass(frozen=True)
class FinishedTrial:
    """A finished trial that another program has recorded.

    Attributes:
        params: value of each parameter that it has.
        value: its value; None unless it is complete.
        state: ``COMPLETE``, ``PRUNED`` or ``FAIL``.
        has_diverged: whether it failed because its value is not finite.
        curve: its intermediate values by step.
        started: time of its start, UTC; None if unknown.
        completed: time of its end.
        distributions: distribution of each parameter.
    """

    params: Mapping[str, Any]
    value: float | None
    state: TrialState = TrialState.COMPLETE
    has_diverged: bool = False
    curve: Mapping[int, float] = field(default_factory=dict)
    started: datetime | None = None
    completed: datetime | None = None
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)


def store_results(
    storage: LeasedRDBStorage,
    name: str,
    metric: str,
    direction: StudyDirection,
    attributes: Mapping[str, Any],
    trials: Sequence[FinishedTrial],
) -> None:
    """Store a study with its finished trials, in one transaction.

    Args:
        storage: storage to create it in.
        name: name of the study.
        metric: name of its value.
        direction: whether a lower or a higher value is better.
        attributes: user attributes of the study.
        trials: its trials, in the order of their numbers.

    Raises:
        StudyExistsError: if a study of that name exists, which is left unchanged.
    """
    try:
        with storage.transaction() as connection:
            study_id = insert_study(connection, name, metric, direction, attributes)
            _insert_finished(connection, study_id, trials)
    except sa.exc.IntegrityError as error:
        raise StudyExistsError(
            f"study {to_line(name)!r} exists in {redact(storage.engine.url)} already: choose "
            "another --name, or delete it first"
        ) from error
    merge_log(storage)


def _insert_finished(
    connection: Connection, study_id: int, trials: Sequence[FinishedTrial]
) -> None:
    rows = [
        {
            "study_id": study_id,
            "number": number,
            "state": trial.state,
            "datetime_start": trial.started,
            "datetime_complete": trial.completed,
        }
        for number, trial in enumerate(trials)
    ]
    insert(connection, TRIALS, rows)
    query = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    ids = connection.scalars(query.order_by(TRIALS.c.number)).all()
    created = list(zip(ids, trials, strict=True))
    texts: dict[int, str] = {}  # by identity: a distribution of many values is long

    def to_text(distribution: BaseDistribution) -> str:
        if id(distribution) not in texts:
            texts[id(distribution)] = distribution_to_json(distribution)
        return texts[id(distribution)]

    params = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": trial.distributions[name].to_internal_repr(value),
            "distribution_json": to_text(trial.distributions[name]),
        }
        for trial_id, trial in created
        for name, value in trial.params.items()
    ]
    insert(connection, TRIAL_PARAMS, params)
    values = [
        {
            "trial_id": trial_id,
            "objective": 0,
            "value": trial.value,
            "value_type": models.TrialValueModel.TrialValueType.FINITE,
        }
        for trial_id, trial in created
        if trial.value is not None
    ]
    insert(connection, TRIAL_VALUES, values)
    write_curves(connection, {trial_id: trial.curve for trial_id, trial in created if trial.curve})
    diverged = [
        attr_row("trial_id", trial_id, FAILURE, Failure.DIVERGED)
        for trial_id, trial in created
        if trial.has_diverged
    ]
    insert(connection, TRIAL_USER_ATTRS, diverged)
    marks = [attr_row("trial_id", trial_id, IS_GRID_TRIAL, IMPORTED) for trial_id in ids]
    insert(connection, TRIAL_SYSTEM_ATTRS, marks)
