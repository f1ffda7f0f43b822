"""The commands ``run_search.py`` and ``refine.py``, whose options are the same, and the status."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeVar, get_args

import click

from rnn_search.api import run_search_and_report
from search.display import format_status
from search.launch.launcher import Launcher, create_launcher
from search.launch.status import format_jobs, read_jobs
from search.launch.target import parse_target
from search.refinement import MAX_UNCONFIRMED
from search.session import RunOptions, require_refinement
from search.status import read_status
from search.worker.shutdown import parse_duration
from studies.artifacts import local_folder, open_store
from studies.cli import (
    artifacts_option,
    dashboard_port_option,
    storage_options,
    study_argument,
)
from studies.config import PrecisionSetting
from studies.loader import read_record, read_study_record
from studies.storage.open import load_study, read_storage
from studies.text import shorten

_F = TypeVar("_F", bound=Callable[..., Any])


def _parse_duration(
    context: click.Context, option: click.Parameter, text: str | None
) -> float | None:
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{error}: expected a duration such as 45m, 3h or 1h30m"
        ) from error


def _parse_lockstep(context: click.Context, option: click.Parameter, text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise click.BadParameter(
            f"invalid value {shorten(text)!r}: expected auto or a positive integer"
        )
    return int(text)


_STUDY_OPTIONS = (
    click.option(
        "--name", show_default="name of its config, or STUDY-trial-N", help="Name of the study."
    ),
    click.option(
        "--trial",
        metavar="N",
        type=click.IntRange(0, 2**63 - 1),
        help="Run trial N of the stored study STUDY once more, alone, as a study of one trial.",
    ),
    click.option(
        "--set",
        "overrides",
        metavar="KEY=VALUE",
        multiple=True,
        help="Override a setting of the config, as in training.steps=2000; may be repeated.",
    ),
    click.option(
        "--unset",
        metavar="KEY",
        multiple=True,
        help="Leave out a setting of the config, as in space.norm, so that it has its default; "
        "before --set; may be repeated.",
    ),
    click.option(
        "--precision",
        type=click.Choice(get_args(PrecisionSetting)),
        help="Precision of matrix products; fixed when the study is created.",
    ),
    click.option(
        "--prune",
        is_flag=True,
        help="Prune trials that are unlikely to finish among the best; same as "
        "--set pruning.enabled=true.",
    ),
    click.option(
        "--extend",
        is_flag=True,
        help="Add trials for values that were added to the config's search space, and train "
        "complete trials for more steps if training.steps is larger; store another question, "
        "report_threshold or nuisance.",
    ),
    click.option(
        "--yes",
        is_flag=True,
        help=f"Confirm more than {MAX_UNCONFIRMED:,} new trials, which are refused otherwise.",
    ),
    click.option(
        "--stored",
        "is_stored",
        is_flag=True,
        help="STUDY is the name of a study in the storage; no file is read.",
    ),
)
"""Options that say what a study is."""

_RUN_OPTIONS = (
    click.option(
        "--corpus",
        metavar="NAME|PATH",
        help="Corpus to use instead of the config's: stdlib, enwik8, recall:D or a file.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Worker processes to start on this machine, or jobs on a cluster.",
    ),
    click.option(
        "--launch",
        metavar="local|slurm|ray[://HOST:PORT]",
        default="local",
        show_default=True,
        help="Where to start the workers: on this machine, or as jobs of a cluster.",
    ),
    click.option(
        "--launch-set",
        metavar="KEY=VALUE",
        multiple=True,
        help="Option of the cluster's jobs, as in partition=gpu or time=04:00:00; may be repeated.",
    ),
    click.option(
        "--cancel",
        is_flag=True,
        help="End the study's jobs on the cluster; their trials are requeued with checkpoints.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1, max=1024),
        show_default="share of this machine's cores",
        help="CPU threads per worker.",
    ),
    click.option(
        "--lockstep",
        callback=_parse_lockstep,
        metavar="auto|K",
        default="auto",
        show_default=True,
        help="Maximum number of networks that a worker trains in lockstep.",
    ),
    click.option(
        "--device",
        metavar="auto|cpu|cuda[:i]",
        default="auto",
        show_default=True,
        help="Device to train on.",
    ),
    click.option(
        "--no-wait",
        is_flag=True,
        help="Exit when no trial is left to claim, even if other workers still run some.",
    ),
    click.option(
        "--until",
        callback=_parse_duration,
        metavar="DURATION",
        help="Stop cleanly after this time, as in 45m, 3h or 1h30m.",
    ),
    click.option(
        "--dashboard",
        is_flag=True,
        help="Serve optuna-dashboard during the search, on this machine only.",
    ),
    dashboard_port_option,
    click.option(
        "--no-report", is_flag=True, help="Do not write a report when the study is finished."
    ),
    artifacts_option,
)
"""Options that say where and how long a search runs."""

_STATUS_OPTIONS = (
    click.option(
        "--status",
        is_flag=True,
        help="Print the progress of the study and exit without changing anything.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the status as JSON."),
)


def _search_options(default_study: str) -> Callable[[_F], _F]:
    """Add the STUDY argument and the options of a search to a command."""

    def decorate(command: _F) -> _F:
        command = storage_options(command)
        for option in reversed((*_STUDY_OPTIONS, *_RUN_OPTIONS, *_STATUS_OPTIONS)):
            command = option(command)
        return click.argument("study", default=default_study)(command)

    return decorate


def _run(
    *,
    is_refinement: bool = False,
    status: bool,
    as_json: bool,
    no_wait: bool,
    no_report: bool,
    dashboard: bool,
    port: int,
    debug: bool,
    launch: str,
    launch_set: tuple[str, ...],
    cancel: bool,
    **options: Any,
) -> int:
    """Run a search as given by its command line.

    Args:
        is_refinement: whether the study must derive from another.
        status: print the progress of the study instead.
        as_json: print the status as JSON.
        no_wait: exit while other workers still run trials.
        no_report: write no report at the end.
        dashboard: serve optuna-dashboard during the search.
        port: port of optuna-dashboard.
        debug: read by :func:`studies.cli.run_command`.
        launch: where to start the workers.
        launch_set: options of a cluster's jobs.
        cancel: end the jobs of the study instead.
        options: other fields of :class:`search.session.RunOptions`.

    Returns:
        The exit code.
    """
    try:
        target = parse_target(launch, launch_set)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    run_options = RunOptions(
        wait=not no_wait, is_refinement=is_refinement, target=target, **options
    )
    if as_json and not status:
        raise click.UsageError("--json requires --status")
    if cancel and status:
        raise click.UsageError("--cancel and --status exclude each other")
    if cancel and target.is_local:
        raise click.UsageError("--cancel requires --launch slurm or ray")
    if cancel:
        _cancel_jobs(run_options)
        return 0
    if status:
        _print_status(run_options, as_json)
        return 0
    result = run_search_and_report(run_options, not no_report, port if dashboard else None)
    if result.failure:
        click.echo(f"error: {result.failure}", err=True)
    return result.exit_code


def _print_status(options: RunOptions, as_json: bool) -> None:
    if options.is_refinement:
        require_refinement(options.load_file())
    with closing(read_storage(options.storage)) as storage:
        study = load_study(storage, options.stored_name)
        record = read_record(study)
        store = open_store(options.artifacts, options.storage, "checkpoints", read_only=True)
        folder = local_folder(store, record.artifact_folder)
        status = read_status(study, storage, record.config, checkpoints=folder)
        jobs = None
        if not options.target.is_local:
            jobs = read_jobs(_find_launcher(options), record.artifact_folder, study, storage)
    if as_json:
        extra = {} if jobs is None else {"jobs": [job.as_json() for job in jobs]}
        click.echo(json.dumps(status.as_json() | extra))
        return
    click.echo(format_status(status, record.config))
    if jobs is not None:
        click.echo(format_jobs(jobs))


def _find_launcher(options: RunOptions) -> Launcher:
    """Return the launcher of jobs that exist, whatever ``--launch-set`` asks of others."""
    return create_launcher(replace(options.target, settings={}))


def _cancel_jobs(options: RunOptions) -> None:
    launcher = _find_launcher(options)
    with closing(read_storage(options.storage)) as storage:
        study = load_study(storage, options.stored_name)
        name = read_study_record(study).artifact_folder
    click.echo(launcher.cancel(name))


_STUDY_HELP = "STUDY is a config in studies/, the path of a TOML file, or a study in the storage."


@click.command(
    help="Create or join a study and run its trials; any number of processes may share a study."
    f"\n\n{_STUDY_HELP}"
)
@_search_options(default_study="stage-one")
def run_search(**options: Any) -> int:
    """Run a search."""
    return _run(**options)


@click.command(
    help=f"Derive a study from the best trials of another and run its trials.\n\n{_STUDY_HELP}"
)
@_search_options(default_study="stage-two")
@click.option("--partial", is_flag=True, help="Accept a source study that is not finished.")
@click.option(
    "--until-decided",
    is_flag=True,
    help="Compare replicates at the planned looks of the config, and add runs until each "
    "architecture is worse than the best or as good, or the last look is reached.",
)
def refine(**options: Any) -> int:
    """Run a refinement."""
    return _run(is_refinement=True, **options)


def _run_options(command: _F) -> _F:
    command = storage_options(command)
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command


@click.command(
    "continue",
    help="Run the trials of the stored study NAME that are left, with its stored settings and "
    "cells; its file is not read.",
)
@click.argument("study", metavar="NAME")
@_run_options
def continue_search(study: str, storage: str, **options: Any) -> int:
    """Continue a stored study."""
    with closing(read_storage(storage)) as opened:
        refinement = read_study_record(load_study(opened, study)).config.refinement
    has_looks = refinement is not None and bool(refinement.looks)
    return _run(
        study=study,
        storage=storage,
        status=False,
        as_json=False,
        is_stored=True,
        until_decided=has_looks,
        **options,
    )


@click.command(help="Print the progress of a study without changing anything.")
@study_argument
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@storage_options
def status(study: str, as_json: bool, storage: str, debug: bool) -> int:
    """Print the status of a study."""
    _print_status(RunOptions(study, storage), as_json)
    return 0
