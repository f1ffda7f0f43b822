"""Results in a table that any program wrote: what its columns are, and the runs in its rows.

pandas reads the table. Roles of columns are guessed from names and values, shown in one line each,
and can be overridden. The value is read as a text, because an empty cell is a run that failed and
``nan`` one that diverged.
"""

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import lzma
import math
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from studies.attributes import FAILURE, RESULT_NAMES, Failure
from studies.errors import TableError
from studies.space import REPLICATE
from studies.storage.trials import StoredTrial
from studies.text import shorten, to_line

if TYPE_CHECKING:
    import pandas as pd

    from studies.importing import ImportOptions

MAX_BYTES = 256 * 2**20
"""Size above which a table is refused, unpacked."""

MAX_ROWS, MAX_COLUMNS = 200_000, 10_000
"""Numbers above which a table is refused; curves have a column for each step."""

_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""Compressed files by the bytes with which they begin."""

_MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "<NA>"]
"""Cells without a parameter."""

_DECIMAL_COMMA = re.compile(r"[;\t][+-]?\d+,\d+([eE][+-]?\d+)?\s*(;|\t|$)", re.MULTILINE)

_PARAMETER = re.compile(r"(params?_|config[/.]|params\.)(?!count$|total$)(?=.)")
"""Prefixes of parameters in the tables of Optuna, scikit-learn, Ray, W&B and MLflow."""

_METRIC = "metrics."
"""Prefix of the values in the tables of MLflow."""

_VALUE = re.compile(r"value|values_\d+")

_REPLICATE_NAMES = ("replicate", "seed", "random_seed", "random_state")
"""Columns that number repeated runs, unless a user names another."""

_STATES = {
    **dict.fromkeys(("complete", "completed", "finished", "terminated"), TrialState.COMPLETE),
    "pruned": TrialState.PRUNED,
    **dict.fromkeys(("fail", "failed", "crashed", "killed", "error"), TrialState.FAIL),
    **dict.fromkeys(("running", "waiting", "pending", "scheduled"), TrialState.RUNNING),
}
"""States of Optuna, W&B, MLflow and Ray; a column that has another word has no states."""

_BOOKKEEPING = re.compile(
    r"_(step|runtime|timestamp|wandb)|ID|Created|Sweep|Updated|Commit|Github.*|Hostname|Job Type|"
    r"(?-i:Runtime|Name|User|Notes|Tags|Group|Agent|Description|(Start|End) Time|GPU (Count|Type))|"
    r"number|state|status|datetime_(start|complete)|(user|system)_attrs_.*|run_id|experiment_id|"
    r"artifact_uri|(start|end)_time|tags\..*|trial_id|date|timestamp|pid|host|node_ip|logdir|done",
    re.IGNORECASE,
)
"""Columns that W&B, Optuna and MLflow write next to parameters and results; words that may name a
parameter in lower case only as W&B writes them."""

_MEASURED = re.compile(
    r"(.*[\W_])?(loss|acc|accuracy|auc|f1|score|error|perplexity|ppl|mse|mae|runtime|elapsed)|"
    r"(.*[\W_])?(duration|wall_?clock|flops|mem|memory(allocated)?([\W_].*)?)|"
    r"(n|num)_param(eter)?s|param(eter)?s?_(count|total)|relative time .*|metrics\..*|"
    r"((run|wall|epoch|step|train|training|fit|eval|total|elapsed)[\W_]?)?(time|seconds)(_m?s)?|"
    r"epoch|best_.*|(final|last)_(epoch|step)",
    re.IGNORECASE,
)
"""Names of quantities that a program measures. Not every time is one: ``decay_time`` may well be a
parameter."""

_NUMBERING = re.compile(r"unnamed: 0|index|idx|id|#|no|nr|row|run|trial|experiment|job")
"""Columns that number the rows, in lower case."""

_SOUNDS_LIKE_MORE = re.compile(r"acc|auc|score|(^|_)f1|bleu|reward|(^|_)return|r2|precision|recall")

_LABELS = "they name or number the rows"
_RESULTS = "they are results, judged by names and values (--parameters keeps them)"


@dataclass
class ImportedRuns:
    """Runs of a study to import.

    Attributes:
        source: file or study that they were read from, for a reader.
        metric: name of the value.
        maximize: whether a higher value is better.
        roles: what the columns are, one line for each role.
        notes: what was decided or is doubtful, one sentence each.
        numbers_repeats: whether runs of equal parameters are expected; they are numbered then.
        is_adaptive: whether a sampler may have chosen runs by the results of earlier ones.
        trials: the runs, with their replicate among the parameters.
        places: where each run is in the source, for a message: ``row 7``.
        distributions: distribution of each parameter, as far as the source says.
    """

    source: str
    metric: str
    maximize: bool
    roles: list[str]
    notes: list[str]
    numbers_repeats: bool
    is_adaptive: bool
    trials: list[StoredTrial] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)


# ------------------------------------------------------------------ tables


@dataclass
class _Table:
    """A table: numbers, true and false, and texts; of the value texts only.

    Attributes:
        source: file or study that it is of, for a reader.
        frame: its columns; of a file the index is the number of the row, the header being row 1.
        row_name: what a row is, for a message.
        value: column of the value.
    """

    source: str
    frame: "pd.DataFrame"
    row_name: str = "row"
    value: str = ""

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(map(str, self.frame.columns))

    def error(self, row: Any, column: str, found: str, expected: str) -> TableError:
        place = f"{self.source}, {self.row_name} {row}, column {shorten(column, 60)!r}"
        return TableError(f"{place}: {found}: expected {expected}")

    def find(self, name: str, option: str) -> str:
        """Return a column that a user names, with or without the prefix of a program."""
        found = [each for each in self.names if name in (each, strip_prefix(each))]
        if name in found or len(found) == 1:
            return name if name in found else found[0]
        problem = f"{option} names it, and the header does not"
        raise self.error(1, name, problem, f"one of {_join(self.names, 30)}")

    def is_distinct(self, names: Sequence[str]) -> bool:
        """Return whether no two rows are equal in some columns."""
        return bool(names) and not self.frame.duplicated(list(names)).any()

    def is_grid(self, names: Sequence[str]) -> bool:
        """Return whether the rows are each combination of the values of some columns, once."""
        counts = [self.frame[name].nunique(dropna=False) for name in names]
        is_complete = len(counts) > 1 and math.prod(counts) == len(self.frame)
        return is_complete and self.is_distinct(names)

    def is_number(self, name: str) -> bool:
        return self.frame[name].dtype.kind in "iuf"

    def is_scattered(self, name: str) -> bool:
        """Return whether nearly every row has another number; runs that failed may have none."""
        values, known = self.frame[name].nunique(), self.frame[name].count()
        is_varied = values >= 0.9 * known and known > max(2, len(self.frame) / 2)
        return self.is_number(name) and is_varied

    def count_paired(self, names: Sequence[str]) -> int:
        """Count the configurations of which another differs in one column."""
        rows, generator = self.frame[list(names)].drop_duplicates(), np.random.default_rng(0)
        # The sum of the random numbers of some cells stands for these cells.
        numbers = rows.apply(
            lambda cells: generator.integers(2**62, size=len(cells) + 1)[cells.factorize()[0]]
        )
        others = numbers.rsub(numbers.sum(axis=1), axis=0)
        return int(others.apply(lambda sums: sums.duplicated(keep=False)).any(axis=1).sum())

    def list_values(self, name: str) -> list[Any]:
        """List the cells of a parameter as Python's values; None where missing."""
        column = self.frame[name]
        if column.isna().any():
            column = column.convert_dtypes()  # integers are floats next to missing cells
        if self.is_number(name) and np.isinf(column.dropna().astype(float)).any():
            column = column.astype("string")  # a distribution has finite bounds
        return column.astype(object).where(column.notna(), None).tolist()

    def list_numbers(self, name: str) -> list[float]:
        """List the numbers of a column; NaN for an empty cell."""
        if self.is_number(name):
            cells = self.frame[name].astype("Float64")
            return cells.to_numpy(float, na_value=math.nan).tolist()
        numbers = []
        for row, cell in self.frame[name].astype(object).fillna("").items():
            try:
                numbers.append(math.nan if cell == "" else float(str(cell).replace("_", "?")))
            except ValueError as error:
                found = f"{shorten(cell, 60)!r} is not a number"
                expected = "a number, nothing for a run that failed, or nan for one that diverged"
                raise self.error(row, name, found, expected) from error
        return numbers


