"""The report at the end of a search, and the table of trials as CSV."""

import hashlib
import json
import os
import re
import shlex
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import tenacity

from rnn.errors import UserError
from studies.atomic_files import atomic_write, default_report, require_regular
from studies.attributes import CONTEXT_LISTS, RETRY_COUNTS, SOURCE_TRIALS
from studies.failures import is_bug, print_bug
from studies.storage.counts import count_trials, read_times
from studies.storage.database import error_message, is_transient
from studies.storage.edits import list_derived, update_note, update_system_attributes, write_note
from studies.storage.open import (
    list_study_names,
    load_study,
    open_storage,
    read_record,
    read_storage,
)

if TYPE_CHECKING:  # slow to import; commands that are refused do not need them
    from reports.page.page import Report
    from reports.results import Results

_T = TypeVar("_T")

OUTAGE_SECONDS = 60
"""How long the report at the end of a search waits for an unavailable storage."""


_CLAIM = "rnn_search:report"
"""Study system attribute: which process writes the report of which state of the study."""

_WRITTEN = "rnn_search:written_report"
"""Study system attribute: key, path and lines of the last report at the end of a search."""

_CODE = {".py", ".html", ".css", ".js", ".toml"}

_COLLECTIONS = [SOURCE_TRIALS, RETRY_COUNTS, *CONTEXT_LISTS, "lengths", "slices"]
"""Columns whose values are no scalars."""

_ESCAPED = re.compile(r"[\\\x00-\x1f\x7f\x85\u2028\u2029]")
"""Backslashes, control characters and all other line boundaries of :meth:`str.splitlines`."""


def print_failure(error: Exception, label: str, err: bool = False) -> None:
    """Print an error in one line that begins with a label, and the traceback of a bug."""
    click.echo(f"{label}: {error_message(error)}", err=err)
    if is_bug(error):
        print_bug(error)


@contextmanager
def print_failures(label: str, err: bool = False) -> Iterator[None]:
    """Print a failure instead of raising it, see :func:`print_failure`."""
    try:
        yield
    except Exception as error:  # of any kind: the search itself is done
        print_failure(error, label, err)


# ------------------------------------------------------------------ the end of a search


def finalize_search(storage: str, study: str, finished: int, was_finished: bool) -> None:
    """Write the report of a search that has ended, and print its main result.

    If another process that saw the search end does so, only print which. A process that joined a
    study that ``was_finished`` writes its report unless it has one that shows the same. A failure
    is printed and not raised: the results are recorded.
    """
    with print_failures("no report"):
        if was_finished:
            other = None
            if (headline := retry_outages(lambda: _find_written(storage, study))) is not None:
                click.echo("\n".join(headline))
                return
        else:
            other = retry_outages(lambda: _claim_report(storage, study, finished))
        if other is not None:
            command = shlex.join(["rnn-search", "report", study])
            click.echo(f"report: process {other} writes it; for another copy: {command}")
            return
        write_final_report(storage, study)


def _claim_report(storage: str, study: str, finished: int) -> str | None:
    """Claim the report of a study's state; return the process that did so before, if any.

    The state contains the time of the last change, so trials that end later make it another one.
    """
    worker, other = f"{socket.gethostname()}/{os.getpid()}", None
    with closing(open_storage(storage)) as opened:
        loaded = load_study(opened, study)
        with opened.reading() as connection:
            _, changed = read_times(connection, loaded._study_id)
        state = [str(changed), finished]

        def update(attributes: dict[str, Any]) -> dict[str, Any]:
            nonlocal other
            mark = attributes.get(_CLAIM, {})
            # It is this process's own mark if the answer to an earlier attempt was lost.
            if mark.get("state") == state and mark["worker"] != worker:
                other = mark["worker"]
                return {}
            return {_CLAIM: {"state": state, "worker": worker}}

        update_system_attributes(opened, loaded._study_id, update)
    return other


