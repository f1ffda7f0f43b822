"""Run a study's workers as jobs of a cluster, and follow their progress."""

import logging
import sys
import time
from pathlib import Path

from search.display import QuietDisplay, SafeConsole
from search.errors import LaunchError
from search.launch.launcher import PROJECT, Launcher, WorkerCommand, count_states, create_launcher
from search.launch.shared_files import (
    require_server,
    require_shared,
    require_shared_artifacts,
    warn_of_loopback,
)
from search.session import RunOptions, Session
from search.status import StatusReader
from search.worker.shutdown import ShutdownSignal

POLL_SECONDS = 2.0
"""Interval between reads of the study's status."""

JOBS_SECONDS = 20.0
"""Interval between lists of the jobs; a cluster's controller serves many users."""

_logger = logging.getLogger(__name__)


def prepare_launch(options: RunOptions) -> Launcher | None:
    """Create the launcher of a run, and check what workers on other machines need.

    Returns:
        The launcher; None for workers on this machine.

    Raises:
        LaunchError: if the cluster cannot run the workers; nothing has been written.
    """
    if options.target.is_local:
        return None
    if options.settings is not None:
        raise LaunchError(
            f"settings in Python cannot be launched on {options.target.kind}: write them to a "
            "study file and run that"
        )
    launcher = create_launcher(options.target)
    if launcher.ends_with_command and not options.wait:
        raise LaunchError(
            f"--no-wait would end the workers at once: {options.target.kind} ends them with the "
            "command that submitted them"
        )
    if launcher.uses_other_machines:
        require_server(options.storage)
        require_shared_artifacts(options.artifacts, options.storage)
        if launcher.log_folder is not None:
            require_shared(
                launcher.log_folder, "folder of logs", "expected a shared working directory"
            )
        is_path = options.study.endswith(".toml") or "/" in options.study
        if is_path and not options.is_stored and options.trial is None:
            require_shared(Path(options.study), "study file")
    return launcher


def run_jobs(
    options: RunOptions,
    launcher: Launcher,
    session: Session,
    reader: StatusReader,
    stop: ShutdownSignal,
    console: SafeConsole,
    display: QuietDisplay,
) -> str:
    """Submit the jobs of a study that are missing, and follow them until the study is finished.

    Returns:
        Why no job is left though the study is not finished; "" otherwise.

    Raises:
        LaunchError: if the cluster refuses the jobs.
    """
    name = session.handle.artifact_folder
    is_refinement = session.handle.config.refinement is not None
    status = reader.read_status()
    if status.is_finished:
        return ""
    # One that is ending, as after ``--cancel``, will claim no trial.
    existing = [job for job in launcher.list_jobs(name) if job.state != "completing"]
    if existing:
        console.print_line(f"jobs of this study already: {count_states(existing)}")
    if (missing := options.workers - len(existing)) > 0:
        if launcher.uses_other_machines and (warning := warn_of_loopback(options.storage)):
            console.print_line(f"warning: {warning}")
        for line in launcher.submit(name, build_worker_command(options, is_refinement), missing):
            console.print_line(line)
    if not options.wait:
        return ""
    next_list = time.monotonic() + JOBS_SECONDS
    while not stop.requested:
        display.on_log(reader.read_running())
        if reader.read_status().is_finished:
            return ""
        if time.monotonic() >= next_list:
            if not _has_jobs(launcher, name) and not reader.read_status().is_finished:
                return _describe_end(options, status.name, console)
            next_list = time.monotonic() + JOBS_SECONDS
        stop.wait(POLL_SECONDS)
    console.print_line(launcher.leave(name))
    return ""


def _has_jobs(launcher: Launcher, name: str) -> bool:
    """Return whether jobs are left; a cluster that does not answer for a while may have some."""
    try:
        return bool(launcher.list_jobs(name))
    except LaunchError as error:
        _logger.warning(f"the jobs cannot be listed ({error}); trying again")
        return True


def _describe_end(options: RunOptions, study: str, console: SafeConsole) -> str:
    """Return why no job is left of a study that is not finished; "" if ``--until`` ended them."""
    if options.until is not None:
        console.print_line("the workers have stopped: run the same command to resume")
        return ""
    return (
        f"no job of study {study!r} is left, and it is not finished: read the logs of the jobs, "
        "and run the same command to submit others"
    )


def cancel_pending(launcher: Launcher, name: str, console: SafeConsole) -> None:
    """End the jobs of a finished study that have not started."""
    try:
        line = launcher.cancel_pending(name)
    except LaunchError as error:  # they exit as soon as they start
        line = f"warning: jobs that have not started cannot be cancelled ({error})"
    if line:
        console.print_line(line)


def build_worker_command(options: RunOptions, is_refinement: bool) -> WorkerCommand:
    """Return the command of a worker: the options of a run, without those of its launch.

    The study exists by now, and was extended if that was asked for. ``--until`` counts from the
    start of each worker.

    Args:
        options: options of the run.
        is_refinement: whether the study derives from another, which ``options`` need not say.
    """
    program = "refine.py" if is_refinement else "run_search.py"
    arguments = [sys.executable, str(PROJECT / program), options.study]
    for option, value in (
        ("--storage", options.storage),
        ("--artifacts", options.artifacts),
        ("--trial", options.trial),
        ("--name", options.name),
        ("--corpus", options.corpus),
        ("--precision", options.precision),
        ("--lockstep", options.lockstep),
        ("--device", options.device),
        ("--threads", options.threads),
        ("--until", None if options.until is None else f"{options.until:.3f}s"),
        *(("--unset", key) for key in options.unset),
        *(("--set", override) for override in options.overrides),
    ):
        arguments += [] if value is None else [option, str(value)]
    arguments += ["--stored"] if options.is_stored else []
    arguments += ["--prune"] if options.prune else []
    arguments += ["--until-decided"] if options.until_decided else []
    arguments += [] if options.report else ["--no-report"]
    return WorkerCommand(tuple(arguments), Path.cwd(), options.threads, options.device)