def read_table(path: Path, options: "ImportOptions") -> ImportedRuns:
    """Read the runs in a file: CSV, compressed or not.

    Raises:
        TableError: if it is no table of results; the message names the row and the column.
    """
    name = to_line(path.name)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
            for opener in (_OPENERS[each] for each in _OPENERS if content.startswith(each)):
                file.seek(0)
                content = opener(file).read(MAX_BYTES + 1)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        reason = getattr(error, "strerror", None) or f"the compressed file is damaged ({error})"
        raise TableError(f"{to_line(str(path))} cannot be read: {reason}") from error
    if len(content) > MAX_BYTES:
        raise _too_large(name)
    if content.startswith(b"PK\x03\x04"):
        raise TableError(f"{name} is an Excel workbook or another archive: save the sheet as CSV")
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise TableError(f"{name}, row {row} is not UTF-8: save the table as CSV UTF-8") from error
    return read_frame(name, _parse_csv(name, text.lstrip("\r\n"), options), options)


def _too_large(name: str) -> TableError:
    return TableError(
        f"{name} has more than {MAX_ROWS:,} rows, {MAX_COLUMNS:,} columns or "
        f"{MAX_BYTES // 2**20} MiB: expected a smaller table"
    )


def _parse_csv(name: str, text: str, options: "ImportOptions") -> "pd.DataFrame":
    """Parse CSV, with the delimiter that occurs most in the header; its index is row numbers."""
    import pandas as pd

    header = re.sub(r'"[^"]*"', "", text.partition("\n")[0])
    separator = max(",;\t", key=header.count)
    decimal = "," if separator != "," and _DECIMAL_COMMA.search(text) else "."
    is_exact = tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1)  # without being told
    settings: dict[str, Any] = {
        "sep": separator,
        "decimal": decimal,
        "skip_blank_lines": False,  # so that rows have their numbers
        "skipinitialspace": True,
        "keep_default_na": False,
        "dtype_backend": "numpy_nullable",
        **({} if is_exact else {"float_precision": "round_trip"}),
    }
    try:
        columns = pd.read_csv(io.StringIO(text), nrows=0, **settings)
        value = _find_value(_Table(name, columns), options)
        settings["na_values"] = {each: _MISSING for each in columns if each != value}
        _require_full_rows(name, text, separator, len(columns.columns))
        rows = MAX_ROWS + 1
        frame = pd.read_csv(io.StringIO(text), nrows=rows, dtype={value: str}, **settings)
    except pd.errors.EmptyDataError as error:
        raise TableError(f"{name} is empty: expected a table with a header") from error
    except pd.errors.ParserError as error:
        found = to_line(str(error).rpartition("error: ")[2].strip())
        raise TableError(f"{name} is not valid CSV: {found}") from error
    if len(frame) > MAX_ROWS or frame.shape[1] > MAX_COLUMNS:
        raise _too_large(name)
    if not isinstance(frame.index, pd.RangeIndex):
        raise TableError(f"{name}, row 2 has more cells than the header: expected as many")
    if decimal == ",":
        frame[value] = frame[value].str.replace(",", ".")
    texts = frame.select_dtypes(["string", "object"]).apply(lambda column: column.str.strip())
    frame = frame.assign(**texts).set_axis(range(2, len(frame) + 2))
    has_cells = (frame[value].fillna("") != "") | frame.drop(columns=value).notna().any(axis=1)
    cells: pd.DataFrame = frame[has_cells]
    return cells


