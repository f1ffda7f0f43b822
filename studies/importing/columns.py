"""Columns of a table of texts: their values, and which of them are parameters."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from studies.importing.options import ImportOptions
from studies.importing.table_file import TextTable, shown

PREFIXES = ("params_", "config/", "config.", "param_", "params.")
"""Beginnings of the names of parameters in the tables of Optuna, Ray Tune, W&B and scikit-learn."""

REPLICATE_NAMES = ("replicate", "seed", "random_seed", "random_state")
"""Columns that number repeated runs, unless a user names another."""

MISSING = {"", "NA", "N/A", "NaN", "nan", "null", "<NA>"}
"""Cells without a parameter."""

_BOOKKEEPING = re.compile(
    r"number|state|status|datetime_(start|complete)|(user|system)_attrs_.*|"
    r"_(step|runtime|timestamp|wandb)|Created|ID|Sweep|Updated|(?-i:Runtime|Name|User|Notes|Tags)|"
    r"trial_id|date|timestamp|pid|host|hostname|node_ip|logdir|done|checkpoint_dir_name|experiment_tag|"
    r"time_(this_iter|total)_s|time_since_restore|iterations_since_restore|training_iteration",
    re.IGNORECASE,
)
"""Columns that Optuna, W&B and Ray Tune write next to parameters and results; words that may name
a parameter in lower case only as W&B writes them."""

_MEASURED = re.compile(
    r"(.*[\W_])?(loss|acc|accuracy|auc|f1|score|error|perplexity|ppl|mse|mae|runtime|elapsed)|"
    r"(.*[\W_])?(duration|wall_?clock|flops|mem|memory(allocated)?([\W_].*)?)|"
    r"(n|num)_param(eter)?s|param(eter)?_count|relative time .*|"
    r"((run|wall|epoch|step|train|training|fit|eval|total|elapsed)[\W_]?)?(time|seconds)(_m?s)?|"
    r"epoch|best_.*|(final|last)_(epoch|step)",
    re.IGNORECASE,
)
"""Names of quantities that a program measures. Not every time is one: ``decay_time`` may well be a
parameter."""

_NUMBERING = re.compile(r"unnamed: 0|index|idx|id|#|no|nr|row|run|trial|experiment|job")
"""Columns that number the rows, in lower case."""

_SCATTERED = 0.9
"""Share of rows with another value from which nearly every row has one."""

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
    table: TextTable, options: ImportOptions, taken: set[str], keys: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """Choose the columns that are parameters.

    Args:
        table: the table.
        options: choices of the user.
        taken: columns that are something else.
        keys: the column among them that numbers repeated runs, if there is one.

    Returns:
        The columns, others that were judged to be results, and notes about what was left out or is
        doubtful.

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
        chosen = list(dict.fromkeys(chosen))
        return chosen, [], _warn_of_isolation(table, chosen, keys)
    ignored = {find_column(table, name, "--ignore") for name in options.ignore}
    others = [name for name in table.header if name not in taken | ignored]
    if any(map(has_prefix, others)):
        chosen = [name for name in others if has_prefix(name)]
        return chosen, [], _warn_of_isolation(table, chosen, keys)
    return _guess_parameters(table, others, keys)


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


