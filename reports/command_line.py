"""``python -m reports``, and the report that a search ends with."""

from pathlib import Path

import click

from reports.errors import ReportError
from studies.command_line import run_command, storage_options
from studies.errors import StudiesError


def report_at_the_end(storage: str, names: list[str]) -> None:
    """Write the report of a search that has ended, and say where it is."""
    try:
        path = _write(storage, names)
    except ReportError as error:  # nothing complete is no failure of the search
        click.echo(f"no report: {error}")
        return
    click.echo(f"report: {path}")


def _write(storage: str, names: list[str], output: Path | None = None) -> Path:
    # Imported here: a search that only begins, or is refused, need not wait for what draws.
    from reports.page import write_report

    return write_report(storage, names, output)


@click.command(
    help="Write one self-contained HTML page about the results of one or several studies."
)
@click.argument("studies", metavar="STUDY...", nargs=-1, required=True)
@storage_options
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write; by default one in reports/out/.",
)
def reports(studies: tuple[str, ...], storage: str, output: Path | None, debug: bool) -> int:
    """Write a report."""
    names = [Path(study).stem if study.endswith(".toml") else study for study in studies]
    click.echo(_write(storage, names, output))
    return 0


def main() -> None:
    """Run the command."""
    run_command(reports, (StudiesError, ReportError))