def write_final_report(storage: str, study: str) -> None:
    """Write the report of a finished search; print its path and its main result, or the failure.

    The note of the study gets the same lines.
    """
    with print_failures("no report"):
        from reports.page.page import write_report

        key = retry_outages(lambda: _read_key(storage, study))
        report = retry_outages(lambda: write_report(storage, [study]))
        click.echo(f"report: {report.path}")
        click.echo("\n".join(report.headline))
        with print_failures("warning: cannot update the note of the study", err=True):
            retry_outages(lambda: _write_answer(storage, study, report, key))


def _write_answer(storage: str, study: str, report: "Report", key: str) -> None:
    """Write the answer of a report into the note of its study, and what the report shows."""
    with closing(open_storage(storage)) as opened:
        loaded = load_study(opened, study)
        record = read_record(loaded)
        text = write_note(
            study, record.config.question, record.commands, report.path, report.headline
        )
        update_note(opened, loaded._study_id, text)
        written = {"key": key, "path": str(report.path), "headline": report.headline}
        update_system_attributes(opened, loaded._study_id, lambda _: {_WRITTEN: written})


def _find_written(storage: str, study: str) -> list[str] | None:
    """Return the lines on a report that shows what one would show now; None if there is none."""
    with closing(read_storage(storage)) as opened:
        attributes = opened.get_study_system_attrs(load_study(opened, study)._study_id)
    written: dict[str, Any] = attributes.get(_WRITTEN, {})
    path = default_report([study])
    if written.get("path") != str(path) or not path.exists():
        return None
    if written["key"] != _read_key(storage, study):
        return None
    return [f"report: {path}", *written["headline"], "nothing has changed since it was written"]


def _read_key(storage: str, study: str) -> str:
    """Return a hash of what the report of a study shows, and of the code that writes it.

    These are the study, its source and the studies that derive from it.
    """
    digest = hashlib.sha256(_hash_code().encode())
    with closing(read_storage(storage)) as opened:
        refinement = read_record(load_study(opened, study)).config.refinement
        related = {*list_derived(opened, study), *([refinement.source] if refinement else [])}
        for name in [study, *sorted(related.intersection(list_study_names(opened)))]:
            loaded = load_study(opened, name)
            with opened.reading() as connection:
                _, changed = read_times(connection, loaded._study_id)
            counts = count_trials(opened, loaded._study_id)
            digest.update(json.dumps([loaded.user_attrs, str(changed), str(counts)]).encode())
    return digest.hexdigest()


def _hash_code() -> str:
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in _CODE):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def retry_outages(function: Callable[[], _T]) -> _T:
    """Call a function for the report; wait up to :data:`OUTAGE_SECONDS` for the storage."""

    def announce(state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1:
            click.echo("waiting for the storage to write the report")

    retry = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random(0.2, 2),
        stop=tenacity.stop_after_delay(OUTAGE_SECONDS),
        before_sleep=announce,
        reraise=True,
    )
    return retry(function)


def write_csv(results: "Sequence[Results]", path: Path) -> None:
    r"""Write the trial tables of some studies as CSV, one row per trial, each on one line.

    Switches are booleans, times are in UTC; unrecorded values, and parameters that a trial lacks,
    are missing. Source trials, retry counts and losses by context, length or slice are JSON. In
    ``sample``, the last column, line breaks, control characters and backslashes are escaped as in a
    Python string literal: ``\n``, ``\x00``, ``\\``.

    Raises:
        UserError: if the file cannot be written.
    """
    import pandas as pd  # slow

    tables = []
    for study in results:
        table = study.table[study.data_columns].reset_index()
        table.insert(0, "study", study.name)
        tables.append(table)
    rows = pd.concat(tables, ignore_index=True)
    for column in rows.columns.intersection(_COLLECTIONS):
        rows[column] = rows[column].map(json.dumps, na_action="ignore")
    if "sample" in rows:
        rows["sample"] = rows.pop("sample").map(_escape, na_action="ignore")
    try:
        require_regular(path)
        atomic_write(path, [rows.to_csv(index=False, lineterminator="\n").encode()])
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _escape(text: str) -> str:
    return _ESCAPED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