def _require_full_rows(name: str, text: str, separator: str, count: int) -> None:
    """Require as many cells in each row as the header has: pandas would add empty ones."""
    csv.field_size_limit(MAX_BYTES)
    with contextlib.suppress(csv.Error):  # pandas says what is wrong
        for row, cells in enumerate(csv.reader(io.StringIO(text), delimiter=separator), 1):
            if len(cells) < count and any(map(str.strip, cells)):
                raise TableError(f"{name}, row {row} has {len(cells)} cells: expected {count}")


def _find_value(table: _Table, options: "ImportOptions") -> str:
    if options.value is not None:
        return table.find(options.value, "--value")
    found = [name for name in table.names if _VALUE.fullmatch(name)]
    if len(found) == 1:
        return found[0]
    problem = f"the columns {_join(found)}" if found else "no column 'value'"
    raise TableError(
        f"{table.source}, row 1: {problem}: expected the results in one column; choose it with "
        f"--value, of {_join(found or table.names, 20)}, and add --maximize if more is better"
    )


def read_frame(
    source: str, frame: "pd.DataFrame", options: "ImportOptions", row_name: str = "row"
) -> ImportedRuns:
    """Read the runs in a DataFrame, whose named index is columns as well.

    Args:
        source: file or study that it is of, for a reader.
        frame: the table.
        options: what the columns are.
        row_name: what a row is, for a message.

    Raises:
        TableError: if it is no table of results; the message names the row and the column.
    """
    if frame.index.names != [None]:
        frame = frame.reset_index()
    frame = frame.rename(columns=str)
    if frame.empty or frame.columns.has_duplicates:
        raise TableError(f"{source}: expected rows, and columns of distinct names")
    table = _Table(source, frame, row_name)
    table.value = value = _find_value(table, options)
    for column in table.names:
        if frame[column].dtype == object:
            frame[column] = frame[column].convert_dtypes()
        if column == value or frame[column].dtype.kind not in "iufb":
            frame[column] = frame[column].astype(object).map(str, na_action="ignore")
    frame[value] = frame[value].fillna("")
    return _read_runs(table, options)


