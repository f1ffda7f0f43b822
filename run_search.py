"""Join (or make) a study and work on it until it is done; in as many terminals as you like."""

from typing import Any

import click

from reports.dashboard.view import DashboardView
from reports.errors import ReportError
from search.cli import STUDY_HELP, run, work_options
from search.errors import USER_ERRORS
from studies.cli import run_command


@click.command(help=f"{__doc__}\n\n{STUDY_HELP}")
@work_options(default_study="stage-one")
def run_search(**options: Any) -> int:
    """Work on a study."""
    return run(DashboardView(), **options)


if __name__ == "__main__":
    run_command(run_search, (*USER_ERRORS, ReportError))
