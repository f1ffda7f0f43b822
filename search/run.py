"""Run a search: create or join a study, and train its trials in one or several processes."""

from contextlib import AbstractContextManager, closing, nullcontext
from ctypes import c_bool
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import RawValue

import click

from rnn.training.devices import trim_heap
from search.display import (
    QuietDisplay,
    SafeConsole,
    Ticker,
    create_display,
    explain_failure,
    format_progress,
)
from search.errors import USER_ERRORS, ShutdownRequestedError, is_bug
from search.launch.jobs import run_jobs
from search.launch.launcher import Launcher
from search.pruning.pause_resume import PauseResumeScheduler
from search.session import RunOptions, Session, open_session
from search.status import Status, StatusReader
from search.worker.best_trials import BestModelStore, BestTrialFiles
from search.worker.claims import ClaimManager
from search.worker.cpu_budget import ThreadBudget
from search.worker.shutdown import ShutdownSignal
from search.worker.trainer import Trainer
from search.worker.worker import Worker
from search.worker_processes import run_worker_processes
from studies.cli import EXIT_FAILURE, print_bug, run_with_exit_code
from studies.errors import StorageLostError
from studies.interrupts import EXIT_INTERRUPTED, ignore_interrupts
from studies.measure import find_measure
from studies.storage.backup import merge_log, rescue_if_lost
from studies.storage.reads import read_trials

STOPPED_EARLY = "stopped before training began: run the same command to start"
"""Message of a run that has nothing to resume."""


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes:
        study: name of the study.
        finished: number of its finished trials, by any worker.
        was_finished: whether it was finished when this process joined it.
        signal: number of the signal that stopped the run; None without one.
        failed_workers: number of worker processes that failed, after a warning for each.
        failure: why a finished study has no complete trial; "" otherwise.
        is_finished: whether it was finished when the run ended.
        artifact_folder: its artifact folder; "" if the run ended before it was opened.
        looks: number of planned looks taken at it when this process joined it.
    """

    study: str
    finished: int
    was_finished: bool
    signal: int | None = None
    failed_workers: int = 0
    failure: str = ""
    is_finished: bool = False
    artifact_folder: str = ""
    looks: int = 0

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as in shells; 1 after a failure, else 0."""
        if self.signal is not None:
            return 128 + self.signal
        return int(bool(self.failed_workers or self.failure))


def run_workers(
    options: RunOptions,
    context: AbstractContextManager[object] | None = None,
    has_trained: c_bool | None = None,
    launcher: Launcher | None = None,
) -> RunResult:
    """Create or join a study and run its trials until all are finished.

    Args:
        options: options of the command line.
        context: context manager entered once the study is open, for the rest of the run.
        has_trained: flag in shared memory that is set once this process has trained a step.
        launcher: launcher of the run, from :func:`search.launch.jobs.prepare_launch`; None for
            workers on this machine.

    Raises:
        StudiesError, RNNError, SearchError: for invalid input, before anything is written.
        StorageLostError: if the storage or the study was deleted during the search.
    """
    has_trained = RawValue(c_bool, False) if has_trained is None else has_trained
    console = SafeConsole()
    name = options.stored_name
    preparing = f"preparing study {name} (storage, data and cells)"
    if launcher is not None:
        options = replace(options, is_shared=launcher.uses_other_machines)
    until = options.until if launcher is None else None  # each worker of a cluster stops itself
    stop = ShutdownSignal(until, with_parent=options.is_subprocess)
    try:
        with nullcontext() if options.is_subprocess else Ticker(console, preparing):
            session = open_session(options, stop, console.print_line)
    except ShutdownRequestedError:
        if not options.is_subprocess:
            console.print_line(STOPPED_EARLY)
        return RunResult(name, 0, False, stop.signal)
    handle, config = session.handle, session.handle.config
    storage = handle.storage
    # The parent of worker processes rescues a lost file and reports it, once for all of them.
    rescue = nullcontext() if options.is_subprocess else rescue_if_lost(storage)
    with closing(storage), rescue, context or nullcontext():
        if not options.is_subprocess:
            _print_study(console, session)
        reader = session.reader
        was_finished = reader.recent_status().is_finished
        with (
            stop,
            create_display(console, reader, options.is_subprocess) as display,
            ClaimManager(
                storage,
                handle.study_id,
                session.worker_name,
                stop,
                config.lease.seconds,
                config.outage.seconds,
            ) as claims,
        ):
            reader.attach(claims)
            failed_workers, failure = 0, ""
            if launcher is not None:
                failure = run_jobs(options, launcher, session, reader, stop, console, display)
            elif options.workers == 1:
                _run_worker(options, session, claims, reader, stop, display, has_trained)
            else:
                console.print_line(f"starting {options.workers} worker processes")
                failed_workers = run_worker_processes(
                    _run_and_exit, options, reader, stop, display, has_trained
                )
            status = reader.read_status()
        merge_log(storage)
        if not options.is_subprocess:
            failure = failure or _conclude(console, session, status, stop, has_trained, launcher)
    trim_heap()  # a report, which may follow, needs as much memory
    finished = status.counts.finished
    return RunResult(
        status.name,
        finished,
        was_finished,
        stop.signal,
        failed_workers,
        failure,
        status.is_finished,
        handle.artifact_folder,
        len(handle.record.looks),
    )