# ------------------------------------------------------------------ roles of columns


def _read_runs(table: _Table, options: "ImportOptions") -> ImportedRuns:
    """Read the runs in a table, whose cells have the types of their columns."""
    value, pattern = table.value, re.compile(re.escape(options.curve) + r"(\d{1,9})")
    matches = {name: pattern.fullmatch(name) for name in table.names if name != value}
    curve = {name: int(match[1]) for name, match in matches.items() if match}
    states, replicate = _find_states(table), _find_replicate(table, options)
    keys = [] if replicate is None else [replicate]
    taken = {value, states, *curve, *keys, *filter(_VALUE.fullmatch, table.names)}
    columns, left_out = _choose_parameters(table, options, taken, keys)
    has_prefix = any(map(_PARAMETER.match, columns))
    names, notes = _name_parameters(columns)
    metric = "value" if _VALUE.fullmatch(value) else value.removeprefix(_METRIC)
    metric = options.metric or metric
    roles = {
        "value": f"{metric} ({'higher' if options.maximize else 'lower'} is better)",
        "parameters": _join(names.values(), 100),
        "replicates": _join(keys),
        "states": None if states == "state" else states,  # Optuna's name says it
        "curve": _join(curve, 3),
    }
    listed = [f"left out: {_join(each)}, because {why}" for why, each in left_out.items() if each]
    if not options.parameters and not has_prefix:
        notes += _warn_of_results(table, columns, keys)
    if options.maximize is None and _SOUNDS_LIKE_MORE.search(metric.lower()):
        notes.append(f"A lower {metric} is taken to be better: give --maximize if a higher one is.")
    runs = ImportedRuns(
        source=table.source,
        metric=metric,
        maximize=bool(options.maximize),
        roles=[*(f"{role}: {each}" for role, each in roles.items() if each), *listed],
        notes=notes,
        # Rows that differ in nothing but their results are repeated runs.
        numbers_repeats=has_prefix or bool(left_out.get(_RESULTS)),
        is_adaptive=any(name.startswith("params_") for name in columns),
    )
    _read_rows(table, runs, names, curve, states, replicate)
    return runs


