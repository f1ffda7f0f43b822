"""The only code that reads trials: whole ones, those that may have changed, and their curves.

Damaged trials are left out with a warning that names them; see :mod:`studies.storage.trials`.
"""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import (
    AUDIT,
    AUDIT_LOOKS,
    EVAL_WINDOWS,
    IMPORTED,
    IS_GRID_TRIAL,
    LEASE,
    PAUSED,
    AuditLook,
    is_result,
    parse_study_system_attribute,
    parse_trial_attribute,
    parse_trial_system_attribute,
)
from studies.errors import RowError
from studies.space import complete_params
from studies.storage.tables import (
    INTERMEDIATE_VALUES,
    MAX_IDS,
    STUDY_SYSTEM_ATTRS,
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_TABLES,
    TRIAL_USER_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    has_system_attr,
    is_attr,
    is_grid_trial,
    list_columns,
    of_study,
    raw,
    read_study_attrs,
    select_trial_ids,
)
from studies.storage.trials import (
    DamagedTrials,
    StoredTrial,
    check_params,
    decode_distribution,
    decode_integer,
    decode_json,
    decode_param,
    decode_state,
    decode_time,
    decode_value,
    reporting_damage,
)

if TYPE_CHECKING:
    from studies.storage.storage import LeasedRDBStorage

RESULTS = (TRIAL_PARAMS, TRIAL_USER_ATTRS, TRIAL_VALUES)
"""What is read of trials: parameters, the user attributes that this program defines, and values."""

RECORDS = (*RESULTS, TRIAL_SYSTEM_ATTRS)
"""The same, and the system attributes that belong to a study's results."""

_NOT_READ: Any = MappingProxyType({})
"""What trials have of columns that are not read: without objects of their own, which cost time."""

_RUNNING, _WAITING = TrialState.RUNNING.name, TrialState.WAITING.name


# ------------------------------------------------------------------ trials


def read_trials(
    storage: "LeasedRDBStorage",
    study_id: int,
    trial_ids: Collection[int] | None = None,
    columns: Collection[sa.Table] = RESULTS,
    is_strict: bool = False,
) -> list[StoredTrial]:
    """Read grid trials of a study, all or those of some ids, by number.

    Besides their states and times ``columns`` are read. Damaged trials are left out with a warning.

    Raises:
        DamagedTrialError: if one is damaged, and ``is_strict``.
    """
    where = [TRIALS.c.study_id == study_id, is_grid_trial()]
    if trial_ids is not None:
        where.append(TRIALS.c.trial_id.in_(trial_ids))
    with storage.reading() as connection:
        trials, damaged = read_where(connection, study_id, where, columns)
    damaged.report(storage, study_id, is_strict)
    return trials


