"""Studies of results that other programs recorded: tables, and studies of plain Optuna.

pandas reads a table. What its columns are is guessed from their names and values, is shown in one
line for each role, and can be overridden. The value is read as a text, because an empty cell is a
run that failed and ``nan`` one that diverged.
"""

import bz2
import codecs
import gzip
import io
import lzma
import math
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from studies.attributes import FAILURE, RESULT_NAMES, Failure, StudyRecord, is_grid_trial
from studies.config import ImportedResults, StudyConfig
from studies.errors import ConfigError, StudyExistsError, TableError
from studies.files import open_regular
from studies.hypotheses import Hypothesis, check_values
from studies.hypothesis_records import Registration, update_records
from studies.loader import describe_mistake, load_hypotheses, parse_hypotheses
from studies.space import REPLICATE
from studies.storage.changes import create_study
from studies.storage.counts import count_statuses
from studies.storage.engine import parse_url, redact
from studies.storage.open import list_study_names, load_study, open_storage, read_storage
from studies.storage.trials import StoredTrial
from studies.study_name import check_study_name
from studies.text import shorten, to_line

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 256 * 2**20
"""Size above which a table is refused, unpacked."""

MAX_ROWS, MAX_COLUMNS, MAX_PARAMETERS = 200_000, 10_000, 100
"""Numbers above which a table is refused; curves have a column for each step."""

_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
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

_SUFFIXES = (".gz", ".bz2", ".xz", ".csv", ".tsv", ".txt", ".parquet")

_LABELS = "they name or number the rows"
_RESULTS = "they are results, judged by names and values (--parameters keeps them)"


# ------------------------------------------------------------------ what a user says

Hypotheses = str | Path | Sequence[Hypothesis | Mapping[str, Any]]
"""The path of a file of hypotheses, or the hypotheses."""


def _option(metavar: str, default: Any, *text: str) -> Any:
    return field(default=default, metadata={"metavar": metavar, "help": " ".join(text)})


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a user says about results: the options of ``rnn-search import``, with their help.

    Several names are a list in Python, and hypotheses may be a list of tables there.

    Raises:
        ConfigError: if a text is given for a list.
    """

    value: str | None = _option(
        "COLUMN", None, "Column of the results, or objective of a study; by default value."
    )
    maximize: bool | None = _option(
        "", None, "Whether a higher value is better; by default as the study says, or a lower one."
    )
    metric: str = _option("NAME", "", "Name of the value, for the report.")
    unit: str = _option("TEXT", "", "Unit of the value, for the report.")
    question: str = _option("TEXT", "", "Question that the report answers.")
    parameters: Sequence[str] = _option(
        "A,B,…", (), "Columns that are parameters; by default a guess, which is printed."
    )
    ignore: Sequence[str] = _option("A,B,…", (), "Columns that are neither parameters nor results.")
    replicate: str | None = _option(
        "COLUMN",
        None,
        "Column that numbers runs of equal parameters; by default replicate or seed.",
    )
    curve: str = _option(
        "PREFIX", "loss_", "Prefix of the columns of a curve: loss_50 is the value at step 50."
    )
    nuisance: Sequence[str] = _option(
        "A,B,…", (), "Parameters at whose best values each configuration is judged."
    )
    threshold: float | None = _option(
        "NUMBER", None, "Value between good and bad runs: the report counts the pairs across it."
    )
    hypotheses: Hypotheses | None = _option(  # noqa: RUF009
        "FILE.toml", None, "Hypotheses to test: tables [[hypothesis]], as in a study file."
    )

    def __post_init__(self) -> None:
        for name in ("parameters", "ignore", "nuisance"):
            if isinstance(given := getattr(self, name), str):
                raise ConfigError(f"{name}={given!r} is a text: expected a list of names")

    def read_hypotheses(self) -> list[Hypothesis]:
        """Read the hypotheses.

        Raises:
            ConfigError: if they cannot be read, or one is not valid.
        """
        if isinstance(self.hypotheses, str | Path):
            return load_hypotheses(Path(self.hypotheses))
        if self.hypotheses is None:
            return []
        return parse_hypotheses({"hypothesis": list(self.hypotheses)}, "hypotheses")


@dataclass(frozen=True)
class ImportedStudy:
    """What was imported.

    Attributes:
        name: name of the study.
        source: file or study that the results were read from.
        counts: number of runs by state, for a reader.
        parameters: names of its parameters.
        roles: what the columns are, one line for each role.
        notes: what was decided or is doubtful, one sentence each.
    """

    name: str
    source: str
    counts: str
    parameters: list[str]
    roles: list[str]
    notes: list[str]


@dataclass
class _Results:
    """Results to import.

    Attributes:
        source: file or study that they were read from, for a reader.
        metric: name of the value.
        maximize: whether a higher value is better.
        roles, notes: as in :class:`ImportedStudy`.
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