def _guess_parameters(
    table: TextTable, names: Sequence[str], keys: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """Choose parameters by what is in the columns, and say what was left out."""
    chosen = []
    left_out: dict[str, list[str]] = {"constant": [], "bookkeeping": [], "unique": []}
    for name in names:
        cells = [cell for cell in table.column(name) if cell not in MISSING]
        is_unique = len(set(cells)) == len(table.rows) > 2
        if _BOOKKEEPING.fullmatch(name):
            left_out["bookkeeping"].append(name)
        elif len(set(table.column(name))) == 1 and len(table.rows) > 1:
            left_out["constant"].append(name)
        elif not name or (is_unique and _is_label(name, cells)):
            left_out["unique"].append(name or "1, without a name,")
        else:
            chosen.append(name)
    results = left_out["results"] = _find_results(table, chosen, keys)
    chosen = [name for name in chosen if name not in results]
    for kind in ("unique", "results"):  # a single parameter of which each row has another value
        if not chosen:
            chosen = [name for name in left_out[kind] if name in table.header]
            left_out[kind] = [name for name in left_out[kind] if name not in chosen]
    reasons = {
        "constant": "have one value",
        "bookkeeping": "are not parameters, judged by their names,",
        "unique": "name or number the rows",
        "results": "are results, judged by names and values (--parameters keeps them),",
    }
    notes = [
        f"Columns that {reasons[kind]} were left out: {_join(found)}."
        for kind, found in left_out.items()
        if found
    ]
    if warnings := _warn_of_isolation(table, chosen, keys):
        return chosen, left_out["results"], notes + warnings
    scattered = [name for name in chosen if _is_scattered(table.column(name))]
    if scattered and len(chosen) > 1:
        notes.append(
            f"Nearly every row has another value of {_join(scattered)}: taken as a continuous "
            "parameter, not as a result; leave results out with --ignore."
        )
    return chosen, left_out["results"], notes


def _find_results(table: TextTable, names: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return the columns of numbers that are results of the runs, not parameters.

    Results have the name of a measured quantity, unless their values repeat and rows differ in them
    alone. Columns of which nearly every row has another value are results as well if the others are
    a complete grid: a sampler that draws one value does not draw each combination of others once.
    """
    scattered = [name for name in names if _is_scattered(table.column(name))]
    results: list[str] = []
    for name in _sort_by_values(table, names):
        if _MEASURED.fullmatch(name) and is_numeric(table.column(name)):
            rest = [each for each in names if each not in (*results, *scattered, name)] + [*keys]
            is_needed = _is_distinct(table, [*rest, name]) and not _is_distinct(table, rest)
            if name in scattered or not is_needed:
                results.append(name)
    rest = [name for name in names if name not in (*results, *scattered)]
    if _is_grid(table, rest, keys):
        results += [name for name in scattered if name not in results]
    return [name for name in names if name in results]


def _is_grid(table: TextTable, names: Sequence[str], keys: Sequence[str]) -> bool:
    """Return whether the rows are each combination of the values of some columns, once."""
    counts = [len(set(table.column(name))) for name in (*names, *keys)]
    is_complete = len(counts) > 1 and math.prod(counts) == len(table.rows)
    return is_complete and _is_distinct(table, [*names, *keys])


def _warn_of_isolation(table: TextTable, names: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Say which columns leave rows without a partner, from which effects are estimated."""
    if _is_grid(table, names, keys):
        return []
    for name in reversed(names):  # results follow parameters in most tables
        if _is_grid(table, [each for each in names if each != name], keys):
            name = shown(strip_prefix(name)).strip("'")
            return [
                f"Without {name} the rows are a complete grid. If it is a result, leave it out "
                f"with --ignore {name}: rows that differ in it as well are no matched pair."
            ]
    found, total = _count_paired(table, names), len(table.rows)
    by_values = _sort_by_values(table, names)
    for count in range(1, min(len(names), 6) if 2 * found < total else 0):
        left_out, rest = by_values[:count], by_values[count:]
        paired = _count_paired(table, rest)
        if 2 * paired >= total and _is_distinct(table, [*rest, *keys]):
            return [
                f"Only {found:,} of {total:,} rows have a partner that differs in one parameter, "
                f"from which effects are estimated; without {_join(left_out)} {paired:,} have one: "
                f"leave results out with --ignore {_join(map(strip_prefix, left_out), ',')}."
            ]
    return []


def _count_paired(table: TextTable, names: Sequence[str]) -> int:
    """Count the rows that differ from another one in one of some columns, not a scattered one."""
    columns = [table.column(name) for name in names]
    # Hashes of texts, whose sums collide by chance only: those of tuples are nearly linear.
    codes = []
    for i, column in enumerate(columns):
        known = {cell: hash(f"{i} {cell}") for cell in set(column)}
        codes.append(np.array([known[cell] for cell in column]))
    rows = sum(codes)
    is_paired = np.zeros(len(table.rows), dtype=bool)
    for column, own in zip(columns, codes, strict=True):
        if not _is_scattered(column):
            _, firsts, groups = np.unique(rows - own, return_index=True, return_inverse=True)
            differs = np.bincount(groups, own != own[firsts[groups]]) > 0
            is_paired |= differs[groups]
    return int(is_paired.sum())


def _sort_by_values(table: TextTable, names: Sequence[str]) -> list[str]:
    """Sort columns by their number of values, the largest first."""
    return sorted(names, key=lambda name: -len(set(table.column(name))))


def _is_distinct(table: TextTable, names: Sequence[str]) -> bool:
    """Return whether no two rows are equal in some columns."""
    return len(set(zip(*map(table.column, names), strict=True))) == len(table.rows)


def _is_scattered(cells: Sequence[str]) -> bool:
    """Return whether nearly every row has another number; runs that failed may have none."""
    known = [cell for cell in cells if cell not in MISSING]
    is_varied = len(set(known)) >= _SCATTERED * len(known) and len(known) > 2
    return is_varied and 2 * len(known) > len(cells) and is_numeric(known)


def is_numeric(cells: Sequence[str]) -> bool:
    """Return whether a column has numbers only, one at least."""
    known = [cell for cell in cells if cell not in MISSING]
    return bool(known) and all(parse_number(cell) is not None for cell in known)


def _join(names: Iterable[str], comma: str = ", ") -> str:
    return comma.join(shown(name).strip("'") for name in names)


def _is_label(name: str, cells: Sequence[str]) -> bool:
    """Return whether distinct cells name or number their rows: texts, or numbers of rows."""
    return not all(map(_is_finite, cells)) or _NUMBERING.fullmatch(name.lower()) is not None