def _find_states(table: _Table) -> str | None:
    """Return the column whose cells are all states of runs; None without one."""
    for name in table.names:
        if name.lower() in ("state", "status") and name != table.value:
            words = table.frame[name].dropna().astype(str)
            if len(words) and {*map(_to_word, words)} <= _STATES.keys():
                return name
    return None


def _to_word(cell: Any) -> str:
    return str(cell).rpartition(".")[2].lower()  # Optuna writes TrialState.COMPLETE


def _find_replicate(table: _Table, options: "ImportOptions") -> str | None:
    if options.replicate is not None:
        return table.find(options.replicate, "--replicate")
    given = [table.value, *(table.find(name, "--parameters") for name in options.parameters)]
    for name in table.names:
        is_named = strip_prefix(name).lower() in _REPLICATE_NAMES
        if is_named and name not in given and table.frame[name].nunique() > 1:
            return name
    return None


def _choose_parameters(
    table: _Table, options: "ImportOptions", taken: Collection[str | None], keys: Sequence[str]
) -> tuple[list[str], dict[str, list[str]]]:
    """Choose the columns that are parameters; return them, and by reason those left out.

    Args:
        table: the table.
        options: choices of the user.
        taken: columns that are something else.
        keys: the column among them that numbers repeated runs, if there is one.
    """
    ignored = [table.find(name, "--ignore") for name in options.ignore]
    names = [name for name in table.names if name not in (*taken, *ignored)]
    if options.parameters:
        chosen = list(dict.fromkeys(table.find(n, "--parameters") for n in options.parameters))
        if both := [name for name in chosen if name not in names]:
            problem = "it is named in --parameters and is another column"
            raise table.error(1, both[0], problem, "one of them")
        return chosen, {"--parameters does not name them": [n for n in names if n not in chosen]}
    has_prefix = any(map(_PARAMETER.match, names))
    left_out: dict[str, list[str]] = {"--ignore names them": ignored}
    chosen = []
    for name in names:
        column = table.frame[name]
        is_label = not table.is_number(name) or _NUMBERING.fullmatch(name.lower())
        if has_prefix and not _PARAMETER.match(name):
            reason = "they have no prefix, and parameters have"
        elif column.nunique(dropna=False) == 1 < len(column):
            reason = "they have one value"
        elif not has_prefix and _BOOKKEEPING.fullmatch(name):
            reason = "their names are those of bookkeeping"
        elif not has_prefix and is_label and column.nunique() == len(column) > 2:
            reason = _LABELS
        else:
            chosen.append(name)
            continue
        left_out.setdefault(reason, []).append(name)
    if not has_prefix:
        left_out[_RESULTS] = _find_measured(table, chosen, keys)
        chosen = [name for name in chosen if name not in left_out[_RESULTS]]
    for kind in (_LABELS, _RESULTS):  # a single parameter of which each row has another value
        chosen = chosen or left_out.pop(kind, [])
    return chosen, left_out


