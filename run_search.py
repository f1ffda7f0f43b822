"""Create or join a study and run its trials; any number of processes may share a study."""

from typing import Any

import click

from reports.dashboard.launcher import DashboardView
from reports.errors import ReportError
from search.cli import STUDY_HELP, run, search_options
from search.errors import USER_ERRORS
from studies.cli import run_command


@click.command(help=f"{__doc__}\n\n{STUDY_HELP}")
@search_options(default_study="stage-one")
def run_search(**options: Any) -> int:
    """Run a search."""
    return run(DashboardView(), **options)


if __name__ == "__main__":
    run_command(run_search, (*USER_ERRORS, ReportError))
