"""The commands that run searches: run, refine, continue and status."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from rnn_search.commands.options import (
    artifacts_option,
    dashboard_port_option,
    options_of,
    storage_options,
    study_argument,
)
from search.run_options import RunOptions
from studies.option_models import build_options
from studies.study_settings import PER_WORKER

_F = TypeVar("_F", bound=Callable[..., Any])

_STUDY = (
    "name", "trial", "overrides", "corpus", "precision", "prune", "extend", "yes",
    "is_stored",
)  # fmt: skip
"""Options that say what a study is."""

_RUN = (
    "workers", "launch", "launch_set", "threads", "lockstep", "device", "wait", "until", "report",
)  # fmt: skip
"""Options that say where and how long a search runs."""


_DEFAULTS = {
    "stage-one": "432 trials of 10,000 steps, about four hours on two fast cores",
    "stage-two": "172 trials of 50,000 steps, more than a day on two fast cores",
}
"""Studies of the commands without STUDY, and the size and time of each as its file stands."""

_cancel_option = click.option(
    "--cancel",
    is_flag=True,
    help="Cancel the study's jobs on SLURM; their trials can be resumed.",
)

_dry_run_option = click.option(
    "--dry-run",
    is_flag=True,
    help="Say what the study costs on this machine and what it can find; nothing is written.",
)
_timing_option = click.option(
    "--no-timing", is_flag=True, help="With --dry-run: train nothing, so that no time is known."
)

_dashboard_option = click.option(
    "--dashboard",
    is_flag=True,
    help="Serve optuna-dashboard during the search, on this machine only.",
)


def _search_command(name: str, default: str, *more: str) -> Callable[[_F], _F]:
    """Make a command of a function: the STUDY argument and the options of a search."""

    def decorate(command: _F) -> _F:
        command = storage_options(artifacts_option(command))
        command = _cancel_option(_dashboard_option(dashboard_port_option(command)))
        command = _dry_run_option(_timing_option(command))
        command = options_of(RunOptions, (*_STUDY, *more, *_RUN))(command)
        command = click.argument("study", default=default)(command)
        return click.command(  # type: ignore[return-value]
            name,
            help=f"{command.__doc__}\n\nSTUDY is the name of a study file in studies/, the path of "
            f"one, or the name of a stored study. Without it, the study is {default}: "
            f"{_DEFAULTS[default]}.",
        )(command)

    return decorate


def _run(
    *,
    cancel: bool,
    dashboard: bool,
    port: int,
    dry_run: bool = False,
    no_timing: bool = False,
    **options: Any,
) -> int:
    """Run a search with fields of :class:`RunOptions`, or cancel its jobs; return the exit code.

    With ``dry_run`` print its plan.
    """
    run_options = build_options(RunOptions, **options)
    if cancel:
        if run_options.target.kind != "slurm":
            raise click.UsageError(
                "--cancel requires --launch slurm; workers on Ray end with the command that "
                "submitted them: press Ctrl-C there, or use ray job stop"
            )
        from search.launch.slurm import SlurmLauncher
        from studies.storage.open import load_study, read_storage, read_study_record

        with closing(read_storage(run_options.storage)) as storage:
            record = read_study_record(load_study(storage, run_options.stored_name))
        click.echo(SlurmLauncher({}).cancel(record.artifact_folder))
        return 0
    if _is_default("study") and run_options.trial is None:
        study = run_options.study
        click.echo(f"running {study}, as no STUDY is given; its file has {_DEFAULTS[study]}")
    if dry_run:
        from search.plan import plan_search  # slow to import

        click.echo(plan_search(run_options, not no_timing))
        return 0
    from rnn_search.api import run_search_and_report  # slow to import

    result = run_search_and_report(run_options, port if dashboard else None)
    if result.failure:
        click.echo(f"error: {result.failure}", err=True)
    return result.exit_code


def _is_default(name: str) -> bool:
    """Return whether a parameter of the present command was not given."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.DEFAULT


@_search_command("run", "stage-one")
def run_search(**options: Any) -> int:
    """Create or join a study and run its trials; any number of processes may share a study."""
    return _run(**options)


@_search_command("refine", "stage-two", "partial")
def refine(**options: Any) -> int:
    """Derive a study from the best trials of another and run its trials."""
    return _run(is_refinement=True, **options)


@click.command("continue")
@click.argument("study", metavar="NAME")
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Setting of this worker, as in lease.seconds=30; may be repeated. It is one of "
    f"{', '.join(sorted(PER_WORKER))} and task.source.",
)
@click.option("--corpus", metavar="PATH", help="Path of the study's text, if the file has moved.")
@options_of(RunOptions, _RUN)
@_cancel_option
@_dashboard_option
@dashboard_port_option
@artifacts_option
@storage_options
def continue_search(**options: Any) -> int:
    """Run the trials of the stored study NAME that are left.

    Settings, cells and task are those that the study stores. No study file is read.
    """
    return _run(by_name=True, **options)


@click.command
@study_argument
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.option(
    "--launch",
    metavar="slurm|ray[://HOST:PORT]",
    default="local",
    help="List the study's jobs on a cluster as well.",
)
@storage_options
def status(study: str, as_json: bool, launch: str, storage: str) -> None:
    """Print the progress of a study without changing anything."""
    from search.launch.jobs import format_jobs, read_jobs
    from search.launch.launcher import create_launcher
    from search.status import format_status, read_status
    from studies.storage.open import load_study, read_record, read_storage

    target = build_options(RunOptions, study=study, storage=storage, launch=launch).target
    with closing(read_storage(storage)) as opened:
        loaded = load_study(opened, study)
        record = read_record(loaded)
        found = read_status(loaded, opened, record.config)
        jobs = None
        if not target.is_local:
            jobs = read_jobs(create_launcher(target), record.artifact_folder, found.workers)
    if as_json:
        extra = {} if jobs is None else {"jobs": [asdict(job) for job in jobs]}
        click.echo(json.dumps(found.as_json() | extra))
        return
    click.echo(format_status(found, record.config))
    if jobs is not None:
        click.echo(format_jobs(jobs))