def _find_measured(table: _Table, names: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return the columns of numbers that are results of the runs, not parameters.

    They have the name of a measured quantity, unless their values repeat and rows differ in them
    alone. Columns of which nearly every row has another value are results as well if the others are
    a complete grid: a sampler that draws one value does not draw each combination of others once.
    """
    scattered = [name for name in names if table.is_scattered(name)]
    measured = [name for name in names if _MEASURED.fullmatch(name) and table.is_number(name)]
    results: list[str] = []
    for name in sorted(measured, key=lambda name: -table.frame[name].nunique()):
        rest = [each for each in (*names, *keys) if each not in (*results, *scattered, name)]
        is_needed = table.is_distinct([*rest, name]) and not table.is_distinct(rest)
        if name in scattered or not is_needed:
            results.append(name)
    rest = [name for name in (*names, *keys) if name not in (*results, *scattered)]
    if table.is_grid(rest):
        results += scattered
    return [name for name in names if name in results]


def _warn_of_results(table: _Table, names: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Say which of the guessed parameters may be a result, so that no rows are compared."""
    if not names or table.is_grid([*names, *keys]):
        return []
    for name in reversed(names):  # results follow parameters in most tables
        if table.is_grid([*(each for each in names if each != name), *keys]):
            return [
                f"Without {name} the rows are a complete grid. If it is a result, add --ignore "
                f"{name}: rows that differ in it as well are no matched pair."
            ]
    found, total = table.count_paired(names), len(table.frame[list(names)].drop_duplicates())
    largest = max(names, key=lambda name: table.frame[name].nunique())
    if 2 * found >= total:
        return []
    return [
        f"Only {found:,} of {total:,} configurations have a partner that differs in one parameter, "
        f"from which effects are estimated. If {largest} is a result, add --ignore {largest}."
    ]


def _name_parameters(columns: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return the name of the parameter of each column, and notes about those that are renamed.

    Reports show names without underscores, next to columns of their own.
    """
    counts = Counter(to_line(strip_prefix(column)) for column in columns)
    names: dict[str, str] = {}
    notes = []
    for column in columns:
        short = to_line(strip_prefix(column))
        wanted = new = short if counts[short] == 1 else column
        taken = {each.replace("_", " ") for each in names.values()}
        while new in RESULT_NAMES or new.replace("_", " ") in taken:
            new += "_"
        names[column] = new
        if new != wanted:
            reason = "reports have another column of that name"
            notes.append(f"The parameter {wanted} is stored as {new}: {reason}.")
    return names, notes


def strip_prefix(name: str) -> str:
    """Return the name of a column without the prefix of the program that wrote the table."""
    return _PARAMETER.sub("", name.removeprefix(_METRIC), count=1)


def _read_rows(
    table: _Table,
    results: ImportedRuns,
    names: Mapping[str, str],
    curve: Mapping[str, int],
    states: str | None,
    replicate: str | None,
) -> None:
    """Add the runs in a table to results."""
    frame = table.frame
    values = table.list_numbers(table.value)
    points = {step: table.list_numbers(name) for name, step in curve.items()}
    params = {new: table.list_values(name) for name, new in names.items()}
    if replicate is not None:
        params[REPLICATE] = _number_replicates(table, replicate)
    stated = [TrialState.COMPLETE] * len(frame)
    if states is not None:
        words = frame[states].fillna("complete")  # without a state the value decides
        stated = [_STATES[_to_word(word)] for word in words]
    for i, (row, text) in enumerate(frame[table.value].items()):
        value, state, attributes = values[i], stated[i], {}
        if state is TrialState.COMPLETE and not math.isfinite(value):
            state, attributes = TrialState.FAIL, {FAILURE: Failure.DIVERGED} if text else {}
        if state is not TrialState.RUNNING:
            trial = StoredTrial(
                {name: cells[i] for name, cells in params.items() if cells[i] is not None},
                attributes,
                state=state,
                value=value if state is TrialState.COMPLETE else None,
                is_imported=True,
                curve={s: each[i] for s, each in points.items() if not math.isnan(each[i])},
            )
            results.trials.append(trial)
            results.places.append(f"{table.row_name} {row}")
    if left_out := len(frame) - len(results.trials):
        results.notes.append(f"Runs that are not finished were left out: {left_out:,}.")


def _number_replicates(table: _Table, name: str) -> list[int]:
    """Return the number of each row's replicate; texts are numbered in their order."""
    column, values = table.frame[name], table.list_values(name)
    if None in values:
        row = column.index[values.index(None)]
        raise table.error(row, name, "it is empty", "the number of the repeated run")
    is_numbered = all(type(value) is int and 0 <= value < 2**31 for value in values)
    return values if is_numbered else [int(code) + 1 for code in column.factorize()[0]]


def _join(names: Iterable[str], limit: int = 8) -> str:
    """Join the names of columns; of many, the first and the number of the others."""
    listed = [to_line(shorten(each, 60)) for each in names]
    others = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {others:,} more" if others > 0 else "")
