"""Run a study's workers as jobs of a cluster, follow them, and list them for the status."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from search.create_or_join import StudyHandle
from search.launch.launcher import (
    Job,
    Launcher,
    LaunchError,
    WorkerCommand,
    count_states,
    create_launcher,
    mark_folder,
    parse_job,
    require_server,
)
from search.run_options import RunOptions
from search.status import Status, StatusReader
from search.worker.shutdown import ShutdownSignal
from studies.messages import format_trials
from studies.option_models import to_words
from studies.storage.counts import ActiveWorker

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
    launcher = create_launcher(options.target)
    if launcher.ends_with_command and not options.wait:
        raise LaunchError(
            f"--no-wait would end the workers at once: {options.target.kind} ends them with the "
            "command that submitted them"
        )
    require_server(options.storage)
    launcher.check()
    return launcher


def run_jobs(
    options: RunOptions,
    launcher: Launcher,
    handle: StudyHandle,
    reader: StatusReader,
    stop: ShutdownSignal,
) -> str:
    """Submit the jobs of a study that are missing, and follow them until the study is finished.

    Returns:
        Why no job is left though the study is not finished; "" otherwise.

    Raises:
        LaunchError: if the cluster refuses the jobs.
    """
    status = reader.read_status()
    if status.is_finished:
        return ""
    _submit_missing(options, launcher, handle, status)
    if not options.wait:
        return ""
    name = handle.artifact_folder
    empty_lists = 0
    next_list = time.monotonic() + JOBS_SECONDS
    while not stop.requested:
        status = reader.read_status()
        if status.is_finished:
            return ""
        if time.monotonic() >= next_list:
            empty_lists = 0 if _has_jobs(launcher, name, status) else empty_lists + 1
            next_list = time.monotonic() + JOBS_SECONDS
        if empty_lists == 2:  # a worker that has just finished a trial holds none
            return _explain_end(options, status)
        stop.wait(POLL_SECONDS)
    _logger.info(launcher.leave(name))
    return ""


def _submit_missing(
    options: RunOptions, launcher: Launcher, handle: StudyHandle, status: Status
) -> None:
    # One that is ending, as after ``--cancel``, will claim no trial.
    jobs = launcher.list_jobs(handle.artifact_folder, status.workers)
    existing = [job for job in jobs if job.state != "completing"]
    if existing:
        _logger.info(f"jobs of this study already: {count_states(existing)}")
    if (missing := options.workers - len(existing)) > 0:
        command = build_worker_command(options, handle)
        for line in launcher.submit(handle.artifact_folder, command, missing):
            _logger.info(line)


def _explain_end(options: RunOptions, status: Status) -> str:
    """Return why no job is left of a study that is not finished; "" after a time limit."""
    if options.until is not None:
        _logger.info("the workers have stopped: run the same command to resume")
        return ""
    return (
        f"no job of study {status.name!r} is left, and it is not finished: read the logs of the "
        "jobs, and run the same command to submit others"
    )


def build_worker_command(options: RunOptions, handle: StudyHandle) -> WorkerCommand:
    """Return the command of a worker; ``--until`` counts from the start of each.

    Raises:
        LaunchError: if the folder of checkpoints cannot be written.
    """
    worker = handle.for_worker(options).model_copy(update={"wait": True})
    arguments = ("continue", handle.name, "--storage", options.storage, *to_words(worker))
    marker = mark_folder(handle.folders.root("checkpoints"))
    return WorkerCommand(arguments, marker, options.threads, options.device)


def _has_jobs(launcher: Launcher, name: str, status: Status) -> bool:
    """Return whether jobs are left; a cluster that does not answer for a while may have some."""
    try:
        return bool(launcher.list_jobs(name, status.workers))
    except LaunchError as error:
        _logger.warning(f"the jobs cannot be listed ({error}); trying again")
        return True


def read_jobs(launcher: Launcher, name: str, workers: Sequence[ActiveWorker]) -> list[Job]:
    """List the jobs of a study, by its artifact folder, with the trials that they hold."""
    held = {parse_job(worker.name): worker.trials for worker in workers}
    jobs = launcher.list_jobs(name, workers)
    return [replace(job, trials=held.get(job.id, ())) for job in jobs]


def format_jobs(jobs: Sequence[Job]) -> str:
    """Format jobs as the lines that the status prints below those of the study."""
    lines = [f"{'jobs':9} {count_states(jobs) or 'none'}"]
    for job in jobs:
        trials = format_trials(job.trials) if job.trials else ""
        lines.append(f"  {job.id:12}  {job.state:10}  {job.host:12}  {trials}".rstrip())
    return "\n".join(lines)