def import_results(
    storage: str,
    source: "str | Path | pd.DataFrame | optuna.Study",
    options: ImportOptions,
    *,
    study: str | None = None,
    name: str | None = None,
    command: str = "",
    dry_run: bool = False,
) -> ImportedStudy:
    """Make a study of results that another program recorded.

    Args:
        storage: URL of the storage, which is created if it does not exist.
        source: path of a table; a DataFrame; a study of plain Optuna, or the URL of its storage,
            which is only read.
        options: what the columns are.
        study: name of the study in the storage ``source``; None if that has one only.
        name: name of the new study; None for that of the file or of Optuna's study.
        command: command that imports it, for the report.
        dry_run: whether to write nothing.

    Raises:
        StudiesError: if it cannot be imported; nothing is written. About a table the message names
            the row and the column.
    """
    is_url = isinstance(source, str) and "://" in source
    if study is not None and not is_url:
        given = to_line(shorten(str(source)))
        raise ConfigError(f"study={study!r} is for the URL of a storage: {given} is none")
    default_name = ""
    if is_url:
        where = redact(parse_url(source))
        with closing(read_storage(source)) as opened:
            names = list_study_names(opened)
            if study is None and len(names) != 1:
                raise ConfigError(
                    f"storage {where} has {len(names)} studies: choose one with --study, of "
                    f"{', '.join(map(to_line, names)) or 'none'}"
                )
            default_name = study or names[0]
            results = _read_study(load_study(opened, default_name), f" of {where}", options)
    elif isinstance(source, optuna.Study):
        default_name = source.study_name
        results = _read_study(source, "", options)
    elif isinstance(source, str | Path):
        default_name = Path(source).name
        while Path(default_name).suffix in _SUFFIXES and Path(default_name).stem:
            default_name = Path(default_name).stem
        results = _read_results(_read_table(Path(source), options), options)
    else:
        results = _read_results(_take_frame("a DataFrame", source, options), options)
    if name is None and not default_name:
        raise ConfigError("a DataFrame has no name: expected name=…")
    name = default_name if name is None else name
    check_study_name(name)
    return _store(storage, name, results, options, command, dry_run)


# ------------------------------------------------------------------ tables


