"""``python -m reports``, and the report that a search ends with."""

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click
import tenacity
from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from reports.errors import OutputTakenError, ReportError
from studies.cli import run_command, storage_options, studies_argument
from studies.errors import StudiesError, StudyFormatError
from studies.storage.retry import error_message, is_transient

if TYPE_CHECKING:  # what draws is slow to import
    from reports.page.page import Report

WATCH_SECONDS = 60
"""Between two reports of a study that is watched."""

OUTAGE_SECONDS = 60
"""After which the report of a search that has ended is not tried again, if the storage is away."""


def write_final_report(storage: str, names: list[str]) -> None:
    """Write the report of a search that has ended; print its path and its main result.

    Whatever fails here is no failure of the search: its results are recorded.
    """

    def write() -> "Report":
        from reports.page.page import write_report

        return write_report(storage, names)

    has_told = False

    def tell(state: tenacity.RetryCallState) -> None:
        nonlocal has_told
        if not has_told:
            has_told = True
            click.echo("the storage is away; the report waits for it")

    patiently = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random(0.2, 2),
        stop=tenacity.stop_after_delay(OUTAGE_SECONDS),
        before_sleep=tell,
        reraise=True,
    )
    try:
        report = patiently(write)
    except Exception as error:
        click.echo(f"no report: {error_message(error)}")
        return
    click.echo(f"report: {report.path}")
    click.echo(report.headline)
    if report.note:
        click.echo(report.note, err=True)


@click.command(
    help="Write one self-contained HTML page about the results of one or several studies."
)
@studies_argument
@storage_options
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write; by default one in reports/out/.",
)
@click.option(
    "--watch",
    is_flag=True,
    help=f"Write it anew every {WATCH_SECONDS} seconds, until every point is finished.",
)
@click.option(
    "--csv",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a row a point to this file, in place of a page.",
)
@click.option(
    "--dataframe",
    metavar="FILE.parquet",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The same as Parquet, for pandas.read_parquet.",
)
@click.option(
    "--curves",
    metavar="FILE.csv[.gz]",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a row a complete point with its whole curve, of one study.",
)
def reports(
    studies: tuple[str, ...],
    storage: str,
    output: Path | None,
    watch: bool,
    csv: Path | None,
    dataframe: Path | None,
    curves: Path | None,
    debug: bool,
) -> int:
    """Write a report."""
    if csv or dataframe or curves:
        if watch or output:
            raise click.UsageError(
                "--csv, --dataframe and --curves write rows, not a page; leave out --watch and "
                "--output"
            )
        if curves and len(studies) > 1:
            raise click.UsageError(
                f"--curves was given {len(studies)} studies; allowed: one, for the steps of others "
                "may be other ones; name one"
            )
        _write_rows(storage, studies, csv, dataframe, curves)
        return 0
    if watch:
        _watch(storage, studies, output)
        return 0
    # Imported here: a command that is refused need not wait for what draws.
    from reports.page.page import write_report

    report = write_report(storage, studies, output)
    click.echo(report.path)
    click.echo(report.headline)
    if report.note:
        click.echo(report.note, err=True)
    return 0


def _write_rows(
    storage: str,
    names: Sequence[str],
    csv: Path | None,
    dataframe: Path | None,
    curves: Path | None,
) -> None:
    from reports.data.results import read_results
    from reports.data.table_export import write_csv, write_curves, write_parquet
    from studies.storage.open import read_storage

    with closing(read_storage(storage)) as opened:
        wanted = None if curves else ()
        results = [read_results(opened, name, wanted, with_windows=False) for name in names]
    for path, write in ((csv, write_csv), (dataframe, write_parquet), (curves, write_curves)):
        if path:
            write(results, path)
            click.echo(path)


def _watch(storage: str, names: Sequence[str], output: Path | None) -> None:
    """Write the report again and again, whatever happens to the storage, until all is finished."""
    from reports.data.results import read_results
    from reports.page.page import write_page
    from studies.storage.open import read_storage

    last = note = ""
    while True:
        try:
            with closing(read_storage(storage)) as opened:
                results = [read_results(opened, name) for name in names]
            is_done = all(r.counts.finished == r.counts.planned for r in results)
            report = write_page(results, output, None if is_done else WATCH_SECONDS)
            if report.note != note:
                note = report.note
                click.echo(note, err=True)
            finished = sum(r.counts.finished for r in results)
            planned = sum(r.counts.planned for r in results)
            line = f"{report.path}  {finished} of {planned} points finished"
            if is_done:
                click.echo(line)
                click.echo(report.headline)
                return
        except (OutputTakenError, StudyFormatError):
            raise
        except (ReportError, StudiesError, SQLAlchemyError, OptunaError) as error:
            line = f"no report yet: {error_message(error)}"
        if line != last:
            click.echo(line)
            last = line
        time.sleep(WATCH_SECONDS)


def main() -> None:
    """Run the command."""
    run_command(reports, (StudiesError, ReportError))
