"""Columns of a table of texts: their values, and which of them are parameters."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from studies.importing.options import ImportOptions
from studies.importing.table_file import TextTable, shown

PREFIXES = ("params_", "config/", "config.", "param_", "params.")
"""Beginnings of the names of parameters in the tables of Optuna, Ray Tune, W&B and scikit-learn."""

REPLICATE_NAMES = ("replicate", "seed", "random_seed", "random_state")
"""Columns that number repeated runs, unless a user names another."""

MISSING = {"", "NA", "N/A", "NaN", "nan", "null", "<NA>"}
"""Cells without a parameter."""

_BOOKKEEPING = re.compile(
    r"(number|state|status|duration|datetime_(start|complete)|(user|system)_attrs_.*|"
    r"_(step|runtime|timestamp|wandb)|Created|Runtime|State|Name|ID|User|Notes|Tags|Sweep|Updated|"
    r"trial_id|date|timestamp|pid|hostname|node_ip|logdir|done|checkpoint_dir_name|experiment_tag|"
    r"time_(this_iter|total)_s|time_since_restore|iterations_since_restore|training_iteration)"
)
"""Columns that Optuna, W&B and Ray Tune write next to parameters and results."""

_NUMBERING = re.compile(r"unnamed: 0|index|idx|id|#|no|nr|row|run|trial|experiment|job")
"""Columns that number the rows, in lower case."""

_INTEGER = re.compile(r"[+-]?\d{1,15}")


def parse_column(cells: Sequence[str]) -> list[Any]:
    """Parse the cells of a parameter: numbers, true and false, or texts; None where missing."""
    known = [cell for cell in cells if cell not in MISSING]
    parse = _find_parser(known)
    return [None if cell in MISSING else parse(cell) for cell in cells]


def _find_parser(cells: Sequence[str]) -> Callable[[str], Any]:
    if all(cell.lower() in ("true", "false") for cell in cells):
        return lambda cell: cell.lower() == "true"
    if all(map(_INTEGER.fullmatch, cells)):
        return int
    if all(map(_is_finite, cells)):
        return float
    return str


def _is_finite(cell: str) -> bool:
    number = parse_number(cell)
    return number is not None and math.isfinite(number)


def parse_number(cell: str) -> float | None:
    """Return the number in a cell, which may be infinite or NaN; None if there is none."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def strip_prefix(name: str) -> str:
    """Return the name of a parameter without the prefix of the program that wrote the table."""
    for prefix in PREFIXES:
        if name.startswith(prefix) and len(name) > len(prefix):
            return name.removeprefix(prefix)
    return name


def has_prefix(name: str) -> bool:
    """Return whether a column is marked as a parameter."""
    return strip_prefix(name) != name


def choose_parameters(
    table: TextTable, options: ImportOptions, taken: set[str]
) -> tuple[list[str], list[str]]:
    """Choose the columns that are parameters.

    Args:
        table: the table.
        options: choices of the user.
        taken: columns that are something else.

    Returns:
        The columns, and notes about others that were left out.

    Raises:
        TableError: if a column that the user names does not exist, or is taken.
    """
    for option, names in (("--parameters", options.parameters), ("--ignore", options.ignore)):
        for name in names:
            find_column(table, name, option)
    if options.parameters:
        chosen = [find_column(table, name, "--parameters") for name in options.parameters]
        if both := [name for name in chosen if name in taken]:
            raise table.error(
                1, both[0], "it is named in --parameters and as another column", "one of them"
            )
        return list(dict.fromkeys(chosen)), []
    ignored = {find_column(table, name, "--ignore") for name in options.ignore}
    others = [name for name in table.header if name not in taken | ignored]
    if any(map(has_prefix, others)):
        return [name for name in others if has_prefix(name)], []
    return _guess_parameters(table, others)


def find_column(table: TextTable, name: str, option: str) -> str:
    """Return a column that a user names, with or without its prefix.

    Raises:
        TableError: if it does not exist.
    """
    if name in table.header:
        return name
    found = [each for each in table.header if strip_prefix(each) == name]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(table.header[:30]) + (", …" if len(table.header) > 30 else "")
    raise table.error(1, name, f"{option} names it, and the header does not", f"one of {listed}")


def _guess_parameters(table: TextTable, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Choose parameters by what is in the columns, and say what was left out."""
    chosen, numbers, notes = [], [], []
    left_out: dict[str, list[str]] = {"constant": [], "bookkeeping": [], "unique": []}
    for name in names:
        cells = [cell for cell in table.column(name) if cell not in MISSING]
        is_distinct = len(set(cells)) == len(cells) > 2
        is_unique = is_distinct and len(cells) == len(table.rows)
        if _BOOKKEEPING.fullmatch(name):
            left_out["bookkeeping"].append(name)
        elif len(set(table.column(name))) == 1 and len(table.rows) > 1:
            left_out["constant"].append(name)
        elif not name or (is_unique and _is_label(name, cells)):
            left_out["unique"].append(name or "1, without a name,")
        else:
            chosen.append(name)
            # Runs that failed have no results: the column of a result may have empty cells.
            if is_distinct and 2 * len(cells) > len(table.rows):
                numbers.append(name)
    if not chosen:  # a single parameter of which each row has another value
        chosen = [name for name in left_out["unique"] if name in table.header]
        left_out["unique"] = [name for name in left_out["unique"] if name not in chosen]
    reasons = {
        "constant": "have one value",
        "bookkeeping": "are not parameters, judged by their names,",
        "unique": "name or number the rows",
    }
    for kind, found in left_out.items():
        if found:
            listed = ", ".join(shown(name).strip("'") for name in found)
            notes.append(f"Columns that {reasons[kind]} were left out: {listed}.")
    if numbers and len(chosen) > 1:
        listed = ", ".join(shown(name).strip("'") for name in numbers)
        notes.append(
            f"Each row has another value of {listed}: taken as a continuous parameter, not as a "
            "result; leave results out with --ignore."
        )
    return chosen, notes


def _is_label(name: str, cells: Sequence[str]) -> bool:
    """Return whether distinct cells name or number their rows: texts, or numbers of rows."""
    return not all(map(_is_finite, cells)) or _NUMBERING.fullmatch(name.lower()) is not None
