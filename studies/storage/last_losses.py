"""Last log points of running trials, for the progress of a search."""

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
