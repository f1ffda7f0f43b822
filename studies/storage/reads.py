"""The only code that reads trials: whole ones, those that may have changed, and their curves."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import (
    AUDIT,
    AUDIT_LOOKS,
    CURVE,
    IS_GRID_TRIAL,
    PAUSED,
    AuditLook,
    is_result,
    parse_audit_looks,
    parse_trial_attribute,
    parse_trial_system_attribute,
)
from studies.errors import RowError
from studies.space import complete_params
from studies.storage.counts import find_study, is_told, read_config
from studies.storage.tables import (
    INTERMEDIATE_VALUES,
    MAX_IDS,
    METRIC_NAMES,
    STUDY_SYSTEM_ATTRS,
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
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
    StoredStudy,
    StoredTrial,
    decode_distribution,
    decode_json,
    decode_param,
    decode_state,
    decode_time,
    decode_value,
    locating,
)

if TYPE_CHECKING:
    from studies.storage.storage import LeasedRDBStorage

RESULTS = (TRIAL_PARAMS, TRIAL_USER_ATTRS, TRIAL_VALUES)
"""What is read of trials: parameters, the user attributes that this program defines, and values."""

RECORDS = (*RESULTS, TRIAL_SYSTEM_ATTRS)
"""The same, and the system attributes that belong to a study's results."""

_MARKS = (PAUSED, AUDIT)
"""System attributes that are always read."""

_BATCH = 200
"""Number of trials of a whole study that are read at once."""

_RUNNING = TrialState.RUNNING.name


# ------------------------------------------------------------------ trials


def read_trials(
    storage: "LeasedRDBStorage",
    study_id: int,
    trial_ids: Collection[int] | None = None,
    columns: Collection[sa.Table] = RESULTS,
) -> list[StoredTrial]:
    """Read grid trials of a study, all or those of some ids, by number.

    Besides their states and times ``columns`` are read.
    """
    where = [] if trial_ids is None else [TRIALS.c.trial_id.in_(trial_ids)]
    with storage.reading() as connection:
        return read_grid_trials(connection, study_id, where, columns)


def read_grid_trials(
    connection: Connection,
    study_id: int,
    where: Sequence[sa.ColumnElement[bool]] = (),
    columns: Collection[sa.Table] = RESULTS,
) -> list[StoredTrial]:
    """Read the grid trials of a study that meet conditions, by number.

    Besides their states and times ``columns`` are read: of attributes, those that this program
    defines.

    Raises:
        RowError: if one cannot be decoded.
    """
    trials = _read_rows(connection, study_id, [is_grid_trial(), *where])
    # Of many trials the rows of the whole study: naming them takes longer.
    is_few = where and len(trials) <= MAX_IDS
    ids = sorted(trials) if is_few else select_trial_ids(study_id)
    is_mark = TRIAL_SYSTEM_ATTRS.c.key.in_(_MARKS)
    _fill(connection, trials, TRIAL_SYSTEM_ATTRS, ids, _set_mark, is_mark)
    for table in columns:
        _fill(connection, trials, table, ids, _RESULT_FILLERS[table])
    params = {key: complete_params(trial.params) for key, trial in trials.items()}
    has_more = any(len(params[key]) > len(trial.params) for key, trial in trials.items())
    config = read_config(connection, study_id)
    is_foreign = has_more and bool(config.get("loop") or config.get("results"))
    all_told = select_trial_ids(study_id).where(is_told(config), *where)
    told = set(connection.scalars(all_told))
    for key, trial in trials.items():
        trial.params = trial.params if is_foreign else params[key]
        if trial.state is TrialState.COMPLETE and TRIAL_VALUES in columns:
            trial.value = _choose_value(trial)
            trial.is_told = key in told
            trial.value = None if trial.is_told else trial.value
    return list(trials.values())


def read_whole_trials(
    connection: Connection, study_id: int, where: Sequence[sa.ColumnElement[bool]] = ()
) -> list[StoredTrial]:
    """Read trials of a study with everything that any program has stored of them, by number.

    Attributes are decoded from JSON, whatever they are.

    Raises:
        RowError: if one cannot be decoded.
    """
    trials = _read_rows(connection, study_id, where)
    ids = sorted(trials) if where and len(trials) <= MAX_IDS else select_trial_ids(study_id)
    for table, fill in _WHOLE_FILLERS.items():
        _fill(connection, trials, table, ids, fill)
    for trial in trials.values():
        trial.is_grid = IS_GRID_TRIAL in trial.system_attributes
    return list(trials.values())


