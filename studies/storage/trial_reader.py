"""Reads a study's grid trials, again only those that may have changed."""

from contextlib import suppress

from optuna.trial import TrialState

from studies.storage.damage import READ_ERRORS
from studies.storage.queries import TrialRow, read_trials
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trial_stamps import TrialStamp, parse_stamp, select_stamps

_MAX_IDS = 500
"""Number of changed trials from which all are read: a statement names no more."""


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
