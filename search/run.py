"""Run a search: create or join a study, and train its trials in one or several processes."""

import multiprocessing
import os
import shlex
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from ctypes import c_bool
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawValue

import click
import torch

from rnn.training.devices import assign_devices, resolve_device, trim_heap
from search.errors import USER_ERRORS
from search.progress import explain_failure, format_progress
from search.pruning.pause_resume import PauseResumeScheduler
from search.status import Status, StatusReader
from search.study import StudyHandle, StudyOptions, create_or_join
from search.terminal import QuietDisplay, SafeConsole, Ticker, create_display
from search.worker.best_models import BestModelStore
from search.worker.claims import ClaimManager
from search.worker.corpus_watch import CorpusWatch
from search.worker.cpu_budget import ThreadBudget
from search.worker.shutdown import SIGNALS, ShutdownSignal
from search.worker.trainer import Trainer
from search.worker.trial_artifacts import CheckpointStore, WeightStore
from search.worker.worker import Worker
from studies.artifacts import open_store
from studies.cli import run_with_exit_code, study_name
from studies.loader import load_config_file
from studies.storage.queries import read_trials

POLL_SECONDS = 1.0
"""Interval between checks of the worker processes."""

_CLEAN_EXIT_CODES = {0, *(128 + number for number in SIGNALS)}
"""Exit codes of workers that finished, or stopped on request."""