def read_where(
    connection: Connection,
    study_id: int,
    where: Sequence[sa.ColumnElement[bool]],
    columns: Collection[sa.Table] = TRIAL_TABLES,
    is_whole: bool = False,
) -> tuple[list[StoredTrial], DamagedTrials]:
    """Read the trials of a study that meet conditions, by number, and those that are damaged.

    Besides their states and times ``columns`` are read: only attributes that this program defines,
    unless ``is_whole`` asks for everything that Optuna's object of a trial has.
    """
    query = sa.select(TRIALS.c.trial_id, *map(raw, list_columns(TRIALS)[1:])).where(*where)
    damaged = DamagedTrials()
    trials: dict[int, StoredTrial] = {}
    for trial_id, number, *row in connection.execute(query.order_by(TRIALS.c.number)):
        try:
            state, *times = row
            started, completed = map(decode_time, times)
            trials[trial_id] = StoredTrial(
                params={} if TRIAL_PARAMS in columns else _NOT_READ,
                attributes={} if TRIAL_USER_ATTRS in columns else _NOT_READ,
                state=decode_state(state),
                number=decode_integer(number, "number"),
                trial_id=trial_id,
                started=started,
                completed=completed,
                is_grid=False,
                system_attributes={} if TRIAL_SYSTEM_ATTRS in columns else _NOT_READ,
                curve={} if INTERMEDIATE_VALUES in columns else _NOT_READ,
                distributions={} if is_whole else _NOT_READ,
                values={} if TRIAL_VALUES in columns else _NOT_READ,
            )
        except RowError as error:
            damaged.add(trial_id, number, error)
    total = connection.scalar(
        sa.select(sa.func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id)
    )
    # Of most or many trials the rows of the whole study: naming them takes longer.
    is_few = len(trials) <= min(MAX_IDS, (total or 0) // 2)
    selected = sorted(trials) if is_few else select_trial_ids(study_id)
    for table, fill in _list_fillers(columns, is_whole):
        rows = sa.select(table.c.trial_id, *map(raw, list_columns(table)[1:]))
        rows = rows.where(table.c.trial_id.in_(selected))
        if table is TRIAL_SYSTEM_ATTRS and table not in columns:
            rows = rows.where(table.c.key.in_((IS_GRID_TRIAL, PAUSED, AUDIT)))
        if table is TRIAL_PARAMS:
            rows = rows.order_by(table.c.param_id)
        for trial_id, *row in connection.execute(rows):
            if (trial := trials.get(trial_id)) is None:  # damaged, or created since
                continue
            try:
                fill(trial, *row)
            except RowError as error:
                damaged.add(trial_id, trial.number, error)
                del trials[trial_id]
    numbers: set[int] = set()
    for trial_id, trial in list(trials.items()):
        try:
            _check_trial(trial, total or 0, columns)
            if trial.number in numbers:
                raise RowError("its number is that of another trial")
            numbers.add(trial.number)
        except RowError as error:
            damaged.add(trial_id, trial.number, error)
            del trials[trial_id]
    return list(trials.values()), damaged


def _list_fillers(
    columns: Collection[sa.Table], is_whole: bool
) -> Iterator[tuple[sa.Table, Callable[..., None]]]:
    """Yield the tables to read, and what sets a row of each: first what marks grid trials."""
    choices: dict[tuple[Any, ...], Any] = {}

    def set_system_attr(trial: StoredTrial, key: str, stored: Any) -> None:
        if key == LEASE:  # workers take an unreadable one for an old one
            if is_whole:
                with contextlib.suppress(RowError):
                    trial.system_attributes[key] = decode_json(stored, key)
            return
        if key == IS_GRID_TRIAL:
            trial.is_grid, trial.is_imported = True, stored == json.dumps(IMPORTED)
        elif key == PAUSED:
            trial.is_paused = trial.state is TrialState.WAITING
        elif key == AUDIT:
            trial.audit = parse_trial_system_attribute(key, stored)
        is_wanted = TRIAL_SYSTEM_ATTRS in columns and is_result(str(key))
        if is_wanted and not is_whole:
            parse_trial_system_attribute(key, stored)
        if is_wanted or is_whole:
            trial.system_attributes[key] = decode_json(stored, key)

    def set_param(trial: StoredTrial, name: str, stored: Any, distribution: Any) -> None:
        is_any = trial.is_imported or not trial.is_grid
        if (key := (is_any, stored, distribution)) not in choices:
            try:
                choices[key] = decode_param(stored, distribution, is_any)
            except RowError as error:
                raise RowError(f"parameter {name}: {error}") from error
        trial.params[name] = choices[key]
        if is_whole:
            trial.distributions[name] = decode_distribution(distribution)

    def set_user_attr(trial: StoredTrial, key: str, stored: Any) -> None:
        # A study of plain Optuna may give these names another meaning.
        value = parse_trial_attribute(key, stored) if trial.is_grid else None
        if is_whole:
            value = decode_json(stored, key)
        if is_whole or value is not None:
            trial.attributes[key] = value

    def set_value(trial: StoredTrial, objective: Any, stored: Any, kind: Any) -> None:
        if is_whole or trial.state is TrialState.COMPLETE:
            place = decode_integer(objective, "objective")
            trial.values[place] = decode_value(stored, kind, "value")

    def set_point(trial: StoredTrial, step: Any, stored: Any, kind: Any) -> None:
        if type(stored) is float and kind == "FINITE" and math.isfinite(stored):  # most of them
            loss = stored
        else:
            loss = decode_value(stored, kind, f"loss at step {step}")
        trial.curve[decode_integer(step, "step")] = loss

    fillers: dict[sa.Table, Callable[..., None]] = {
        TRIAL_PARAMS: set_param,
        TRIAL_USER_ATTRS: set_user_attr,
        TRIAL_VALUES: set_value,
        INTERMEDIATE_VALUES: set_point,
    }
    yield TRIAL_SYSTEM_ATTRS, set_system_attr
    yield from ((table, fill) for table, fill in fillers.items() if table in columns)


def _check_trial(trial: StoredTrial, total: int, columns: Collection[sa.Table]) -> None:
    """Require a number, parameters and a value that a trial of a study may have."""
    if any(place not in range(len(trial.values)) for place in trial.values):
        raise RowError(f"its value has the objective {next(iter(trial.values))}")
    if not trial.is_grid:
        return
    if trial.number not in range(total):
        raise RowError(f"its number is {trial.number}: the study has {total} trials")
    # The pruner, which reads no attributes, takes parameters as they are.
    if TRIAL_USER_ATTRS in columns and not trial.is_imported:
        check_params(trial.params)
        trial.params = complete_params(trial.params)
    if trial.state is TrialState.COMPLETE and TRIAL_VALUES in columns:
        if len(trial.values) != 1:
            raise RowError("it is complete without a value, or with several")
        trial.value = trial.values[0] if math.isfinite(trial.values[0]) else None


# ------------------------------------------------------------------ what has changed


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


class TrialReader:
    """Reads the grid trials of a study again and again, only those that may have changed.

    A curve is written under a claim, which sets the start; a pause and the end have their times.
    So a trial that has finished or paused is the same as long as these are, its stamp. Running and
    audited trials are always read; of those that wait, only the losses: the retries of one that was
    claimed and requeued between two calls stay the old ones.

    Losses are read at rungs in ascending order, whose ranges of log points do not overlap.

    Attributes:
        planned: number of grid trials when they were last read, damaged ones included.
        damaged_paused: ids of the paused grid trials that are damaged, not among the trials.
    """

    def __init__(
        self,
        storage: "LeasedRDBStorage",
        study_id: int,
        columns: Collection[sa.Table] = RESULTS,
        rungs: Sequence[Rung] = (),
    ) -> None:
        self.planned = 0
        self.damaged_paused: Sequence[int] = ()
        self._storage = storage
        self._study_id = study_id
        self._columns = columns
        self._rungs = rungs
        self._grid: set[int] = set()
        self._audited: set[int] = set()
        self._stamps: dict[int, tuple[Any, ...]] = {}
        self._trials: dict[int, StoredTrial] = {}

    def read(self) -> list[StoredTrial]:
        """Return the trials, by number; those that have not changed are the same objects."""
        with self._storage.reading() as connection:
            rows = connection.execute(_select_stamps(self._study_id))
            stamps = {row[0]: tuple(row) for row in rows}
            if stamps.keys() != self._stamps.keys():  # the first time, and after an extension
                query = select_trial_ids(self._study_id).where(is_grid_trial())
                self._grid = set(connection.scalars(query))
            changed = {
                key
                for key, stamp in stamps.items()
                if (self._stamps.get(key) != stamp or key in self._audited or stamp[2] == _RUNNING)
                and key in self._grid
            }
            selected = changed if len(changed) <= min(MAX_IDS, len(stamps) // 2) else None
            read = read_trials(self._storage, self._study_id, selected, self._columns)
            trials = {key: each for key, each in self._trials.items() if key not in changed}
            trials |= {each.trial_id: each for each in read if each.trial_id in changed}
            if self._rungs:
                trials |= self._read_losses(connection, trials, changed)
        self._trials = {key: trials[key] for key in stamps if key in trials}
        # A trial that has changed since its stamp was read has another one next time.
        self._stamps = stamps
        self._audited -= changed
        self._audited |= {each.trial_id for each in read if each.is_audited}
        self.planned = len(self._grid)
        self.damaged_paused = [
            key
            for key in self._grid - self._trials.keys()
            if stamps[key][2] == _WAITING and stamps[key][-1] is not None
        ]
        return list(self._trials.values())

    def _read_losses(
        self, connection: Connection, trials: Mapping[int, StoredTrial], changed: Set[int]
    ) -> dict[int, StoredTrial]:
        """Return the trials with other losses than before, those that were read anew included."""
        waiting = {
            key
            for key, each in trials.items()
            if each.state is TrialState.WAITING and not each.is_paused
        }
        named = sorted(changed - waiting)
        chosen: list[sa.Select[int] | list[int]] = [select_trial_ids(self._study_id)]
        if len(named) <= MAX_IDS:
            # Of the waiting trials few have a curve, those that were requeued.
            is_waiting = (TRIALS.c.state == TrialState.WAITING) & ~has_system_attr(PAUSED)
            queued = select_trial_ids(self._study_id).where(is_waiting)
            chosen = [*([named] if named else []), *([queued] if waiting else [])]
        unknown = [math.nan] * len(self._rungs)
        losses: dict[int, list[float]] = {}
        for trial_ids in chosen:
            query = _select_losses(self._rungs, trial_ids)
            for trial_id, rung, loss, last in connection.execute(query):
                found = losses.setdefault(trial_id, list(unknown))
                if last == self._rungs[rung].step and loss is not None:
                    found[rung] = loss
        updated = {}
        for trial_id in {*named, *waiting} & trials.keys():
            new = bridge_start(losses.get(trial_id, unknown))
            trial = trials[trial_id]
            if trial.losses != new:  # NaN is always the same object
                updated[trial_id] = replace(trial, losses=new)
        return updated


def _select_stamps(study_id: int) -> sa.Select[Any]:
    """Return the query for (trial id, *stamp) of all trials, by number."""
    since = raw(TRIAL_SYSTEM_ATTRS.c.value_json)
    return (
        sa.select(TRIALS.c.trial_id, *map(raw, list_columns(TRIALS)[1:]), since)
        .outerjoin(TRIAL_SYSTEM_ATTRS, is_attr(TRIAL_SYSTEM_ATTRS, PAUSED))
        .where(TRIALS.c.study_id == study_id)
        .order_by(TRIALS.c.number)
    )


def _select_losses(
    rungs: Sequence[Rung], trial_ids: sa.Select[int] | list[int]
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


# ------------------------------------------------------------------ curves

Point = tuple[int, int, float]
"""Number of a trial, step and intermediate value."""


def read_curves(
    storage: "LeasedRDBStorage",
    study_id: int,
    numbers: Collection[int] | None = None,
    step: int | None = None,
) -> list[Point]:
    """Read the intermediate values of grid trials: of all or of some, at all steps or at one.

    Returns:
        Tuples (number, step, value), ordered by number and step; values that are not finite are
        NaN. A damaged curve is left out with a warning.
    """
    query = _select_points(study_id)
    if numbers is not None:
        query = query.where(TRIALS.c.number.in_(numbers))
    if step is not None:
        query = query.where(INTERMEDIATE_VALUES.c.step == step)
    damaged = DamagedTrials()
    points: list[Point] = []
    with storage.reading() as connection:
        for number, of_trial in groupby(connection.execute(query), key=itemgetter(0)):
            if not isinstance(number, int):  # the trial is damaged, not its curve
                continue
            try:
                points += [_decode_point(*row) for row in of_trial]
            except RowError as error:
                damaged.add(number, number, error)
    damaged.report(storage, study_id)
    return points


def _decode_point(number: int, step: Any, stored: Any, kind: Any) -> Point:
    loss = decode_value(stored, kind, f"loss at step {step}")
    return number, decode_integer(step, "step"), loss if math.isfinite(loss) else math.nan


def read_curve_ends(storage: "LeasedRDBStorage", study_id: int) -> list[tuple[int, int, int]]:
    """Read the number, the number of log points and the last step of each trial with a curve.

    The database counts the points in its index and returns a row for each trial. A damaged one is
    left out: :func:`read_curves` warns of it.
    """
    of_trial = INTERMEDIATE_VALUES.c.trial_id == TRIALS.c.trial_id
    points, last = (
        sa.select(what).where(of_trial).correlate(TRIALS).scalar_subquery()
        for what in (sa.func.count(), sa.func.max(raw(INTERMEDIATE_VALUES.c.step)))
    )
    query = sa.select(raw(TRIALS.c.number), points, last)
    query = query.where(TRIALS.c.study_id == study_id, is_grid_trial()).order_by(TRIALS.c.number)
    with storage.reading() as connection:
        return [
            (number, count, step)
            for number, count, step in connection.execute(query)
            if count and isinstance(number, int) and isinstance(step, int)
        ]


def read_last_losses(
    storage: "LeasedRDBStorage", study_id: int
) -> list[tuple[StoredTrial, int, float | None]]:
    """Read the grid trials that are running now, with the step and loss of the last log point.

    The step is 0 and the loss None before the first one. Trials are by number.
    """
    damaged = DamagedTrials()
    found: list[tuple[StoredTrial, int, float | None]] = []
    points = INTERMEDIATE_VALUES.alias()
    last_step = sa.select(sa.func.max(points.c.step)).where(points.c.trial_id == TRIALS.c.trial_id)
    is_last = (INTERMEDIATE_VALUES.c.trial_id == TRIALS.c.trial_id) & (
        INTERMEDIATE_VALUES.c.step == last_step.correlate(TRIALS).scalar_subquery()
    )
    query = (
        sa.select(TRIALS.c.trial_id, *map(raw, list_columns(INTERMEDIATE_VALUES)[1:]))
        .select_from(TRIALS.outerjoin(INTERMEDIATE_VALUES, is_last))
        .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.RUNNING, is_grid_trial())
        .order_by(TRIALS.c.number)
    )
    with storage.reading() as connection:
        rows = connection.execute(query).all()
        trials = {
            trial.trial_id: trial
            for trial in read_trials(storage, study_id, [row[0] for row in rows])
        }
    for trial_id, step, loss, kind in rows:
        if (trial := trials.get(trial_id)) is None:  # reported
            continue
        try:
            if step is None:
                found.append((trial, 0, None))
            else:
                last = decode_value(loss, kind, "loss")
                found.append((trial, decode_integer(step, "step"), last))
        except RowError as error:
            damaged.add(trial_id, trial.number, error)
    damaged.report(storage, study_id)
    return found


def _select_points(study_id: int) -> sa.Select[Any]:
    return (
        sa.select(raw(TRIALS.c.number), *map(raw, list_columns(INTERMEDIATE_VALUES)[1:]))
        .join(TRIALS, TRIALS.c.trial_id == INTERMEDIATE_VALUES.c.trial_id)
        .where(TRIALS.c.study_id == study_id, is_grid_trial())
        .order_by(TRIALS.c.number, INTERMEDIATE_VALUES.c.step)
    )


# ------------------------------------------------------------------ records of a study


def read_eval_windows(
    storage: "LeasedRDBStorage", study_id: int, split: str, tasks: Mapping[int, str]
) -> dict[int, list[float]]:
    """Read the losses on each evaluation window of ``validation`` or ``test``, by trial number.

    Args:
        storage: storage of the study.
        study_id: identifier of the study.
        split: the held-out split.
        tasks: task of each trial, by its number, in a study of several tasks; empty in others.
            Trials of one task have the same number of windows.
    """
    query = (
        sa.select(TRIALS.c.number, TRIAL_SYSTEM_ATTRS.c.value_json)
        .join(TRIALS, TRIALS.c.trial_id == TRIAL_SYSTEM_ATTRS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, TRIAL_SYSTEM_ATTRS.c.key == EVAL_WINDOWS[split])
        .order_by(TRIALS.c.number)
    )
    damaged = DamagedTrials()
    windows: dict[int, list[float]] = {}
    with storage.reading() as connection:
        for number, stored in connection.execute(query):
            try:
                windows[number] = parse_trial_attribute(EVAL_WINDOWS[split], stored) or []
            except RowError as error:
                damaged.add(number, number, error)
    lengths: dict[str | None, Counter[int]] = {}
    for number, losses in windows.items():
        lengths.setdefault(tasks.get(number), Counter())[len(losses)] += 1
    for number, losses in list(windows.items()):
        ((usual, _),) = lengths[tasks.get(number)].most_common(1)
        if len(losses) != usual:
            found = f"it has {len(losses)} {split} windows, others have {usual}"
            damaged.add(number, number, RowError(found))
            del windows[number]
    damaged.report(storage, study_id)
    return windows


def read_audit_looks(storage: "LeasedRDBStorage", study_id: int) -> dict[str, AuditLook]:
    """Read the planned looks at the audited trials of a study so far, by name.

    Raises:
        StudyFormatError: if they are damaged.
    """
    with storage.reading() as connection:
        stored = read_study_attrs(connection, STUDY_SYSTEM_ATTRS, study_id, [AUDIT_LOOKS])
    with reporting_damage(storage, study_id):
        if not stored:
            return {}
        looks: dict[str, AuditLook] = parse_study_system_attribute(AUDIT_LOOKS, stored[AUDIT_LOOKS])
        return looks


def read_numbers(storage: "LeasedRDBStorage", study_id: int, key: str) -> dict[int, float]:
    """Read a user attribute that is a number, of all trials that have it, by trial id."""
    stored = TRIAL_USER_ATTRS.c.value_json
    query = sa.select(TRIAL_USER_ATTRS.c.trial_id, stored)
    query = query.where(of_study(TRIAL_USER_ATTRS, study_id), TRIAL_USER_ATTRS.c.key == key)
    numbers: dict[int, float] = {}
    with storage.reading() as connection:
        for trial_id, text in connection.execute(query):
            with contextlib.suppress(RowError):  # reading the whole trial reports it
                value = parse_trial_attribute(key, text)
                if value is not None:
                    numbers[trial_id] = float(value)
    return numbers


def read_distributions(connection: Connection, study_id: int) -> dict[str, str]:
    """Read the distribution as JSON that most grid trials have of each parameter."""
    columns = (TRIAL_PARAMS.c.param_name, TRIAL_PARAMS.c.distribution_json)
    query = (
        sa.select(*columns, sa.func.count())
        .join(TRIALS, TRIALS.c.trial_id == TRIAL_PARAMS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, is_grid_trial())
        .group_by(*columns)
        .order_by(sa.func.min(TRIAL_PARAMS.c.param_id))
    )
    found: dict[str, tuple[int, str]] = {}
    for name, stored, count in connection.execute(query):
        if count > found.get(name, (0, ""))[0]:
            found[name] = count, stored
    return {name: stored for name, (_, stored) in found.items()}