@dataclass
class _Table:
    """A table: numbers, true and false, and texts; of the value texts only.

    Attributes:
        source: file or study that it is of, for a reader.
        frame: its columns; the index is the number of the row, as in a spreadsheet, where the
            header is row 1.
        value: column of the value.
        row_name: what a row is, for a reader.
    """

    source: str
    frame: "pd.DataFrame"
    value: str = ""
    row_name: str = "row"

    def error(self, row: Any, column: str, found: str, expected: str) -> TableError:
        place = f"{self.source}, {self.row_name} {row}, column {_quote(column)}"
        return TableError(f"{place}: {found}: expected {expected}")

    def find(self, name: str, option: str) -> str:
        """Return a column that a user names, with or without the prefix of a program."""
        found = [each for each in self.frame if name in (each, _strip_prefix(each))]
        if name in found or len(found) == 1:
            return name if name in found else found[0]
        problem = f"{option} names it, and the header does not"
        raise self.error(1, name, problem, f"one of {_join(self.frame, 30)}")

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

    def sort_by_values(self, names: Iterable[str]) -> list[str]:
        """Sort columns by their number of values, the largest first."""
        return sorted(names, key=lambda name: -self.frame[name].nunique())

    def is_scattered(self, name: str) -> bool:
        """Return whether nearly every row has another number; runs that failed may have none."""
        values, known = self.frame[name].nunique(), self.frame[name].count()
        is_varied = values >= 0.9 * known and known > max(2, len(self.frame) / 2)
        return self.is_number(name) and is_varied

    def count_paired(self, names: Sequence[str]) -> int:
        """Count the rows that differ from another one in one of some columns, not a scattered."""
        codes = [self.frame[name].factorize()[0] for name in names]
        # The sum of a row's random numbers stands for the row.
        generator = np.random.default_rng(0)
        numbers = [generator.integers(2**62, size=code.max() + 2)[code] for code in codes]
        rows, is_paired = sum(numbers), np.zeros(len(self.frame), dtype=bool)
        for name, own in zip(names, numbers, strict=True):
            if not self.is_scattered(name):
                _, firsts, groups = np.unique(rows - own, return_index=True, return_inverse=True)
                is_paired |= (np.bincount(groups, own != own[firsts[groups]]) > 0)[groups]
        return int(is_paired.sum())

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
        numbers = []
        for row, cell in self.frame[name].astype(object).fillna("").items():
            try:
                numbers.append(math.nan if cell == "" else float(str(cell).replace("_", "?")))
            except ValueError as error:
                expected = "a number, nothing for a run that failed, or nan for one that diverged"
                raise self.error(row, name, f"{_quote(cell)} is not a number", expected) from error
        return numbers


def _read_table(path: Path, options: ImportOptions) -> _Table:
    """Read a table from a file: CSV, compressed or not, or Parquet."""
    name = to_line(path.name)
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
            if opener := next(
                (_OPENERS[each] for each in _OPENERS if content.startswith(each)), None
            ):
                file.seek(0)
                content = opener(file).read(MAX_BYTES + 1)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        reason = getattr(error, "strerror", None) or f"the compressed file is damaged ({error})"
        raise TableError(f"{to_line(str(path))} cannot be read: {reason}") from error
    if len(content) > MAX_BYTES:
        raise _too_large(name)
    if content.startswith(b"PK\x03\x04"):
        raise TableError(f"{name} is an Excel workbook or another archive: save the sheet as CSV")
    if content.startswith(b"PAR1"):
        return _take_frame(name, _read_parquet(name, content), options)
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise TableError(f"{name}, row {row} is not UTF-8: save the table as CSV UTF-8") from error
    return _parse_csv(name, text.lstrip("\r\n"), options)


def _too_large(name: str) -> TableError:
    return TableError(
        f"{name} has more than {MAX_ROWS:,} rows, {MAX_COLUMNS:,} columns or "
        f"{MAX_BYTES // 2**20} MiB: expected a smaller table"
    )


def _read_parquet(name: str, content: bytes) -> "pd.DataFrame":
    import pandas as pd  # takes a second

    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_metadata
    except ImportError as error:
        raise TableError(f"{name} is a Parquet file, which needs pyarrow: install it") from error
    try:
        stated = read_metadata(io.BytesIO(content))
        size = sum(stated.row_group(i).total_byte_size for i in range(stated.num_row_groups))
        if stated.num_rows > MAX_ROWS or stated.num_columns > MAX_COLUMNS or size > MAX_BYTES:
            raise _too_large(name)
        return pd.read_parquet(io.BytesIO(content))
    except (ArrowException, OSError, ValueError) as error:
        raise TableError(f"{name} is not valid Parquet: {to_line(str(error))}") from error


def _parse_csv(name: str, text: str, options: ImportOptions) -> _Table:
    """Parse CSV, with the delimiter that occurs most in the header."""
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
        frame = pd.read_csv(
            io.StringIO(text), nrows=MAX_ROWS + 1, dtype={value: str},
            na_values={each: _MISSING for each in columns if each != value}, **settings,
        )  # fmt: skip
    except pd.errors.EmptyDataError as error:
        raise TableError(f"{name} is empty: expected a table with a header") from error
    except pd.errors.ParserError as error:
        found = to_line(str(error).rpartition("error: ")[2].strip())
        raise TableError(f"{name} is not valid CSV: {found}; quote cells with commas") from error
    if len(frame) > MAX_ROWS or frame.shape[1] > MAX_COLUMNS:
        raise _too_large(name)
    if not isinstance(frame.index, pd.RangeIndex):
        raise TableError(f"{name}, row 2 has more cells than the header: expected as many")
    if decimal == ",":
        frame[value] = frame[value].str.replace(",", ".")
    texts = frame.select_dtypes(["string", "object"]).apply(lambda column: column.str.strip())
    frame = frame.assign(**texts).set_axis(range(2, len(frame) + 2))
    frame = frame[(frame[value].fillna("") != "") | frame.drop(columns=value).notna().any(axis=1)]
    return _take_frame(name, frame, options)


