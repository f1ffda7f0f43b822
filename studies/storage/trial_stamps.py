"""Stamps of trials, which tell whether a trial may have changed since it was read."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from optuna.trial import TrialState

from studies.attributes import PAUSED
from studies.storage.damage import parse_state, raw
from studies.storage.trial_rows import TRIAL_SYSTEM_ATTRS, TRIALS


class TrialStamp(NamedTuple):
    """What changes whenever a worker has written a trial's curve and left the trial.

    A curve is written under a claim, which sets the start; a pause and the end have their times.
    """

    state: TrialState
    started: Any
    completed: Any
    paused_since: Any

    @property
    def is_paused(self) -> bool:
        """Whether the trial waits for the pruner to resume it."""
        return self.state is TrialState.WAITING and self.paused_since is not None

    @property
    def is_settled(self) -> bool:
        """Whether an equal stamp means an equal curve.

        That of a running trial grows. One that was requeued has no start, as before it ran.
        """
        return self.is_paused or self.state.is_finished()


def parse_stamp(columns: Sequence[Any]) -> TrialStamp:
    """Parse the columns of a stamp, as :func:`select_stamps` selects them.

    Raises:
        TypeError, ValueError: if the state is none.
    """
    state, *times = columns
    return TrialStamp(parse_state(state), *times)


def select_stamps(study_id: int) -> sa.Select[Any]:
    """Return the query for (trial id, number, *stamp) of all trials, by number."""
    since = TRIAL_SYSTEM_ATTRS.c
    is_since = (since.trial_id == TRIALS.c.trial_id) & (since.key == PAUSED)
    return (
        sa.select(
            TRIALS.c.trial_id,
            raw(TRIALS.c.number),
            raw(TRIALS.c.state),
            raw(TRIALS.c.datetime_start),  # compared only, not parsed
            raw(TRIALS.c.datetime_complete),
            raw(since.value_json),
        )
        .outerjoin(TRIAL_SYSTEM_ATTRS, is_since)
        .where(TRIALS.c.study_id == study_id)
        .order_by(TRIALS.c.number)
    )
