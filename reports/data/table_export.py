"""The rows of studies as files for users of pandas."""

import gzip
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from reports.data.results import Results
from reports.errors import ReportError
from studies.artifacts import atomic_write
from studies.attributes import RETRY_COUNTS, SOURCE_TRIALS
from studies.space import BPTT_STEPS, PARAM_ORDER

STUDY = "study"
"""The column that names a row's study."""

_SAMPLE = "sample"

_NOT_IN_CSV = re.compile(r"[\\\x00-\x1f\x7f\x85\u2028\u2029]")
"""Backslashes, control characters and everything else that :meth:`str.splitlines` splits at."""


def concatenate_tables(results: Sequence[Results]) -> pd.DataFrame:
    """Return a row a point of all these studies: its study, its trial, and all that is known of it.

    Switches are true or false, times UTC; what was not recorded is missing. What is no single value
    (the source's trials, the setbacks) is JSON.
    """
    tables = []
    for each in results:
        table = each.table.reset_index()
        table.insert(0, STUDY, each.name)
        tables.append(table)
    rows = pd.concat(tables, ignore_index=True)
    for column in (SOURCE_TRIALS, RETRY_COUNTS):
        rows[column] = rows[column].map(json.dumps, na_action="ignore")
    return rows


def write_csv(results: Sequence[Results], path: Path) -> None:
    r"""Write the rows as CSV, each trial on one line.

    The text of ``sample``, the last column, has its line breaks, control characters and backslashes
    escaped as in a Python string literal: ``\n``, ``\x00``, ``\\``.
    :func:`write_parquet` keeps it as it is.

    Raises:
        ReportError: if the file cannot be written.
    """
    rows = concatenate_tables(results)
    rows[_SAMPLE] = rows.pop(_SAMPLE).map(_escape, na_action="ignore")
    _write(path, lambda: rows.to_csv(index=False, lineterminator="\n").encode())


def _escape(text: str) -> str:
    return _NOT_IN_CSV.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def write_parquet(results: Sequence[Results], path: Path) -> None:
    """Write the rows as Parquet.

    Raises:
        ReportError: if pyarrow is not installed, or the file cannot be written.
    """

    def content() -> bytes:
        buffer = io.BytesIO()
        concatenate_tables(results).to_parquet(buffer, index=False)
        return buffer.getvalue()

    try:
        _write(path, content)
    except ImportError as error:
        raise ReportError(
            f"{path}: Parquet needs pyarrow; install it with pip install pyarrow, or take --csv"
        ) from error


def write_curves(results: Sequence[Results], path: Path) -> None:
    """Write a row for each complete point of a study, with its curve, as CSV.

    The columns are the parameters (switches as 0 and 1), ``seconds``, ``min_loss`` (its value,
    whatever the objective), and for each log point the smoothed training loss there, as
    ``loss_50``. A name that ends in ``.gz`` is compressed.

    Raises:
        ReportError: if the file cannot be written.
    """
    (each,) = results
    names = [name for name in PARAM_ORDER if name in each.table]
    if BPTT_STEPS not in each.axes:
        names.remove(BPTT_STEPS)
    rows = each.complete[[*names, "seconds", "value"]].rename(columns={"value": "min_loss"})
    rows = rows.astype(dict.fromkeys(rows.select_dtypes(bool), int))
    curves = each.curves.pivot(index="number", columns="step", values="loss").add_prefix("loss_")
    text = rows.join(curves).sort_index().to_csv(index=False, lineterminator="\n").encode()
    _write(path, lambda: gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def _write(path: Path, content: Callable[[], bytes]) -> None:
    data = content()
    try:
        atomic_write(path, [data])
    except OSError as error:
        raise ReportError(f"{path} cannot be written ({error.strerror}); name another") from error