def _read_rows(
    connection: Connection, study_id: int, where: Sequence[sa.ColumnElement[bool]]
) -> dict[int, StoredTrial]:
    """Read the rows of the table of trials, by id, in the order of the numbers."""
    query = sa.select(TRIALS.c.trial_id, *map(raw, list_columns(TRIALS)[1:]))
    query = query.where(TRIALS.c.study_id == study_id, *where).order_by(TRIALS.c.number)
    trials = {}
    for trial_id, number, state, started, completed in connection.execute(query):
        try:
            trials[trial_id] = StoredTrial(
                number=number,
                trial_id=trial_id,
                state=decode_state(state),
                started=decode_time(started),
                completed=decode_time(completed),
            )
        except RowError as error:
            error.trial_id = trial_id
            raise
    return trials


def _fill(
    connection: Connection,
    trials: Mapping[int, StoredTrial],
    table: sa.Table,
    ids: Sequence[int] | sa.Select[int],
    fill: Callable[..., None],
    *where: sa.ColumnElement[bool],
) -> None:
    query = sa.select(table.c.trial_id, *map(raw, list_columns(table)[1:]))
    query = query.where(table.c.trial_id.in_(ids), *where)
    if table is TRIAL_PARAMS:
        query = query.order_by(table.c.param_id)
    for trial_id, *row in connection.execute(query):
        if (trial := trials.get(trial_id)) is None:
            continue
        try:  # not by a context manager, which costs more than most rows
            fill(trial, *row)
        except RowError as error:
            error.trial_id = trial_id
            raise


def _set_param(trial: StoredTrial, name: str, stored: Any, distribution: str) -> None:
    try:
        trial.params[name] = decode_param(stored, distribution)
    except RowError as error:
        raise RowError(f"parameter {name}: {error}") from error


def _set_attribute(trial: StoredTrial, key: str, stored: Any) -> None:
    value = parse_trial_attribute(key, stored)
    if value is not None:
        trial.attributes[key] = value


def _set_mark(trial: StoredTrial, key: str, stored: Any) -> None:
    if key == PAUSED:
        trial.is_paused = trial.state is TrialState.WAITING
    else:
        trial.audit = parse_trial_system_attribute(key, stored)


def _set_result(trial: StoredTrial, key: str, stored: Any) -> None:
    if is_result(key):
        parse_trial_system_attribute(key, stored)
        trial.system_attributes[key] = decode_json(stored, key)


def _set_value(trial: StoredTrial, objective: int, stored: Any, kind: Any) -> None:
    trial.values[objective] = decode_value(stored, kind, "value")


def _set_point(trial: StoredTrial, step: int, stored: Any, kind: Any) -> None:
    trial.curve[step] = decode_value(stored, kind, f"loss at step {step}")


def _set_whole_param(trial: StoredTrial, name: str, stored: Any, distribution: str) -> None:
    _set_param(trial, name, stored, distribution)
    trial.distributions[name] = decode_distribution(distribution)


def _set_any_attribute(trial: StoredTrial, key: str, stored: Any) -> None:
    trial.attributes[key] = decode_json(stored, key)


def _set_any_system_attribute(trial: StoredTrial, key: str, stored: Any) -> None:
    trial.system_attributes[key] = decode_json(stored, key)


_RESULT_FILLERS: dict[sa.Table, Callable[..., None]] = {
    TRIAL_PARAMS: _set_param,
    TRIAL_USER_ATTRS: _set_attribute,
    TRIAL_SYSTEM_ATTRS: _set_result,
    TRIAL_VALUES: _set_value,
    INTERMEDIATE_VALUES: _set_point,
}

_WHOLE_FILLERS = _RESULT_FILLERS | {
    TRIAL_PARAMS: _set_whole_param,
    TRIAL_USER_ATTRS: _set_any_attribute,
    TRIAL_SYSTEM_ATTRS: _set_any_system_attribute,
}


