"""Trial tables as CSV files, for pandas."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from reports.errors import ReportError
from reports.results import Results
from studies.attributes import CONTEXT_LISTS, RETRY_COUNTS, SOURCE_TRIALS
from studies.files import atomic_write, require_regular

STUDY = "study"
"""Column with the name of the study."""

_SAMPLE = "sample"

_COLLECTIONS = [SOURCE_TRIALS, RETRY_COUNTS, *CONTEXT_LISTS, "length_losses", "slices"]
"""Columns whose values are no scalars."""

_ESCAPED = re.compile(r"[\\\x00-\x1f\x7f\x85\u2028\u2029]")
"""Backslashes, control characters and all other line boundaries of :meth:`str.splitlines`."""


def write_csv(results: Sequence[Results], path: Path) -> None:
    r"""Write the trial tables of some studies as CSV, one row per trial, each on one line.

    Switches are booleans, times are in UTC; unrecorded values, and parameters that a trial lacks,
    are missing. Source trials, retry counts and losses by context, length or slice are JSON. In
    ``sample``, the last column, line breaks, control characters and backslashes are escaped as in a
    Python string literal: ``\n``, ``\x00``, ``\\``.

    Raises:
        ReportError: if the file cannot be written.
    """
    tables = []
    for study in results:
        table = study.table[study.data_columns].reset_index()
        table.insert(0, STUDY, study.name)
        tables.append(table)
    rows = pd.concat(tables, ignore_index=True)
    for column in rows.columns.intersection(_COLLECTIONS):
        rows[column] = rows[column].map(json.dumps, na_action="ignore")
    if _SAMPLE in rows:
        rows[_SAMPLE] = rows.pop(_SAMPLE).map(_escape, na_action="ignore")
    try:
        require_regular(path)
        atomic_write(path, [rows.to_csv(index=False, lineterminator="\n").encode()])
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error.strerror}") from error


def _escape(text: str) -> str:
    return _ESCAPED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
