"""Derive a study from the best of a finished one, and work on it; in several terminals, too."""

from typing import Any

import click

from reports.dashboard.view import DashboardView
from reports.errors import ReportError
from search.cli import STUDY_HELP, run, work_options
from search.errors import USER_ERRORS
from studies.cli import run_command


@click.command(help=f"{__doc__}\n\n{STUDY_HELP}")
@work_options(default_study="stage-two")
@click.option(
    "--partial", is_flag=True, help="Derive from what is finished of an unfinished source."
)
def refine(**options: Any) -> int:
    """Work on a derived study."""
    return run(DashboardView(), derived=True, **options)


if __name__ == "__main__":
    run_command(refine, (*USER_ERRORS, ReportError))
