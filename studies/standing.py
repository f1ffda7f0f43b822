"""Where the points of a study stand, in the few numbers that a pruner looks at."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa
from optuna.trial import TrialState

from studies.records import PAUSED
from studies.storage import Storage
from studies.tables import CURVE, TRIALS, VALUES, marked, marked_as_point


class Rung(Protocol):
    """A step at which points are looked at; their loss there is a mean over the last log points."""

    @property
    def step(self) -> int:
        """Of the rung, the last of those log points."""

    @property
    def after(self) -> int:
        """The step after which the first of them comes."""


@dataclass
class StandingPoint:
    """Where a point stands.

    Attributes:
        trial_id: of its trial.
        number: of its trial.
        state: of its trial.
        is_paused: whether it waits until the pruner wants it.
        value: of a complete one; else NaN.
        losses: at each rung; NaN where it has not come to it.
    """

    trial_id: int
    number: int
    state: TrialState
    is_paused: bool
    value: float
    losses: list[float]


def read_standing(storage: Storage, study_id: int, rungs: Sequence[Rung]) -> list[StandingPoint]:
    """Read where a study's points stand, by number, as of one instant.

    Args:
        storage: that holds the study.
        study_id: of the study.
        rungs: in their order; what is averaged for one ends before what is for the next.
    """
    points = (
        sa.select(
            TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state, marked(PAUSED), VALUES.c.value
        )
        .outerjoin(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, marked_as_point())
        .order_by(TRIALS.c.number)
    )
    with storage.snapshot() as connection:
        found = {
            trial_id: StandingPoint(
                trial_id,
                number,
                state,
                state is TrialState.WAITING and bool(is_paused),
                math.nan if value is None or state is not TrialState.COMPLETE else value,
                [math.nan] * len(rungs),
            )
            for trial_id, number, state, is_paused, value in connection.execute(points)
        }
        if rungs:
            for trial_id, place, loss, last in connection.execute(_losses(study_id, rungs)):
                if trial_id in found and last == rungs[place].step and loss is not None:
                    found[trial_id].losses[place] = loss
    for point in found.values():
        _end_at_the_first_gap(point.losses)
    return list(found.values())


def _losses(study_id: int, rungs: Iterable[Rung]) -> sa.Select[Any]:
    """Return the query for each point's loss at each rung, and the last step that is in it."""
    steps = [(CURVE.c.step > rung.after) & (CURVE.c.step <= rung.step) for rung in rungs]
    place = sa.case(*((step, number) for number, step in enumerate(steps))).label("place")
    own = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    return (
        sa.select(
            CURVE.c.trial_id,
            place,
            sa.func.avg(CURVE.c.intermediate_value),
            sa.func.max(CURVE.c.step),
        )
        .where(CURVE.c.trial_id.in_(own), sa.or_(*steps))
        .group_by(CURVE.c.trial_id, place)
    )


def _end_at_the_first_gap(losses: list[float]) -> None:
    """Take a curve for no longer than it is without a gap."""
    for place in range(1, len(losses)):
        if math.isnan(losses[place - 1]):
            losses[place] = math.nan