def _take_frame(source: str, frame: "pd.DataFrame", options: ImportOptions) -> _Table:
    """Return the table of a DataFrame, whose named index is columns as well."""
    if frame.index.names != [None]:
        frame = frame.reset_index()
    if frame.empty or frame.columns.has_duplicates:
        raise TableError(f"{source}: expected rows, and columns of distinct names")
    frame = frame.rename(columns=str)
    for column in frame:
        if frame[column].dtype == object:
            frame[column] = frame[column].convert_dtypes()
    table = _Table(source, frame, _find_value(_Table(source, frame), options))
    for column in frame:
        if column == table.value or frame[column].dtype.kind not in "iufb":
            frame[column] = frame[column].astype(object).map(str, na_action="ignore")
    frame[table.value] = frame[table.value].fillna("")
    return table


def _find_value(table: _Table, options: ImportOptions) -> str:
    if options.value is not None:
        return table.find(options.value, "--value")
    found = [name for name in table.frame if _VALUE.fullmatch(name)]
    if len(found) == 1:
        return str(found[0])
    problem = f"the columns {_join(found)}" if found else "no column 'value'"
    raise TableError(
        f"{table.source}, row 1: {problem}: expected the results in one column; choose it with "
        f"--value, of {_join(found or table.frame, 20)}, and add --maximize if more is better"
    )


# ------------------------------------------------------------------ roles of columns


def _read_results(table: _Table, options: ImportOptions) -> _Results:
    """Read the results in a table."""
    frame, value = table.frame, table.value
    steps = re.compile(re.escape(options.curve) + r"(\d{1,9})")
    found = {name: steps.fullmatch(name) for name in frame if name != value}
    curve = {name: int(match[1]) for name, match in found.items() if match}
    states = _find_states(table)
    replicate = _find_replicate(table, options)
    keys = [] if replicate is None else [replicate]
    taken = {value, states, *curve, *keys, *(name for name in frame if _VALUE.fullmatch(name))}
    columns, left_out = _choose_parameters(table, options, taken, keys)
    names, notes = _name_parameters(columns)
    metric = options.metric or ("value" if _VALUE.fullmatch(value) else value)
    metric = metric.removeprefix(_METRIC)
    roles = {
        "value": f"{metric} ({'higher' if options.maximize else 'lower'} is better)",
        "parameters": _join(names.values(), MAX_PARAMETERS),
        "replicates": _join(keys),
        "states": states,
        "curve": _join(curve, 3),
    }
    listed = [f"left out: {_join(each)}, because {why}" for why, each in left_out.items() if each]
    notes = [*notes, *_warn_of_isolation(table, columns, keys)]
    if options.maximize is None and _SOUNDS_LIKE_MORE.search(metric.lower()):
        notes.append(f"A lower {metric} is taken to be better: give --maximize if a higher one is.")
    results = _Results(
        source=table.source,
        metric=metric,
        maximize=bool(options.maximize),
        roles=[*(f"{role}: {each}" for role, each in roles.items() if each), *listed],
        notes=notes,
        # Rows that differ in nothing but their results are repeated runs.
        numbers_repeats=bool(left_out.get(_RESULTS)) or any(map(_PARAMETER.match, columns)),
        is_adaptive=any(name.startswith("params_") for name in columns),
    )
    _read_rows(table, results, names, curve, states, replicate)
    return results


def _find_states(table: _Table) -> str | None:
    """Return the column whose cells are all states of runs; None without one."""
    for name in table.frame:
        if name.lower() in ("state", "status") and name != table.value:
            words = table.frame[name].dropna().astype(str)
            if len(words) and None not in map(_to_state, words.unique()):
                return str(name)
    return None