def _choose_value(trial: StoredTrial) -> float | None:
    """Return the value of a complete trial; None if it is not finite."""
    if 0 not in trial.values:
        with locating(trial_id=trial.trial_id):
            raise RowError("it is complete without a value")
    return trial.values[0] if math.isfinite(trial.values[0]) else None


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
    claimed and requeued between two calls stay the old ones. Ids do not tell what is new: SQLite
    reuses the highest one, and PostgreSQL may commit a higher id first.

    Losses are read at rungs in ascending order, whose ranges of log points do not overlap.
    """

    def __init__(
        self,
        storage: "LeasedRDBStorage",
        study_id: int,
        columns: Collection[sa.Table] = RESULTS,
        rungs: Sequence[Rung] = (),
    ) -> None:
        self._storage = storage
        self._study_id = study_id
        self._columns = columns
        self._rungs = rungs
        self._audited: set[int] = set()
        self._stamps: dict[int, tuple[Any, ...]] = {}
        self._trials: dict[int, StoredTrial] = {}

    def read(self) -> list[StoredTrial]:
        """Return the trials, by number; those that have not changed are the same objects."""
        with self._storage.reading() as connection:
            config = read_config(connection, self._study_id)  # which an extension may change
            rows = connection.execute(_select_stamps(self._study_id, is_told(config)))
            stamps = {row[0]: tuple(row) for row in rows}
            changed = {
                key
                for key, stamp in stamps.items()
                if self._stamps.get(key) != stamp or key in self._audited or stamp[2] == _RUNNING
            }
            selected = changed if len(changed) <= min(MAX_IDS, len(stamps) // 2) else None
            read = read_trials(self._storage, self._study_id, selected, self._columns)
            trials = {key: trial for key, trial in self._trials.items() if key not in changed}
            trials |= {trial.trial_id: trial for trial in read if trial.trial_id in changed}
            if self._rungs:
                trials |= self._read_losses(connection, trials, changed)
        self._trials = {key: trials[key] for key in stamps if key in trials}
        # A trial that has changed since its stamp was read has another one next time.
        self._stamps = stamps
        self._audited -= changed
        self._audited |= {trial.trial_id for trial in read if trial.is_audited}
        return list(self._trials.values())

    def _read_losses(
        self, connection: Connection, trials: Mapping[int, StoredTrial], changed: Set[int]
    ) -> dict[int, StoredTrial]:
        """Return the trials with other losses than before, those that were read anew included."""
        waiting = {
            key
            for key, trial in trials.items()
            if trial.state is TrialState.WAITING and not trial.is_paused
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
            new = fill_gaps(losses.get(trial_id, unknown))
            trial = trials[trial_id]
            if trial.losses != new:  # NaN is always the same object
                updated[trial_id] = replace(trial, losses=new)
        return updated


def _select_stamps(study_id: int, condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Return the query for (trial id, *stamp) of all grid trials, by number."""
    since = raw(TRIAL_SYSTEM_ATTRS.c.value_json)
    return (
        sa.select(TRIALS.c.trial_id, *map(raw, list_columns(TRIALS)[1:]), since, condition)
        .outerjoin(TRIAL_SYSTEM_ATTRS, is_attr(TRIAL_SYSTEM_ATTRS, PAUSED))
        .where(TRIALS.c.study_id == study_id, is_grid_trial())
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


def fill_gaps(losses: Sequence[float]) -> list[float]:
    """Return losses at rungs, in each gap the known one before it, and at first the one after it.

    A task whose first target comes late has no loss before it, and a loop may log its metric
    seldom. After the last known loss all are NaN: no later rung is reached.
    """
    known = [place for place, loss in enumerate(losses) if not math.isnan(loss)]
    filled = list(losses)
    for place in range(known[-1] if known else 0):
        nearest = max((other for other in known if other <= place), default=known[0])
        filled[place] = losses[nearest]
    return filled


# ------------------------------------------------------------------ curves

Point = tuple[int, int, float]
"""Number of a trial, step and intermediate value."""


def read_curves(
    storage: "LeasedRDBStorage",
    study_id: int,
    numbers: Collection[int] | None = None,
) -> list[Point]:
    """Read the intermediate values of grid trials, of all or of some.

    Returns:
        Tuples (number, step, value), ordered by number and step; values that are not finite are
        NaN.
    """
    query = (
        sa.select(TRIALS.c.number, *map(raw, list_columns(INTERMEDIATE_VALUES)[1:]))
        .join(TRIALS, TRIALS.c.trial_id == INTERMEDIATE_VALUES.c.trial_id)
        .where(TRIALS.c.study_id == study_id, is_grid_trial())
        .order_by(TRIALS.c.number, INTERMEDIATE_VALUES.c.step)
    )
    if numbers is not None:
        query = query.where(TRIALS.c.number.in_(numbers))
    points: list[Point] = []
    with storage.reading() as connection:
        for number, reported, stored, kind in connection.execute(query):
            loss = stored
            if kind != "FINITE" or type(stored) is not float:  # few of them
                with locating(study_id):
                    loss = decode_value(stored, kind, f"loss of trial {number} at step {reported}")
            points.append((number, reported, loss if math.isfinite(loss) else math.nan))
    return points


def list_curves(storage: "LeasedRDBStorage", study_id: int) -> list[str]:
    """List the names of the curves that trials have besides their intermediate values."""
    keys = TRIAL_SYSTEM_ATTRS.c.key
    query = sa.select(keys).where(of_study(TRIAL_SYSTEM_ATTRS, study_id), keys.startswith(CURVE))
    with storage.reading() as connection:
        return sorted(key.removeprefix(CURVE) for key in connection.scalars(query.distinct()))


def read_curve_ends(storage: "LeasedRDBStorage", study_id: int) -> list[tuple[int, int, int]]:
    """Read the number, the number of log points and the last step of each trial with a curve.

    The database counts the points in its index and returns a row for each trial.
    """
    of_trial = INTERMEDIATE_VALUES.c.trial_id == TRIALS.c.trial_id
    points, last = (
        sa.select(what).where(of_trial).correlate(TRIALS).scalar_subquery()
        for what in (sa.func.count(), sa.func.max(INTERMEDIATE_VALUES.c.step))
    )
    query = sa.select(TRIALS.c.number, points, last)
    query = query.where(TRIALS.c.study_id == study_id, is_grid_trial()).order_by(TRIALS.c.number)
    with storage.reading() as connection:
        return [(number, count, step) for number, count, step in connection.execute(query) if count]


# ------------------------------------------------------------------ whole studies


def read_study(storage: "LeasedRDBStorage", name: str) -> StoredStudy:
    """Read a study in the caller's reading transaction; its trials are read when iterated.

    Raises:
        StudyNotFoundError: if there is none.
        StudyFormatError: if it is damaged, also when its trials are iterated.
    """
    with storage.reading() as connection:
        study_id = find_study(connection, name)
        ids = connection.scalars(select_trial_ids(study_id).order_by(TRIALS.c.number)).all()
        (direction,) = storage.get_study_directions(study_id)
        attributes = storage.get_study_user_attrs(study_id)
        system_attributes = storage.get_study_system_attrs(study_id)
        with locating(study_id):
            stored = read_distributions(connection, study_id)
            distributions = {key: decode_distribution(text) for key, text in stored.items()}
    (metric, *_) = system_attributes.pop(METRIC_NAMES, [""])
    trials = _read_all_trials(storage, study_id, ids)
    return StoredStudy(
        name, metric, attributes, distributions, trials, direction, system_attributes
    )


def _read_all_trials(
    storage: "LeasedRDBStorage", study_id: int, ids: Sequence[int]
) -> Iterator[StoredTrial]:
    """Read trials batch after batch, so that few of them are in memory."""
    for first in range(0, len(ids), _BATCH):
        where = [TRIALS.c.trial_id.in_(ids[first : first + _BATCH])]
        with storage.reading() as connection:
            trials = read_whole_trials(connection, study_id, where)
        yield from trials


# ------------------------------------------------------------------ records of a study


def read_attribute_of_all(
    storage: "LeasedRDBStorage",
    study_id: int,
    key: str,
    numbers: Collection[int] | None = None,
) -> dict[int, Any]:
    """Read one attribute of all trials that have it, or of some, by trial number."""
    is_system = is_result(key)
    table = TRIAL_SYSTEM_ATTRS if is_system else TRIAL_USER_ATTRS
    parse: Callable[[str, str], Any]
    parse = parse_trial_system_attribute if is_system else parse_trial_attribute
    query = (
        sa.select(TRIALS.c.trial_id, TRIALS.c.number, table.c.value_json)
        .join(TRIALS, TRIALS.c.trial_id == table.c.trial_id)
        .where(TRIALS.c.study_id == study_id, table.c.key == key)
        .order_by(TRIALS.c.number)
    )
    if numbers is not None:
        query = query.where(TRIALS.c.number.in_(numbers))
    values = {}
    with storage.reading() as connection:
        for trial_id, number, stored in connection.execute(query):
            with locating(trial_id=trial_id):
                values[number] = parse(key, stored)
    return values


def read_audit_looks(storage: "LeasedRDBStorage", study_id: int) -> dict[str, AuditLook]:
    """Read the planned looks at the audited trials of a study so far, by name."""
    with storage.reading() as connection:
        stored = read_study_attrs(connection, STUDY_SYSTEM_ATTRS, study_id, [AUDIT_LOOKS])
        if AUDIT_LOOKS not in stored:
            return {}
        with locating(study_id):
            return parse_audit_looks(stored[AUDIT_LOOKS])


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
