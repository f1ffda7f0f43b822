"""Trial tables as CSV and Parquet files, for pandas."""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
from pandas.api.types import infer_dtype

from reports.errors import ReportError
from reports.results import Results
from studies.attributes import CONTEXT_LISTS, RETRY_COUNTS, SOURCE_TRIALS
from studies.files import atomic_write, compress, require_regular
from studies.space import BPTT_STEPS, REPLICATE
from studies.storage.reads import read_curves, read_steps
from studies.storage.storage import LeasedRDBStorage

STUDY = "study"
"""Column with the name of the study."""

_SAMPLE = "sample"

_COLLECTIONS = [SOURCE_TRIALS, RETRY_COUNTS, *CONTEXT_LISTS, "length_losses", "slices"]
"""Columns whose values are no scalars."""

_BATCH = 1000
"""Trials whose curves are formatted at once."""

_ESCAPED = re.compile(r"[\\\x00-\x1f\x7f\x85\u2028\u2029]")
"""Backslashes, control characters and all other line boundaries of :meth:`str.splitlines`."""


def concatenate_tables(results: Sequence[Results]) -> pd.DataFrame:
    """Concatenate the trial tables of some studies.

    Switches are booleans, times are in UTC; unrecorded values, and parameters that a trial lacks,
    are missing. Source trials, retry counts and losses by context, length or slice are JSON. An
    option whose type differs between studies is text.
    """
    tables = []
    for each in results:
        table = each.table[each.data_columns].reset_index()
        table.insert(0, STUDY, each.name)
        tables.append(table)
    rows = pd.concat(tables, ignore_index=True)
    for column in rows.columns.intersection(_COLLECTIONS):
        rows[column] = rows[column].map(json.dumps, na_action="ignore")
    for name, values in rows.items():
        if infer_dtype(values, skipna=True).startswith("mixed"):  # Parquet needs one type
            rows[name] = values.map(str, na_action="ignore")
    return rows


def write_csv(results: Sequence[Results], path: Path) -> None:
    r"""Write one row per trial as CSV, each on one line.

    In ``sample``, the last column, line breaks, control characters and backslashes are escaped as
    in a Python string literal: ``\n``, ``\x00``, ``\\``. :func:`write_parquet` escapes nothing.

    Raises:
        ReportError: if the file cannot be written.
    """
    rows = concatenate_tables(results)
    if _SAMPLE in rows:
        rows[_SAMPLE] = rows.pop(_SAMPLE).map(_escape, na_action="ignore")
    _write(path, lambda: [rows.to_csv(index=False, lineterminator="\n").encode()])


def _escape(text: str) -> str:
    return _ESCAPED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def write_parquet(results: Sequence[Results], path: Path) -> None:
    """Write one row per trial as Parquet.

    Raises:
        ReportError: if pyarrow is not installed, or the file cannot be written.
    """

    def content() -> list[bytes]:
        buffer = io.BytesIO()
        concatenate_tables(results).to_parquet(buffer, index=False)
        return [buffer.getvalue()]

    try:
        _write(path, content)
    except ImportError as error:
        raise ReportError(
            f"cannot write {path} without pyarrow: run pip install pyarrow or use --csv"
        ) from error


def write_curves(storage: LeasedRDBStorage, results: Results, path: Path) -> None:
    """Write one row per complete trial of a study, with its training curve, as CSV.

    The columns are the parameters (switches as 0 and 1), ``seconds``, ``min_loss`` (the value, by
    any objective) and the smoothed training loss at each log point, as ``loss_50``. The file is
    compressed if its name ends in ``.gz``. Few of the curves are in memory at a time.

    Args:
        storage: storage of the study.
        results: results of the study; its curves are read from the storage.
        path: file to write.

    Raises:
        ReportError: if the file cannot be written.
    """
    names = [*results.all_parameters, *([REPLICATE] if REPLICATE in results.table else [])]
    if BPTT_STEPS in names and BPTT_STEPS not in results.axes:
        names.remove(BPTT_STEPS)
    rows = results.complete[[*names, "seconds", "value"]].rename(columns={"value": "min_loss"})
    flags = rows.select_dtypes(bool)  # those that some trials lack included
    rows = rows.astype({name: "Int64" if flags[name].isna().any() else int for name in flags})
    study_id = storage.get_study_id_from_name(results.name)
    pieces = _format_curves(rows.sort_index(), storage, study_id)
    _write(path, lambda: compress(pieces) if path.suffix == ".gz" else pieces)


def _format_curves(rows: pd.DataFrame, storage: LeasedRDBStorage, study_id: int) -> Iterator[bytes]:
    """Yield the text of the rows, by trial number, with their curves; the header comes first."""
    steps = read_steps(storage, study_id)
    columns = [f"loss_{step}" for step in steps]
    yield rows.iloc[:0].join(pd.DataFrame(columns=columns)).to_csv(index=False).encode()
    for first in range(0, len(rows), _BATCH):
        part = rows.iloc[first : first + _BATCH]
        losses: dict[int, dict[int, float]] = {}
        for number, step, loss in read_curves(storage, study_id, part.index.tolist()):
            losses.setdefault(number, {})[step] = loss
        values = [[losses.get(each, {}).get(step) for step in steps] for each in part.index]
        table = part.join(pd.DataFrame(values, part.index, columns, dtype=float))
        yield table.to_csv(index=False, header=False, lineterminator="\n").encode()


def _write(path: Path, content: Callable[[], Iterable[bytes]]) -> None:
    try:
        require_regular(path)
        atomic_write(path, content())
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error.strerror}") from error
