"""Derive a study from the best trials of another and run its trials."""

from typing import Any

import click

from reports.dashboard.launcher import DashboardView
from reports.errors import ReportError
from search.cli import STUDY_HELP, run, search_options
from search.errors import USER_ERRORS
from studies.cli import run_command


@click.command(help=f"{__doc__}\n\n{STUDY_HELP}")
@search_options(default_study="stage-two")
@click.option("--partial", is_flag=True, help="Accept a source study that is not finished.")
def refine(**options: Any) -> int:
    """Run a refinement."""
    return run(DashboardView(), is_refinement=True, **options)


if __name__ == "__main__":
    run_command(refine, (*USER_ERRORS, ReportError))
