"""Reads a study's grid trials, again only those that may have changed."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import sqlalchemy as sa
from optuna.trial import TrialState

from studies.attributes import PAUSED
from studies.storage.damage import READ_ERRORS, parse_state, raw
from studies.storage.queries import TrialRow, read_trials
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trial_rows import TRIAL_SYSTEM_ATTRS, TRIALS

_MAX_IDS = 500
"""Number of changed trials from which all are read: a statement names no more."""


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


class TrialReader:
    """Reads the grid trials of a study.

    Trials that ended or paused before the last call are not read again, nor are those that have
    waited since: the retries of one that was claimed and requeued between two calls stay the old
    ones. Running and audited trials are always read.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
    """

    def __init__(self, storage: LeasedRDBStorage, study_id: int) -> None:
        self._storage = storage
        self._study_id = study_id
        self._stamps: dict[int, TrialStamp] = {}
        self._trials: dict[int, TrialRow] = {}

    def read(self) -> list[TrialRow]:
        """Return the trials, by number; those that were not read again are the same objects."""
        with self._storage.reading() as connection:
            found = connection.execute(select_stamps(self._study_id)).all()
        ids = {number: trial_id for trial_id, number, *_ in found}
        stamps = {}
        for trial_id, _, *columns in found:
            with suppress(*READ_ERRORS):  # a damaged trial is left out, as by read_trials
                stamps[trial_id] = parse_stamp(columns)
        changed = [trial_id for trial_id in stamps if self._may_differ(trial_id, stamps[trial_id])]
        selected = changed if len(changed) <= _MAX_IDS else None
        read = read_trials(self._storage, self._study_id, selected)
        trials = self._trials | {ids[row.number]: row for row in read if row.number in ids}
        self._trials = {trial_id: trials[trial_id] for trial_id in stamps if trial_id in trials}
        # A trial that has changed since its stamp was read has another one next time.
        self._stamps = stamps
        return list(self._trials.values())

    def _may_differ(self, trial_id: int, stamp: TrialStamp) -> bool:
        trial = self._trials.get(trial_id)
        return (
            self._stamps.get(trial_id) != stamp
            or stamp.state is TrialState.RUNNING
            or (trial is not None and trial.is_audited)
        )
