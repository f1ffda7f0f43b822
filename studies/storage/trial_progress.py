"""Progress of a study's trials for the pruner, read anew only where it may have changed."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import AUDIT, IS_GRID_TRIAL, PAUSED, AuditState, parse_audit
from studies.storage.damage import (
    READ_ERRORS,
    DamagedTrials,
    name_trial,
    parse_integer,
    reports_damage,
)
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trial_reader import TrialStamp, parse_stamp, select_stamps
from studies.storage.trial_rows import (
    INTERMEDIATE_VALUES,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    has_system_attr,
)

_MAX_IDS = 500
"""Number of trials from which those of the whole study are read: a statement names no more."""


@dataclass(frozen=True)
class Rung:
    """A step at which the pruner compares trials.

    Attributes:
        step: training step of the rung.
        after: start of the averaging window; the rung's loss is the mean over the log points in
            (after, step].
    """

    step: int
    after: int


@dataclass(frozen=True)
class TrialProgress:
    """Progress of a grid trial.

    Attributes:
        trial_id: id of the trial.
        number: number of the trial.
        state: state of the trial.
        is_paused: whether it waits for the pruner to resume it.
        value: value of a complete trial; otherwise NaN.
        losses: loss at each rung; NaN if the trial has not reached it.
        audit: what the pruner has decided about an audited trial; None for any other.
    """

    trial_id: int
    number: int
    state: TrialState
    is_paused: bool
    value: float
    losses: Sequence[float]
    audit: AuditState | None = None


@dataclass(frozen=True)
class _Known:
    """What was read of a study.

    Attributes:
        trial_ids: ids of all its trials, by number.
        stamps: stamp of each grid trial, by id.
        trials: progress of each grid trial, by id.
        audited: ids of the audited trials.
        grid: ids of the grid trials, damaged ones included.
        unnumbered: ids of the paused grid trials whose number is damaged.
    """

    trial_ids: Sequence[int] = ()
    stamps: Mapping[int, TrialStamp] = field(default_factory=dict)
    trials: Mapping[int, TrialProgress] = field(default_factory=dict)
    audited: Collection[int] = ()
    grid: Collection[int] = ()
    unnumbered: Sequence[int] = ()


class ProgressReader:
    """Reads the progress of a study's grid trials.

    The curves of trials that finished or paused before the last call are not read again.

    Args:
        storage: storage that holds the study.
        study_id: id of the study.
        rungs: rungs in ascending order; their ranges of log points do not overlap.
    """

    def __init__(self, storage: LeasedRDBStorage, study_id: int, rungs: Sequence[Rung]) -> None:
        self._storage = storage
        self._study_id = study_id
        self._rungs = rungs
        self._known = _Known()

    def read(self) -> list[TrialProgress]:
        """Return the progress of the trials, by number, from one snapshot."""
        self._known = _read_progress(self._storage, self._study_id, self._rungs, self._known)
        return list(self._known.trials.values())

    @property
    def planned(self) -> int:
        """Number of grid trials when they were last read, damaged ones included."""
        return len(self._known.grid)

    @property
    def unnumbered(self) -> Sequence[int]:
        """Ids of the paused trials whose number is damaged; they are not among the trials."""
        return self._known.unnumbered


@reports_damage
def _read_progress(
    storage: LeasedRDBStorage, study_id: int, rungs: Sequence[Rung], known: _Known
) -> _Known:
    damaged = DamagedTrials()
    with storage.snapshot() as connection:
        numbers: dict[int, int] = {}
        stamps: dict[int, TrialStamp] = {}
        unnumbered: list[int] = []
        for trial_id, number, *columns in connection.execute(select_stamps(study_id)):
            try:
                stamp = parse_stamp(columns)
                if stamp.is_paused and not isinstance(number, int):
                    unnumbered.append(trial_id)
                numbers[trial_id] = parse_integer(number, "number")
                stamps[trial_id] = stamp
            except READ_ERRORS as error:
                damaged.add(name_trial(trial_id, number), error)
        trial_ids = list(numbers)
        if trial_ids != known.trial_ids:  # the first time, and after an extension
            known = _Known(trial_ids)
            is_grid, audited = _read_marks(connection, study_id)
        else:
            is_grid, audited = set(known.grid), set(known.audited)
        stamps = {trial_id: stamp for trial_id, stamp in stamps.items() if trial_id in is_grid}
        changed = {
            trial_id: stamp
            for trial_id, stamp in stamps.items()
            if not (stamp.is_settled and stamp == known.stamps.get(trial_id))
        }
        losses = _read_losses(connection, study_id, rungs, changed)
        values = _read_values(connection, study_id, changed)
        audits = _read_audits(connection, audited, numbers, damaged)
    damaged.report(storage, study_id)
    trials = {}
    for trial_id, stamp in stamps.items():
        audit = audits.get(trial_id)
        if trial_id in changed:
            trial = TrialProgress(
                trial_id,
                numbers[trial_id],
                stamp.state,
                stamp.is_paused,
                values.get(trial_id, math.nan),
                losses.get(trial_id) or [math.nan] * len(rungs),
                audit,
            )
        elif (trial := known.trials[trial_id]).audit != audit:
            trial = replace(trial, audit=audit)
        trials[trial_id] = trial
    unnumbered = [trial_id for trial_id in unnumbered if trial_id in is_grid]
    return _Known(trial_ids, stamps, trials, audited, is_grid, unnumbered)


def _read_marks(connection: Connection, study_id: int) -> tuple[set[int], set[int]]:
    """Read which trials are grid trials, and which of these are audited."""
    marks: dict[str, set[int]] = {IS_GRID_TRIAL: set(), AUDIT: set()}
    query = sa.select(TRIAL_SYSTEM_ATTRS.c.trial_id, TRIAL_SYSTEM_ATTRS.c.key).where(
        TRIAL_SYSTEM_ATTRS.c.trial_id.in_(_select_ids(study_id)),
        TRIAL_SYSTEM_ATTRS.c.key.in_(marks),
    )
    for trial_id, key in connection.execute(query):
        marks[key].add(trial_id)
    return marks[IS_GRID_TRIAL], marks[IS_GRID_TRIAL] & marks[AUDIT]


def _read_losses(
    connection: Connection, study_id: int, rungs: Sequence[Rung], changed: Mapping[int, TrialStamp]
) -> dict[int, list[float]]:
    """Read the losses at the rungs of trials that have passed one, by trial id."""
    queued = [
        trial_id
        for trial_id, stamp in changed.items()
        if stamp.state is TrialState.WAITING and not stamp.is_paused
    ]
    named = changed.keys() - queued
    chosen: list[sa.Select[tuple[int]] | list[int]] = [_select_ids(study_id)]
    if len(named) <= _MAX_IDS:
        # Of the waiting trials few have a curve, those that were requeued.
        is_waiting = TRIALS.c.state == TrialState.WAITING
        waiting = _select_ids(study_id).where(is_waiting, ~has_system_attr(PAUSED))
        chosen = [*([sorted(named)] if named else []), *([waiting] if queued else [])]
    losses: dict[int, list[float]] = {}
    for trial_ids in chosen if rungs else []:
        for trial_id, rung, loss, last in connection.execute(_select_losses(rungs, trial_ids)):
            found = losses.setdefault(trial_id, [math.nan] * len(rungs))
            if last == rungs[rung].step and loss is not None:
                found[rung] = loss
    return {trial_id: bridge_start(each) for trial_id, each in losses.items()}


def _select_losses(
    rungs: Sequence[Rung], trial_ids: sa.Select[tuple[int]] | list[int]
) -> sa.CompoundSelect[Any]:
    """Return the query for (trial id, rung index, mean loss, last step of the mean)."""
    # One range of steps after the other, so that the index finds them.
    step = INTERMEDIATE_VALUES.c.step
    return sa.union_all(
        *(
            sa.select(
                INTERMEDIATE_VALUES.c.trial_id,
                sa.literal(index),
                sa.func.avg(INTERMEDIATE_VALUES.c.intermediate_value),
                sa.func.max(step),
            )
            .where(
                INTERMEDIATE_VALUES.c.trial_id.in_(trial_ids), step > rung.after, step <= rung.step
            )
            .group_by(INTERMEDIATE_VALUES.c.trial_id)
            for index, rung in enumerate(rungs)
        )
    )


def _read_values(
    connection: Connection, study_id: int, changed: Mapping[int, TrialStamp]
) -> dict[int, float]:
    """Read the values of complete trials, by trial id."""
    complete = {key for key, stamp in changed.items() if stamp.state is TrialState.COMPLETE}
    if not complete:
        return {}
    chosen = sorted(complete) if len(complete) <= _MAX_IDS else _select_ids(study_id)
    query = sa.select(TRIAL_VALUES.c.trial_id, TRIAL_VALUES.c.value).where(
        TRIAL_VALUES.c.trial_id.in_(chosen)
    )
    return {
        trial_id: value
        for trial_id, value in connection.execute(query)
        if trial_id in complete and isinstance(value, float)
    }


def _read_audits(
    connection: Connection,
    audited: Collection[int],
    numbers: Mapping[int, int],
    damaged: DamagedTrials,
) -> dict[int, AuditState]:
    """Read what the pruner has decided about audited trials, by trial id."""
    query = sa.select(TRIAL_SYSTEM_ATTRS.c.trial_id, TRIAL_SYSTEM_ATTRS.c.value_json).where(
        TRIAL_SYSTEM_ATTRS.c.trial_id.in_(sorted(audited)), TRIAL_SYSTEM_ATTRS.c.key == AUDIT
    )
    audits = {}
    for trial_id, stored in connection.execute(query) if audited else ():
        try:
            audits[trial_id] = parse_audit(AuditState, stored)
        except READ_ERRORS as error:
            damaged.add(name_trial(trial_id, numbers.get(trial_id)), error)
    return audits


def _select_ids(study_id: int) -> sa.Select[tuple[int]]:
    return sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)


def bridge_start(losses: Sequence[float]) -> list[float]:
    """Return losses at rungs with the first known one before it, and NaN after a later gap.

    A task whose first target comes late has no loss before it.
    """
    known = [place for place, loss in enumerate(losses) if not math.isnan(loss)]
    if not known:
        return list(losses)
    start = known[0]
    end = next((i for i in range(start, len(losses)) if math.isnan(losses[i])), len(losses))
    return [losses[start]] * start + list(losses[start:end]) + [math.nan] * (len(losses) - end)
