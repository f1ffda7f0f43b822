"""The command ``rnn-search report``, and the report at the end of a search."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
import tenacity
from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from reports.errors import USER_ERRORS, OutputTakenError, ReportError
from studies.cli import is_bug, print_bug, storage_options, studies_argument
from studies.errors import StudiesError, StudyFormatError
from studies.storage.engine import error_message, is_transient

if TYPE_CHECKING:  # slow to import; commands that are refused do not need them
    from reports.page.page import Report

_T = TypeVar("_T")

WATCH_SECONDS = 60
"""Interval between two reports with ``--watch``."""

OUTAGE_SECONDS = 60
"""How long the report at the end of a search waits for an unavailable storage."""


def write_final_report(storage: str, names: list[str]) -> None:
    """Write the report of a finished search; print its path and its main result.

    A failure is printed and not raised: the results are recorded.
    """

    def write() -> "Report":
        from reports.page.page import write_report

        return write_report(storage, names)

    try:
        report = retry_outages(write)
    except Exception as error:
        click.echo(f"no report: {error_message(error)}")
        if is_bug(error, USER_ERRORS):
            print_bug(error)
        return
    click.echo(f"report: {report.path}")
    _print_headline(report)


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


@click.command(help="Write a self-contained HTML report of one or several studies.")
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
    """Write a report."""
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
    from reports.data.study_reader import read_results
    from reports.data.table_export import write_csv, write_curves, write_parquet
    from studies.storage.open import read_storage

    with closing(read_storage(storage)) as opened:
        results = [read_results(opened, name, (), with_windows=False) for name in names]
        for path, write in ((csv, write_csv), (dataframe, write_parquet)):
            if path:
                write(results, path)
                click.echo(path)
        if curves:
            write_curves(opened, results[0], curves)
            click.echo(curves)


def _watch(storage: str, names: Sequence[str], output: Path | None) -> None:
    """Update the report until all trials are finished; errors of the storage are retried."""
    from reports.data.study_reader import read_results
    from reports.page.page import write_page
    from studies.storage.open import read_storage

    last_line = note = ""
    while True:
        try:
            with closing(read_storage(storage)) as opened:
                results = [read_results(opened, name, drawn_only=True) for name in names]
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
