"""Queries for training curves: all points, those of some trials or at one step, and their ends."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, groupby
from math import isfinite, nan
from operator import itemgetter
from typing import Any, NamedTuple

import sqlalchemy as sa
from optuna.trial import TrialState

from studies.storage.damage import (
    READ_ERRORS,
    DamagedTrials,
    check_params,
    name_trial,
    parse_integer,
    parse_value,
    raw,
    reports_damage,
)
from studies.storage.queries import read_params
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trial_rows import INTERMEDIATE_VALUES, TRIALS, is_grid_trial

Point = tuple[int, int, float]
"""Number of a trial, step and intermediate value."""

_BATCH = 10_000
"""Rows that a stream fetches at once."""


class CurveEnd(NamedTuple):
    """Length of a trial's curve.

    Attributes:
        number: number of the trial.
        points: number of its log points, 1 or more.
        last_step: step of the last one.
    """

    number: int
    points: int
    last_step: int


@reports_damage
def read_curves(
    storage: LeasedRDBStorage, study_id: int, numbers: Collection[int] | None = None
) -> list[Point]:
    """Read the intermediate values of grid trials.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
        numbers: numbers of the trials; None for all.

    Returns:
        Tuples (number, step, value), ordered by number and step; values that are not finite are
        NaN. A damaged curve is left out with a warning.
    """
    query = _select_points(study_id)
    if numbers is not None:
        query = query.where(TRIALS.c.number.in_(numbers))
    damaged = DamagedTrials()
    with storage.reading() as connection:
        curves = _parse_curves(connection.execute(query), damaged)
        points = list(chain.from_iterable(curves))
    damaged.report(storage, study_id)
    return points


def stream_curves(storage: LeasedRDBStorage, study_id: int) -> Iterator[list[Point]]:
    """Yield the points of one trial after the other that :func:`read_curves` returns.

    Few of them are in memory at a time.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
    """
    damaged = DamagedTrials()
    with storage.snapshot() as connection:
        streamed = connection.execution_options(yield_per=_BATCH)
        yield from _parse_curves(streamed.execute(_select_points(study_id)), damaged)
    damaged.report(storage, study_id)


@reports_damage
def read_curve_ends(storage: LeasedRDBStorage, study_id: int) -> list[CurveEnd]:
    """Read the length of the curve of each grid trial that has one, by number.

    The database counts the points in its index and returns a row for each trial. A damaged one is
    left out: :func:`read_curves` warns of it.
    """
    of_trial = INTERMEDIATE_VALUES.c.trial_id == TRIALS.c.trial_id
    points, last = (
        sa.select(what).where(of_trial).correlate(TRIALS).scalar_subquery()
        for what in (sa.func.count(), sa.func.max(raw(INTERMEDIATE_VALUES.c.step)))
    )
    query = (
        sa.select(raw(TRIALS.c.number), points, last)
        .where(TRIALS.c.study_id == study_id, is_grid_trial())
        .order_by(TRIALS.c.number)
    )
    ends = []
    with storage.reading() as connection:
        for number, count, step in connection.execute(query):
            with suppress(*READ_ERRORS):
                if count:
                    last_step = parse_integer(step, "step")
                    ends.append(CurveEnd(parse_integer(number, "number"), count, last_step))
    return ends


@reports_damage
def read_steps(storage: LeasedRDBStorage, study_id: int) -> list[int]:
    """Read the steps at which the grid trials of a study have log points, in ascending order."""
    query = (
        sa.select(raw(INTERMEDIATE_VALUES.c.step))
        .join(TRIALS, TRIALS.c.trial_id == INTERMEDIATE_VALUES.c.trial_id)
        .where(TRIALS.c.study_id == study_id, is_grid_trial())
        .distinct()
    )
    with storage.reading() as connection:
        found = connection.scalars(query).all()
    return sorted(step for step in found if isinstance(step, int))


@reports_damage
def read_losses_at(storage: LeasedRDBStorage, study_id: int, step: int) -> dict[int, float]:
    """Read the intermediate value at one step of each grid trial that has reached it, by number."""
    query = _select_points(study_id).where(INTERMEDIATE_VALUES.c.step == step)
    with storage.reading() as connection:
        curves = _parse_curves(connection.execute(query), DamagedTrials())
        return {number: value for points in curves for number, _, value in points}


def _select_points(study_id: int) -> sa.Select[Any]:
    return (
        sa.select(
            raw(TRIALS.c.number),
            raw(INTERMEDIATE_VALUES.c.step),
            raw(INTERMEDIATE_VALUES.c.intermediate_value),
            raw(INTERMEDIATE_VALUES.c.intermediate_value_type),
        )
        .join(TRIALS, TRIALS.c.trial_id == INTERMEDIATE_VALUES.c.trial_id)
        .where(TRIALS.c.study_id == study_id, is_grid_trial())
        .order_by(TRIALS.c.number, INTERMEDIATE_VALUES.c.step)
    )


def _parse_curves(rows: Iterable[Sequence[Any]], damaged: DamagedTrials) -> Iterator[list[Point]]:
    """Yield the points of each trial; add those that cannot be read to the damaged ones."""
    for number, of_trial in groupby(rows, key=itemgetter(0)):
        if not isinstance(number, int):  # the trial is damaged, not its curve
            continue
        points: list[Point] = []
        try:
            for _, step, value, kind in of_trial:
                loss = parse_value(value, kind, f"loss at step {step}")
                points.append((number, parse_integer(step, "step"), loss))
        except READ_ERRORS as error:
            damaged.add(number, error)
            continue
        yield [(number, step, loss if isfinite(loss) else nan) for number, step, loss in points]


class LastLoss(NamedTuple):
    """Last log point of a running trial.

    Attributes:
        number: number of the trial.
        params: its parameters.
        step: step of the log point; 0 before the first.
        loss: its loss; None before the first.
    """

    number: int
    params: dict[str, Any]
    step: int
    loss: float | None


@reports_damage
def read_last_losses(storage: LeasedRDBStorage, study_id: int) -> list[LastLoss]:
    """Read the last log points of the grid trials that are running now, by number.

    A damaged trial is left out with a warning.
    """
    damaged = DamagedTrials()
    found = []
    with storage.reading() as connection:
        rows = connection.execute(_select_last_points(study_id)).all()
        params = read_params(storage, study_id, [trial_id for trial_id, *_ in rows])
    for trial_id, number, step, loss, kind in rows:
        if number not in params:  # reported
            continue
        try:
            check_params(params[number])
            last = LastLoss(parse_integer(number, "number"), params[number], 0, None)
            if step is not None:
                last = last._replace(
                    step=parse_integer(step, "step"), loss=parse_value(loss, kind, "loss")
                )
            found.append(last)
        except READ_ERRORS as error:
            damaged.add(name_trial(trial_id, number), error)
    damaged.report(storage, study_id)
    return found


def _select_last_points(study_id: int) -> sa.Select[Any]:
    """Return the query for (trial id, number, step, loss, its type) of the running trials."""
    other = INTERMEDIATE_VALUES.alias()
    last_step = sa.select(sa.func.max(other.c.step)).where(other.c.trial_id == TRIALS.c.trial_id)
    is_last = (INTERMEDIATE_VALUES.c.trial_id == TRIALS.c.trial_id) & (
        INTERMEDIATE_VALUES.c.step == last_step.correlate(TRIALS).scalar_subquery()
    )
    return (
        sa.select(
            TRIALS.c.trial_id,
            raw(TRIALS.c.number),
            raw(INTERMEDIATE_VALUES.c.step),
            raw(INTERMEDIATE_VALUES.c.intermediate_value),
            raw(INTERMEDIATE_VALUES.c.intermediate_value_type),
        )
        .select_from(TRIALS.outerjoin(INTERMEDIATE_VALUES, is_last))
        .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.RUNNING, is_grid_trial())
        .order_by(TRIALS.c.number)
    )
