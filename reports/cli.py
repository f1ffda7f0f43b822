"""The command ``rnn-search report``, and the report at the end of a search."""

import gc
import os
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import tenacity
from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from reports.errors import USER_ERRORS, OutputTakenError, ReportError
from studies.attributes import REPORT_CLAIM
from studies.cli import is_bug, print_bug, storage_options, studies_argument
from studies.errors import StudiesError, StudyFormatError
from studies.loader import read_record
from studies.note import update_note, write_text
from studies.storage.changes import update_system_attributes
from studies.storage.counts import read_times
from studies.storage.engine import error_message, is_transient
from studies.storage.open import load_study, open_storage, read_storage

if TYPE_CHECKING:  # slow to import; commands that are refused do not need them
    from reports.page.page import Report

_T = TypeVar("_T")

WATCH_SECONDS = 60
"""Interval between two reports with ``--watch``."""

OUTAGE_SECONDS = 60
"""How long the report at the end of a search waits for an unavailable storage."""


def print_failure(error: Exception, label: str, err: bool = False) -> None:
    """Print an error in one line, and the traceback of a bug.

    Args:
        error: the error.
        label: what could not be done.
        err: whether the line goes to the standard error.
    """
    click.echo(f"{label}: {error_message(error)}", err=err)
    if is_bug(error, USER_ERRORS):
        print_bug(error)


@contextmanager
def print_failures(label: str, err: bool = False) -> Iterator[None]:
    """Print a failure instead of raising it, see :func:`print_failure`."""
    try:
        yield
    except Exception as error:
        print_failure(error, label, err)


# ------------------------------------------------------------------ the end of a search


def finalize_search(storage: str, study: str, finished: int, was_finished: bool) -> None:
    """Write the report of a search that has ended, and print its main result.

    If another process that saw the search end does so, only print which. A process that joined a
    finished study writes its report in any case. A failure is printed and not raised: the results
    are recorded.

    Args:
        storage: URL of the storage.
        study: name of the study.
        finished: number of finished trials.
        was_finished: whether the study was finished when this process joined it.
    """
    with print_failures("no report"):
        other = None
        if not was_finished:
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
            mark = attributes.get(REPORT_CLAIM, {})
            # It is this process's own mark if the answer to an earlier attempt was lost.
            if mark.get("state") == state and mark["worker"] != worker:
                other = mark["worker"]
                return {}
            return {REPORT_CLAIM: {"state": state, "worker": worker}}

        update_system_attributes(opened, loaded._study_id, update)
    return other


def write_final_report(storage: str, study: str) -> None:
    """Write the report of a finished search; print its path and its main result, or the failure.

    The note of the study gets the same lines.
    """
    with print_failures("no report"):
        from reports.page.page import write_report

        report = retry_outages(lambda: write_report(storage, [study]))
        click.echo(f"report: {report.path}")
        _print_headline(report)
        with print_failures("warning: cannot update the note of the study", err=True):
            retry_outages(lambda: _write_answer(storage, study, report))


def _write_answer(storage: str, study: str, report: "Report") -> None:
    """Write the answer of a report into the note of its study."""
    with closing(open_storage(storage)) as opened:
        loaded = load_study(opened, study)
        record = read_record(loaded)
        text = write_text(
            study, record.config.question, record.commands, report.path, report.headline.split("\n")
        )
        update_note(opened, loaded._study_id, text)


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


def _print_headline(report: "Report") -> None:
    click.echo(report.headline)
    if report.note:
        click.echo(report.note, err=True)


@click.command
@studies_argument
@storage_options
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="HTML file to write; by default in reports/out/.",
)
@click.option(
    "--watch",
    is_flag=True,
    help=f"Update the report every {WATCH_SECONDS} seconds until all trials are finished.",
)
@click.option(
    "--csv",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a table of the trials to this CSV file instead of a report.",
)
@click.option(
    "--dataframe",
    metavar="FILE.parquet",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the same table to this Parquet file, for pandas.read_parquet.",
)
@click.option(
    "--curves",
    metavar="FILE.csv[.gz]",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the training curves of one study's complete trials to this CSV file.",
)
def reports(
    studies: tuple[str, ...],
    storage: str,
    output: Path | None,
    watch: bool,
    csv: Path | None,
    dataframe: Path | None,
    curves: Path | None,
) -> int:
    """Write a self-contained HTML report of one or several studies."""
    if csv or dataframe or curves:
        if watch or output:
            raise click.UsageError(
                "--csv, --dataframe and --curves write tables instead of a report and do not go "
                "with --watch and --output"
            )
        if curves and len(studies) > 1:
            raise click.UsageError(f"--curves expected one study, got {len(studies)}")
        _write_tables(storage, studies, csv, dataframe, curves)
    elif watch:
        _watch(storage, studies, output)
    else:
        from reports.page.page import write_report

        gc.freeze()  # else each collection looks through all imported modules
        report = write_report(storage, studies, output)
        click.echo(report.path)
        _print_headline(report)
    return 0


def _write_tables(
    storage: str,
    names: Sequence[str],
    csv: Path | None,
    dataframe: Path | None,
    curves: Path | None,
) -> None:
    from reports.study_reader import read_studies
    from reports.table_export import write_csv, write_curves, write_parquet

    with closing(read_storage(storage)) as opened:
        results = read_studies(opened, names, with_curves=False, with_windows=False)
        for path, write in ((csv, write_csv), (dataframe, write_parquet)):
            if path:
                write(results, path)
                click.echo(path)
        if curves:
            write_curves(opened, results[0], curves)
            click.echo(curves)


def _watch(storage: str, names: Sequence[str], output: Path | None) -> None:
    """Update the report until all trials are finished; errors of the storage are retried."""
    from reports.page.page import write_page
    from reports.study_reader import read_studies

    last_line = note = ""
    while True:
        try:
            with closing(read_storage(storage)) as opened:
                results = read_studies(opened, names, drawn_only=True)
            finished = sum(study.counts.finished for study in results)
            planned = sum(study.counts.planned for study in results)
            is_done = finished == planned
            report = write_page(results, output, None if is_done else WATCH_SECONDS)
            if report.note != note:
                note = report.note
                click.echo(note, err=True)
            line = f"{report.path}  {finished} of {planned} trials finished"
            if is_done:
                click.echo(line)
                click.echo(report.headline)
                return
        except (OutputTakenError, StudyFormatError):
            raise
        except (ReportError, StudiesError, SQLAlchemyError, OptunaError) as error:
            if is_bug(error, USER_ERRORS):
                raise
            line = f"no report yet: {error_message(error)}"
        if line != last_line:
            click.echo(line)
            last_line = line
        time.sleep(WATCH_SECONDS)