def _to_state(word: str) -> TrialState | None:
    return _STATES.get(word.rpartition(".")[2].lower())


def _find_replicate(table: _Table, options: ImportOptions) -> str | None:
    if options.replicate is not None:
        return table.find(options.replicate, "--replicate")
    given = [table.find(name, "--parameters") for name in options.parameters]
    for name in table.frame:
        is_named = _strip_prefix(name).lower() in _REPLICATE_NAMES
        if is_named and name not in (*given, table.value) and table.frame[name].nunique() > 1:
            return str(name)
    return None


def _choose_parameters(
    table: _Table, options: ImportOptions, taken: Collection[str | None], keys: Sequence[str]
) -> tuple[list[str], dict[str, list[str]]]:
    """Choose the columns that are parameters; return them, and by reason those left out.

    Args:
        table: the table.
        options: choices of the user.
        taken: columns that are something else.
        keys: the column among them that numbers repeated runs, if there is one.
    """
    ignored = [table.find(name, "--ignore") for name in options.ignore]
    names = [name for name in table.frame if name not in (*taken, *ignored)]
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
    for name in table.sort_by_values(measured):
        rest = [each for each in (*names, *keys) if each not in (*results, *scattered, name)]
        is_needed = table.is_distinct([*rest, name]) and not table.is_distinct(rest)
        if name in scattered or not is_needed:
            results.append(name)
    rest = [name for name in (*names, *keys) if name not in (*results, *scattered)]
    if table.is_grid(rest):
        results += scattered
    return [name for name in names if name in results]


