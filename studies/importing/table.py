"""Results in a table: which columns are what, and the value of each row."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from studies.errors import TableError
from studies.importing.columns import (
    MISSING,
    REPLICATE_NAMES,
    choose_parameters,
    find_column,
    has_prefix,
    is_numeric,
    parse_column,
    parse_number,
    strip_prefix,
)
from studies.importing.options import ImportOptions
from studies.importing.rows import ResultRow, ResultTable
from studies.importing.table_file import TextTable, read_table, shown

_VALUE = re.compile(r"value|values_\d+")

_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "fail": TrialState.FAIL,
    "running": TrialState.RUNNING,
    "waiting": TrialState.WAITING,
}
"""States of Optuna; a column of other texts has no states."""

_SOUNDS_LIKE_MORE = re.compile(r"acc|auc|score|(^|_)f1|bleu|reward|(^|_)return|r2|precision|recall")


def read_results_table(path: Path, options: ImportOptions) -> ResultTable:
    """Read results from a table.

    Raises:
        TableError: if the file is no table of results; the message names the row and the column.
    """
    table = read_table(path)
    value = _find_value(table, options)
    curve = _find_curve(table, options, value)
    replicate = _find_replicate(table, options, value)
    states = _find_states(table, value)
    keys = [replicate] if replicate else []
    taken = {value, *curve.values(), *keys, *(["state"] * bool(states))}
    taken |= {name for name in table.header if _VALUE.fullmatch(name)}
    names, results, notes = choose_parameters(table, options, taken, keys)
    columns = {name: parse_column(table.column(name)) for name in names}
    labels = _strip_prefixes(names)
    numbers = _parse_replicates(table, replicate)
    rows, left_out = [], 0
    for i, (row, cells) in enumerate(table.rows):
        by_name = dict(zip(table.header, cells, strict=True))
        found, state = _parse_value(
            table, row, value, by_name[value], states[i] if states else None
        )
        if state in (TrialState.RUNNING, TrialState.WAITING):
            left_out += 1
            continue
        params = {labels[name]: columns[name][i] for name in names if columns[name][i] is not None}
        points = _parse_curve(table, row, curve, by_name)
        number = None if numbers is None else numbers[i]
        rows.append(ResultRow(f"row {row}", params, found, state, number, points))
    if left_out:
        notes.append(f"Rows of runs that are not finished were left out: {left_out:,}.")
    metric = options.metric or ("value" if _VALUE.fullmatch(value) else value)
    if options.maximize is None and _SOUNDS_LIKE_MORE.search(metric.lower()):
        notes.append(f"A lower {metric} is taken to be better: give --maximize if a higher one is.")
    is_optuna = any(name.startswith("params_") for name in table.header)
    # Rows that differ in nothing but their results are repeated runs.
    numbers_repeats = is_optuna or bool(results)
    return ResultTable(
        table.name, metric, bool(options.maximize), rows, notes, numbers_repeats, is_optuna
    )


def _find_value(table: TextTable, options: ImportOptions) -> str:
    if options.value is not None:
        return find_column(table, options.value, "--value")
    found = [name for name in table.header if _VALUE.fullmatch(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise TableError(
            f"{table.name}, row 1: the columns {', '.join(found)}: expected one value; choose "
            f"it with --value {found[0]}, and add --maximize if more is better"
        )
    numeric = [name for name in table.header if is_numeric(table.column(name))]
    if not numeric:
        raise TableError(
            f"{table.name}: no column of numbers: expected one with the value of each row, as "
            "'value'"
        )
    listed = ", ".join(map(shown, numeric[:20])) + (", …" if len(numeric) > 20 else "")
    raise TableError(
        f"{table.name}, row 1: no column 'value': expected the results in one column; choose it "
        f"with --value, of {listed}"
    )


def _find_curve(table: TextTable, options: ImportOptions, value: str) -> dict[int, str]:
    """Return the column of each step of a curve."""
    pattern = re.compile(re.escape(options.curve) + r"(\d{1,9})")
    return {
        int(match[1]): name
        for name in table.header
        if name != value and (match := pattern.fullmatch(name))
    }


def _find_replicate(table: TextTable, options: ImportOptions, value: str) -> str | None:
    if options.replicate is not None:
        return find_column(table, options.replicate, "--replicate")
    given = {find_column(table, name, "--parameters") for name in options.parameters}
    for name in table.header:
        if strip_prefix(name).lower() in REPLICATE_NAMES and name not in given and name != value:
            cells = set(table.column(name)) - MISSING
            if len(cells) > 1:
                return name
    return None


def _find_states(table: TextTable, value: str) -> list[TrialState] | None:
    """Return the states of Optuna's table; None without them."""
    if "state" not in table.header or value == "state":
        return None
    found = [_STATES.get(cell.rpartition(".")[2].lower()) for cell in table.column("state")]
    return None if None in found else [state for state in found if state is not None]


def _strip_prefixes(names: Sequence[str]) -> dict[str, str]:
    """Return the name of the parameter of each column; with its prefix where it is another's."""
    stripped = [strip_prefix(name) if has_prefix(name) else name for name in names]
    return {
        name: short if stripped.count(short) == 1 else name
        for name, short in zip(names, stripped, strict=True)
    }


def _parse_replicates(table: TextTable, name: str | None) -> list[int] | None:
    """Return the number of each row's replicate; texts are numbered in their order."""
    if name is None:
        return None
    values: list[Any] = parse_column(table.column(name))
    for (row, _), value in zip(table.rows, values, strict=True):
        if value is None:
            raise table.error(row, name, "it is empty", "the number of the repeated run")
    if all(type(value) is int and 0 <= value < 2**31 for value in values):
        return values
    places = {value: number for number, value in enumerate(dict.fromkeys(values), 1)}
    return [places[value] for value in values]


def _parse_value(
    table: TextTable, row: int, column: str, cell: str, state: TrialState | None
) -> tuple[float | None, TrialState]:
    """Return the value and the state of a row."""
    if state is not None and state is not TrialState.COMPLETE:
        return None, state
    if not cell:
        return None, TrialState.FAIL
    number = parse_number(cell)
    if number is None:
        raise table.error(
            row, column, f"{shown(cell)} is not a number",
            "a number, nothing for a run that failed, or nan for one that diverged; choose another "
            "column with --value",
        )  # fmt: skip
    return number, TrialState.COMPLETE if math.isfinite(number) else TrialState.FAIL


def _parse_curve(
    table: TextTable, row: int, curve: dict[int, str], cells: dict[str, str]
) -> dict[int, float]:
    points = {}
    for step, name in curve.items():
        if cells[name] in MISSING:
            continue
        number = parse_number(cells[name])
        if number is None:
            raise table.error(
                row, name, f"{shown(cells[name])} is not a number", "a number, or nothing"
            )
        points[step] = number
    return points