@dataclass(frozen=True)
class RunOptions:
    """Options of the command line; see ``run_search.py --help``.

    Attributes:
        until: seconds after which to stop.
        is_subprocess: whether this is a worker process whose parent reports the progress.
        program: name of the entry point.
    """

    study: str
    storage: str
    name: str | None = None
    corpus: str | None = None
    overrides: tuple[str, ...] = ()
    workers: int = 1
    threads: int | None = None
    lockstep: int | None = None
    device: str = "auto"
    precision: str | None = None
    prune: bool = False
    extend: bool = False
    wait: bool = True
    partial: bool = False
    artifacts: str | None = None
    until: float | None = None
    is_subprocess: bool = False
    program: str = "run_search.py"

    @property
    def study_options(self) -> StudyOptions:
        """Options that define the study, in addition to its config file."""
        return StudyOptions(
            self.name,
            self.corpus,
            self.precision,
            self.prune,
            self.extend,
            self.partial,
            self.command,
        )

    @property
    def command(self) -> str:
        """Command line that creates the same study in any storage."""
        words = ["python", self.program, self.study]
        for option, value in (
            ("--name", self.name),
            ("--corpus", self.corpus),
            ("--precision", self.precision),
            *(("--set", override) for override in self.overrides),
        ):
            words += [] if value is None else [option, value]
        words += ["--prune"] if self.prune else []
        words += ["--extend"] if self.extend else []
        words += ["--partial"] if self.partial else []
        return shlex.join(words)


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes:
        study: name of the study.
        finished: number of its finished trials, by any worker.
        was_finished: whether it was finished when this process joined it.
        exit_code: exit code of the command.
    """

    study: str
    finished: int
    was_finished: bool
    exit_code: int


def run_workers(
    options: RunOptions,
    context: AbstractContextManager[object] | None = None,
    has_trained: c_bool | None = None,
) -> RunResult:
    """Create or join a study and run its trials until all are finished.

    Args:
        options: options of the command line.
        context: context manager entered once the study is open, for the rest of the run.
        has_trained: flag in shared memory that is set once this process has trained a step.

    Raises:
        StudiesError, RNNError, SearchError: for invalid input, before anything is written.
    """
    has_trained = RawValue(c_bool, False) if has_trained is None else has_trained
    console = SafeConsole()
    name = options.name or study_name(options.study)
    preparing = f"preparing study {name}: opening the storage and loading the corpus"
    with nullcontext() if options.is_subprocess else Ticker(console, lambda: preparing):
        session = _Session.open(options)
    handle, config = session.handle, session.handle.config
    with closing(handle.storage), context or nullcontext():
        if not options.is_subprocess:
            _print_study(console, session)
        reader = StatusReader(handle.study, handle.storage, config, options.workers)
        was_finished = reader.recent_status().is_finished
        with (
            ShutdownSignal(options.until, with_parent=options.is_subprocess) as stop,
            create_display(console, reader, options.is_subprocess) as display,
            ClaimManager(
                handle.storage,
                handle.study_id,
                session.worker_name,
                stop,
                config.lease.seconds,
                config.outage.seconds,
            ) as claims,
        ):
            reader.attach(claims)
            exit_code = 0
            if options.workers == 1:
                _run_worker(options, session, claims, reader, stop, display, has_trained)
            else:
                console.print_line(f"starting {options.workers} worker processes")
                watch = CorpusWatch(handle.corpus)
                exit_code = _run_worker_processes(
                    options, reader, stop, display, watch, has_trained
                )
            status = reader.read_status()
        if not options.is_subprocess:
            exit_code |= _conclude(console, session, status, stop, has_trained)
    trim_heap()  # a report, which may follow, needs as much memory
    finished = status.counts.finished
    return RunResult(status.name, finished, was_finished, stop.exit_code or exit_code)


@dataclass(frozen=True)
class _Session:
    """A study and what this process trains it with."""

    handle: StudyHandle
    device: torch.device
    checkpoints: CheckpointStore
    weights: WeightStore
    worker_name: str

    @classmethod
    def open(cls, options: RunOptions) -> "_Session":
        device = resolve_device(options.device)
        checkpoints = open_store(options.artifacts, options.storage, "checkpoints")
        weights = open_store(options.artifacts, options.storage, "weights")
        config_file = load_config_file(options.study, options.overrides, options.storage)
        handle = create_or_join(config_file, options.storage, options.study_options, device)
        return cls(
            handle,
            device,
            CheckpointStore(checkpoints, handle.artifact_folder),
            WeightStore(weights, handle.artifact_folder),
            f"{socket.gethostname()}/{os.getpid()}",
        )


def _run_worker(
    options: RunOptions,
    session: _Session,
    claims: ClaimManager,
    reader: StatusReader,
    stop: ShutdownSignal,
    display: QuietDisplay,
    has_trained: c_bool,
) -> None:
    """Run a worker in this process."""
    handle = session.handle
    models = BestModelStore(handle, session.weights, claims.query_after_flush)
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
            None if options.is_subprocess else CorpusWatch(handle.corpus),
        )
        count_trials = reader.count_trials
        worker = Worker(claims, trainer, count_trials, stop, display, options.wait, scheduler)
        try:
            worker.run()
        finally:
            has_trained.value = has_trained.value or trainer.has_trained


def _print_study(console: SafeConsole, session: _Session) -> None:
    handle, config, corpus = session.handle, session.handle.config, session.handle.corpus
    console.print_line(
        f"study {handle.study.study_name}: {corpus.name}, {len(corpus.text):,} bytes; "
        f"{config.training.steps:,} steps per trial, {config.precision} on {session.device}",
    )
    if handle.notice:
        console.print_line(handle.notice)
    if handle.warning:
        console.print_line(f"warning: {handle.warning}")


def _conclude(
    console: SafeConsole,
    session: _Session,
    status: Status,
    stop: ShutdownSignal,
    has_trained: c_bool,
) -> int:
    """Print the outcome of a run and remove the checkpoints of a finished study.

    Returns:
        1 if the study is finished without a complete trial, else 0.
    """
    if status.is_finished:
        _remove_leftovers(session)
    console.print_line(f"study {status.name}: {format_progress(status)}")
    if stop.requested and not status.is_finished:
        if has_trained.value:
            console.print_line("stopped; progress is saved: run the same command to resume")
        else:
            console.print_line("stopped before training began: run the same command to start")
    if status.is_finished and not status.counts.complete + status.counts.pruned:
        trials = read_trials(session.handle.storage, session.handle.study_id)
        click.echo(f"error: {explain_failure(status.name, trials, status.counts)}", err=True)
        return 1
    return 0


def _remove_leftovers(session: _Session) -> None:
    try:
        session.checkpoints.clear()
        session.weights.remove_temporary_files()
    except Exception as error:  # the results are recorded; leftover files must not fail the run
        click.echo(
            f"warning: cannot remove checkpoints or temporary files of the finished study "
            f"({error}); they are no longer needed",
            err=True,
        )


def _run_worker_processes(
    options: RunOptions,
    reader: StatusReader,
    stop: ShutdownSignal,
    display: QuietDisplay,
    watch: CorpusWatch,
    has_trained: c_bool,
) -> int:
    """Start worker processes and wait for them.

    Returns:
        1 if one of them failed, else 0.
    """
    # The study exists by now; options that apply to the whole run are not passed on.
    worker = replace(options, workers=1, extend=False, until=None, is_subprocess=True)
    # Torch's threads and the storage's connections do not survive a fork.
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [
        context.Process(target=_run_and_exit, args=(replace(worker, device=device), has_trained))
        for device in assign_devices(options.device, options.workers)
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes) and not stop.requested:
            display.on_log(reader.read_running())
            watch.look()
            _wait_for_exit(processes, stop)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            process.join()
    clean = _CLEAN_EXIT_CODES
    if stop.requested:  # a process may be terminated before it handles signals
        clean = clean | {-signal.SIGTERM}
    failed = [process for process in processes if process.exitcode not in clean]
    for process in failed:
        click.echo(f"warning: a worker exited with code {process.exitcode}", err=True)
    return int(bool(failed))


def _wait_for_exit(processes: Sequence[BaseProcess], stop: ShutdownSignal) -> None:
    """Wait until all processes have exited or a stop is requested, up to POLL_SECONDS."""
    end = time.monotonic() + POLL_SECONDS
    while time.monotonic() < end and not stop.requested:
        if not any(process.is_alive() for process in processes):
            return
        time.sleep(0.1)


def _run_and_exit(options: RunOptions, has_trained: c_bool) -> None:
    run_with_exit_code(lambda: run_workers(options, has_trained=has_trained).exit_code, USER_ERRORS)
