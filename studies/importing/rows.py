"""Rows of results, of a table or of a study of plain Optuna, and the trials that they become."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from studies.attributes import FAILURE, RESULT_NAMES, Failure
from studies.errors import TableError
from studies.space import REPLICATE
from studies.storage.counts import count_statuses
from studies.storage.trials import StoredTrial

MAX_PARAMETERS = 100
"""Number of parameters above which results are refused."""


@dataclass(frozen=True)
class ResultRow:
    """Result of one run.

    Attributes:
        place: where it is in the source, for a message: ``row 7``.
        params: parameters that it has.
        value: its value; None if it has none, NaN or infinite if it diverged.
        state: state of the run; of a run without a value it is not ``COMPLETE``.
        replicate: number that distinguishes runs of equal parameters; None without one.
        curve: intermediate values by step.
        started: time of its start, UTC; None if unknown.
        completed: time of its end.
    """

    place: str
    params: dict[str, Any]
    value: float | None
    state: TrialState = TrialState.COMPLETE
    replicate: int | None = None
    curve: Mapping[int, float] = field(default_factory=dict)
    started: datetime | None = None
    completed: datetime | None = None


@dataclass(frozen=True)
class ResultTable:
    """Results to import.

    Attributes:
        source: file or study that they were read from, for a reader.
        metric: name of the value.
        maximize: whether a higher value is better.
        rows: the results.
        notes: what was decided or left out, one sentence each.
        numbers_repeats: whether runs of equal parameters without a replicate are expected; they are
            numbered then.
        is_adaptive: whether a sampler may have chosen rows by the results of earlier ones.
        distributions: distribution of each parameter, as far as the source says.
        study: name of the study that it is from; "" for a table.
    """

    source: str
    metric: str
    maximize: bool
    rows: list[ResultRow]
    notes: list[str] = field(default_factory=list)
    numbers_repeats: bool = False
    is_adaptive: bool = False
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)
    study: str = ""


def check_rows(table: ResultTable) -> ResultTable:
    """Check results, and name and number them so that they can be stored.

    Raises:
        TableError: if there are no parameters, no value, or two runs that nothing distinguishes.
    """
    names = list(dict.fromkeys(name for row in table.rows for name in row.params))
    if not names:
        raise TableError(f"{table.source}: no parameter: expected one or more; name --parameters")
    if len(names) > MAX_PARAMETERS:
        raise TableError(
            f"{table.source}: {len(names)} parameters: expected at most {MAX_PARAMETERS}; choose "
            "some with --parameters"
        )
    if not any(row.state is TrialState.COMPLETE for row in table.rows):
        raise TableError(
            f"{table.source}: no row is complete, with a finite value: expected one or more"
        )
    return _number_repeats(_rename(table, names))


def _rename(table: ResultTable, names: Sequence[str]) -> ResultTable:
    """Rename parameters whose names are those of other columns of the tables of results."""
    new_names: dict[str, str] = {}
    for name in names:
        new = name
        taken = {_display(each) for each in new_names.values()}
        others = {_display(each) for each in names if each != name}
        while (
            new in RESULT_NAMES
            or _display(new) in taken
            or (new != name and _display(new) in others)
        ):
            new += "_"
        new_names[name] = new
    renamed = {name: new for name, new in new_names.items() if name != new}
    if not renamed:
        return table
    rows = [
        replace(row, params={new_names[name]: value for name, value in row.params.items()})
        for row in table.rows
    ]
    notes = [
        f"The parameter {name} is stored as {new}: reports have another column of that name."
        for name, new in renamed.items()
    ]
    distributions = {new_names.get(name, name): each for name, each in table.distributions.items()}
    return replace(table, rows=rows, notes=[*table.notes, *notes], distributions=distributions)


def _display(name: str) -> str:
    """Return a name as reports show it."""
    return name.replace("_", " ")


def _number_repeats(table: ResultTable) -> ResultTable:
    """Distinguish runs of equal parameters, or refuse them."""
    seen: dict[Any, ResultRow] = {}
    repeats = 0
    for row in table.rows:
        key = _key(row)
        if key not in seen:
            seen[key] = row
        elif not table.numbers_repeats:
            first = seen[key]
            raise TableError(
                f"{table.source}: {first.place} and {row.place} have the same parameters"
                f"{' and the same replicate' if row.replicate is not None else ''}: expected rows "
                "that differ; name the column that numbers repeated runs with --replicate, or more "
                "--parameters"
            )
        else:
            repeats += 1
    if not repeats:
        return table
    # A number of its own for each run: no two runs of different parameters belong together.
    rows = [replace(row, replicate=number) for number, row in enumerate(table.rows)]
    runs = "run repeats" if repeats == 1 else "runs repeat"
    note = f"{repeats:,} {runs} the parameters of an earlier one: they count as replicates."
    return replace(table, rows=rows, notes=[*table.notes, note])


def _key(row: ResultRow) -> Any:
    # In Python true equals 1, which is another value.
    params = ((name, isinstance(value, bool), value) for name, value in row.params.items())
    return frozenset(params), row.replicate


def to_trials(
    table: ResultTable,
) -> tuple[dict[str, BaseDistribution], list[StoredTrial]]:
    """Return the distributions and the trials of checked results."""
    values: dict[str, list[Any]] = {}
    for row in table.rows:
        for name, value in row.params.items():
            values.setdefault(name, []).append(value)
    if any(row.replicate is not None for row in table.rows):
        values[REPLICATE] = [row.replicate for row in table.rows if row.replicate is not None]
    distributions = {
        name: table.distributions.get(name) or find_distribution(found)
        for name, found in values.items()
    }
    trials = [
        StoredTrial(
            row.params | ({} if row.replicate is None else {REPLICATE: row.replicate}),
            {FAILURE: Failure.DIVERGED} if _has_diverged(row) else {},
            state=row.state,
            value=row.value if row.state is TrialState.COMPLETE else None,
            started=row.started,
            completed=row.completed,
            is_imported=True,
            curve=dict(row.curve),
        )
        for row in table.rows
    ]
    return distributions, trials


def _has_diverged(row: ResultRow) -> bool:
    return row.value is not None and not math.isfinite(row.value)


def find_distribution(values: Iterable[Any]) -> BaseDistribution:
    """Return the distribution from which values may be: a range of numbers, or categories."""
    found = list(dict.fromkeys(values))
    if all(type(value) is int for value in found):
        return IntDistribution(min(found), max(found))
    if all(type(value) in (int, float) for value in found):
        return FloatDistribution(float(min(found)), float(max(found)))
    return CategoricalDistribution(found)


def describe_counts(trials: Iterable[StoredTrial]) -> str:
    """Describe the runs by state: ``24 complete, 2 diverged``."""
    counts = asdict(count_statuses(Counter(trial.status for trial in trials)))
    return ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