def _run_worker(
    options: RunOptions,
    session: Session,
    claims: ClaimManager,
    reader: StatusReader,
    stop: ShutdownSignal,
    display: QuietDisplay,
    has_trained: c_bool,
) -> None:
    """Run a worker in this process."""
    handle = session.handle
    query = claims.query_after_flush
    models = BestModelStore(handle, session.weights, query)
    finals = BestTrialFiles(handle, session.final_checkpoints, query, "checkpoints")
    scheduler = None
    if handle.config.pruning.enabled:
        scheduler = PauseResumeScheduler(handle.storage, handle.study_id, handle.config)
    with ThreadBudget(options.threads) as budget:
        trainer = Trainer(
            handle,
            session.device,
            budget,
            session.checkpoints,
            display,
            session.worker_name,
            options.lockstep,
            models,
            finals,
        )
        count_trials = reader.count_trials
        worker = Worker(claims, trainer, count_trials, stop, display, options.wait, scheduler)
        try:
            worker.run()
        finally:
            has_trained.value = has_trained.value or trainer.has_trained


def _print_study(console: SafeConsole, session: Session) -> None:
    handle, config = session.handle, session.handle.config
    data = f"task {config.task.source}, {find_measure(config).name}"
    if handle.corpus is not None:
        data = f"{handle.corpus.name}, {len(handle.corpus.text):,} bytes"
    console.print_line(
        f"study {handle.study.study_name}: {data}; "
        f"{config.training.steps:,} steps per trial, {config.precision} on {session.device}",
    )
    if handle.notice:
        console.print_line(handle.notice)
    if handle.warning:
        console.print_line(f"warning: {handle.warning}")


def _conclude(
    console: SafeConsole,
    session: Session,
    status: Status,
    stop: ShutdownSignal,
    has_trained: c_bool,
    launcher: Launcher | None,
) -> str:
    """Print the outcome of a run and remove the checkpoints of a finished study.

    Returns:
        Why the study is finished without a complete trial; "" otherwise.
    """
    if status.is_finished:
        _remove_leftovers(session)
    console.print_line(f"study {status.name}: {format_progress(status)}")
    if stop.requested and not status.is_finished and launcher is None:
        if has_trained.value:
            console.print_line("stopped; progress is saved: run the same command to resume")
        else:
            console.print_line(STOPPED_EARLY)
    if status.is_finished and not status.counts.complete + status.counts.pruned:
        trials = read_trials(session.handle.storage, session.handle.study_id)
        return explain_failure(status.name, trials, status.counts)
    return ""


def _remove_leftovers(session: Session) -> None:
    try:
        session.checkpoints.clear()
        session.weights.remove_temporary_files()
    except Exception as error:  # the results are recorded; leftover files must not fail the run
        click.echo(
            f"warning: cannot remove checkpoints or temporary files of the finished study "
            f"({error}); they are no longer needed",
            err=True,
        )
        if is_bug(error):
            print_bug(error)


def _run_and_exit(options: RunOptions, has_trained: c_bool) -> None:
    # The parent reports an interrupt and ends the workers that are not ready for signals.
    ignore_interrupts()

    def main() -> int:
        try:
            return run_workers(options, has_trained=has_trained).exit_code
        except StorageLostError:  # reported by the parent
            return EXIT_FAILURE
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED

    run_with_exit_code(main, USER_ERRORS)