def _warn_of_isolation(table: _Table, names: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Say which columns leave rows without a partner, from which effects are estimated."""
    if table.is_grid([*names, *keys]):
        return []
    found, total, by_values = (
        table.count_paired(names),
        len(table.frame),
        table.sort_by_values(names),
    )
    # Results follow parameters in most tables.
    candidates = [[name] for name in reversed(names)]
    candidates += [by_values[:count] for count in range(2, min(len(names), 6))]
    for left_out in candidates:
        rest = [name for name in names if name not in left_out]
        is_grid = table.is_grid([*rest, *keys])
        if not is_grid and not (2 * found < total and table.is_distinct([*rest, *keys])):
            continue
        ignored = to_line(",".join(map(_strip_prefix, left_out)))
        if is_grid:
            return [
                f"Without {ignored} the rows are a complete grid. If it is a result, add --ignore "
                f"{ignored}: rows that differ in it as well are no matched pair."
            ]
        paired = table.count_paired(rest)
        if 2 * paired >= total:
            return [
                f"{found:,} of {total:,} rows have a partner that differs in one parameter, from "
                f"which effects are estimated; without {_join(left_out)} {paired:,} have one: if "
                f"results are among the parameters, add --ignore {ignored}."
            ]
    return []


def _name_parameters(columns: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return the name of the parameter of each column, and notes about those that are renamed.

    Reports show names without underscores, next to columns of their own.
    """
    counts = Counter(map(_strip_prefix, columns))
    names: dict[str, str] = {}
    notes = []
    for column in columns:
        short = _strip_prefix(column)
        wanted = new = short if counts[short] == 1 else column
        taken = {each.replace("_", " ") for each in names.values()}
        while new in RESULT_NAMES or new.replace("_", " ") in taken:
            new += "_"
        names[column] = new
        if new != wanted:
            reason = "reports have another column of that name"
            notes.append(f"The parameter {wanted} is stored as {new}: {reason}.")
    return names, notes


def _strip_prefix(name: str) -> str:
    """Return the name of a column without the prefix of the program that wrote the table."""
    return _PARAMETER.sub("", name.removeprefix(_METRIC), count=1)


def _read_rows(
    table: _Table,
    results: _Results,
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
        words = frame[states].astype(object).fillna("failed")  # as W&B writes of no run
        stated = [_to_state(str(word)) for word in words]
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


def _number_replicates(table: _Table, name: str) -> list[Any]:
    """Return the number of each row's replicate; texts are numbered in their order."""
    values = table.list_values(name)
    if None in values:
        row = table.frame.index[values.index(None)]
        raise table.error(row, name, "it is empty", "the number of the repeated run")
    if all(type(value) is int and 0 <= value < 2**31 for value in values):
        return values
    places = {value: number for number, value in enumerate(dict.fromkeys(values), 1)}
    return [places[value] for value in values]


def _quote(text: str) -> str:
    """Return a name or a cell as a message shows it."""
    return repr(to_line(shorten(text, 60)))


def _join(names: Iterable[str], limit: int = 8) -> str:
    """Join the names of columns; of many, the first and the number of the others."""
    listed = [to_line(shorten(each, 60)) for each in names]
    others = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {others:,} more" if others > 0 else "")


# ------------------------------------------------------------------ studies of plain Optuna


def _read_study(study: optuna.Study, where: str, options: ImportOptions) -> _Results:
    """Read the results of a study of plain Optuna, as the table that Optuna would write."""
    import pandas as pd

    trials, source = study.get_trials(deepcopy=False), f"study {to_line(study.study_name)}{where}"
    if any(map(is_grid_trial, trials)):
        raise ConfigError(
            f"{source} is one of this program: copy it with rnn-search copy {study.study_name} "
            "--to URL"
        )
    if not any(trial.state.is_finished() for trial in trials):
        raise ConfigError(f"{source} has no finished trial: expected one or more")
    place = _find_objective(study, source, options)
    rows = [
        {f"params_{name}": _to_scalar(value) for name, value in trial.params.items()}
        | {"state": trial.state.name, "value": trial.values[place] if trial.values else None}
        for trial in trials
    ]
    frame = pd.DataFrame(rows, [trial.number for trial in trials], dtype=object)
    is_maximized = study.directions[place] == StudyDirection.MAXIMIZE
    options = replace(
        options,
        value="value",
        maximize=is_maximized if options.maximize is None else options.maximize,
        metric=options.metric or (study.metric_names[place] if study.metric_names else "value"),
    )
    table = _take_frame(source, frame, options)
    table.row_name = "trial"
    results = _read_results(table, options)
    kept = [trial for trial in trials if trial.state.is_finished()]
    for trial, stored in zip(kept, results.trials, strict=True):
        stored.curve = dict(trial.intermediate_values)
        stored.started, stored.completed = trial.datetime_start, trial.datetime_complete
    results.is_adaptive = not all("grid_id" in trial.system_attrs for trial in kept)
    results.distributions = _find_distributions(kept)
    return results


def _find_objective(study: optuna.Study, source: str, options: ImportOptions) -> int:
    """Return the place of the objective to import."""
    count, names = len(study.directions), list(study.metric_names or ())
    known = [*(f"values_{place}" for place in range(count)), *names]
    if count == 1 and options.value in (None, "value"):
        return 0
    if options.value not in known:
        problem = f"{count} objectives" if count > 1 else f"no objective {options.value!r}"
        raise ConfigError(
            f"{source} has {problem}: choose one with --value, of {', '.join(map(to_line, known))}"
        )
    return known.index(options.value) % count


def _to_scalar(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _find_distributions(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Return the distribution of each parameter that has the same in all trials."""
    found: dict[str, BaseDistribution] = {}
    for name in {name for trial in trials for name in trial.params}:
        first, *others = [t.distributions[name] for t in trials if name in t.distributions]
        if isinstance(first, CategoricalDistribution):
            choices = list(dict.fromkeys(map(_to_scalar, first.choices)))
            if len({type(each) for each in choices}) > 1:  # they are stored as texts
                continue
            found[name] = CategoricalDistribution(choices)
        elif all(each == first for each in others):
            found[name] = first
    return found


# ------------------------------------------------------------------ the study


def _store(
    storage: str, name: str, results: _Results, options: ImportOptions, command: str, dry_run: bool
) -> ImportedStudy:
    """Check results, and store them as a study in one transaction."""
    trials = results.trials
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    parameters = [name for name in names if name != REPLICATE]
    if not parameters or len(parameters) > MAX_PARAMETERS:
        raise TableError(
            f"{results.source}: {len(parameters) or 'no'} parameters: expected 1 to "
            f"{MAX_PARAMETERS}; choose them with --parameters"
        )
    if not any(trial.state is TrialState.COMPLETE for trial in trials):
        raise TableError(
            f"{results.source}: no row is complete, with a finite value: expected one or more"
        )
    _check_repeats(results)
    values: dict[str, list[Any]] = {}
    for trial in trials:
        for key, value in trial.params.items():
            values.setdefault(key, []).append(value)
    config = _build_config(results, options, values)
    registered = Registration(
        time=datetime.now(UTC), started=len(trials), finished=len(trials), planned=len(trials),
        report_threshold=config.report_threshold, nuisance=config.nuisance,
    )  # fmt: skip
    record = StudyRecord(
        config=config,
        commands=[command] if command else [],
        artifact_folder=f"{re.sub('[^A-Za-z0-9_-]', '-', name)}-{uuid4().hex[:12]}",
        hypotheses=update_records([], config.hypothesis, registered),
    )
    if not dry_run:
        direction = StudyDirection.MAXIMIZE if results.maximize else StudyDirection.MINIMIZE
        distributions = {
            key: results.distributions.get(key) or find_distribution(each)
            for key, each in values.items()
        }
        with closing(open_storage(storage)) as opened:
            if not create_study(
                opened, name, results.metric, record.attributes(), distributions, trials, direction
            ):
                raise StudyExistsError(
                    f"study {name!r} exists in {redact(opened.engine.url)} already: choose another "
                    "--name, or delete it first"
                )
    counts = asdict(count_statuses(Counter(trial.status for trial in trials)))
    described = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
    return ImportedStudy(name, results.source, described, parameters, results.roles, results.notes)


def _build_config(
    results: _Results, options: ImportOptions, values: Mapping[str, Sequence[Any]]
) -> StudyConfig:
    """Build the config of the study; what the options name has to be in the results."""
    hypotheses = options.read_hypotheses()
    names = [each for each in values if each != REPLICATE]
    try:
        check_values(hypotheses, values)
        config = StudyConfig(
            question=options.question,
            report_threshold=options.threshold,
            nuisance=[_strip_prefix(each) for each in options.nuisance],
            hypothesis=hypotheses,
            results=ImportedResults(
                source=results.source,
                metric=results.metric,
                unit=options.unit,
                direction="maximize" if results.maximize else "minimize",
                parameters=names,
                notes=[*results.roles[2:], *results.notes],
                is_adaptive=results.is_adaptive,
            ),
        )
    except ValidationError as error:
        raise ConfigError(f"{results.source}: {describe_mistake(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{results.source}: {error}") from error
    if set(names) <= set(config.nuisance):
        raise ConfigError(f"{results.source}: nuisance names all parameters: expected others")
    return config


def _check_repeats(results: _Results) -> None:
    """Distinguish runs of equal parameters by a replicate, or refuse them."""
    seen: dict[Any, str] = {}
    repeats = 0
    for place, trial in zip(results.places, results.trials, strict=True):
        # In Python true equals 1, which is another value.
        key = frozenset((name, type(each) is bool, each) for name, each in trial.params.items())
        if key in seen and not results.numbers_repeats:
            same = " and the same replicate" if REPLICATE in trial.params else ""
            raise TableError(
                f"{results.source}: {seen[key]} and {place} have the same parameters{same}: "
                "expected rows that differ; name the column that numbers repeated runs with "
                "--replicate, or more --parameters"
            )
        repeats += key in seen
        seen.setdefault(key, place)
    if repeats:
        # A number of its own for each run: no two runs of different parameters belong together.
        for number, trial in enumerate(results.trials):
            trial.params[REPLICATE] = number
        runs = "run repeats" if repeats == 1 else "runs repeat"
        results.notes.append(
            f"{repeats:,} {runs} the parameters of an earlier one: they count as replicates."
        )


def find_distribution(values: Iterable[Any]) -> BaseDistribution:
    """Return the distribution from which values may be: a range of numbers, or categories."""
    found = list(dict.fromkeys(values))
    if all(type(value) is int for value in found):
        return IntDistribution(min(found), max(found))
    if all(type(value) in (int, float) for value in found):
        return FloatDistribution(float(min(found)), float(max(found)))
    return CategoricalDistribution(found)
