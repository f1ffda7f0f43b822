"""Run a search in this process, in several, or on a cluster.

Worker processes and jobs get the name of the stored study, and open it.
"""

import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from rnn.errors import UserError
from search.create_or_join import StudyHandle, create_or_join, open_study
from search.display import Display
from search.errors import ShutdownRequestedError
from search.extend import enable_pruning
from search.launch.jobs import run_jobs
from search.launch.launcher import Launcher, name_worker
from search.run_options import RunOptions, WorkerOptions
from search.status import MAX_LINE, Status, StatusReader, explain_failure, format_progress
from search.worker.claims import ClaimManager
from search.worker.loop_state import find_torch_version
from search.worker.loop_trial import Trial
from search.worker.loop_worker import (
    LoopWorker,
    find_script,
    load_function,
    require_one_process,
)
from search.worker.queue import TrialQueue
from search.worker.shutdown import SIGNALS, ShutdownSignal
from studies.errors import StorageLostError, StorageUnavailableError
from studies.failures import EXIT_FAILURE, EXIT_INTERRUPTED, run_with_exit_code
from studies.loader import load_overrides
from studies.measure import find_measure
from studies.messages import shorten
from studies.space import TASK
from studies.storage.database import database_error, error_message, is_outage
from studies.storage.reads import read_trials

RETRY_SECONDS = 5.0
"""Longest time between two attempts to reach an unavailable storage."""

POLL_SECONDS = 0.2
"""Interval between looks at whether worker processes should stop."""

OUTPUT_SECONDS = 2.0
"""Time to wait for the last lines of a worker process that has exited."""

_CLEAN_EXIT_CODES = {0, *(128 + number for number in SIGNALS)}
"""Exit codes of workers that finished, or stopped on request."""

_main_program_lock = threading.Lock()
"""Held while worker processes start, see :func:`_hidden_main_program`."""

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes:
        finished: number of finished trials, by any worker.
        was_finished: whether it was finished when this process joined it.
        signal: number of the signal that stopped the run; None without one.
        failed_workers: number of worker processes that failed, after a warning for each.
        failure: why a finished study has no complete trial; "" otherwise.
        is_finished: whether it was finished when the run ended.
    """

    study: str
    finished: int
    was_finished: bool
    signal: int | None = None
    failed_workers: int = 0
    failure: str = ""
    is_finished: bool = False

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as in shells; 1 after a failure, else 0.

        A worker that failed is none if others have finished the study.
        """
        if self.signal is not None:
            return 128 + self.signal
        return int(bool(self.failure or (self.failed_workers and not self.is_finished)))


@dataclass(frozen=True)
class _Session:
    """A study that this process works on, or has others work on.

    Attributes:
        claims: claims of this process, whose thread also reads for the display.
    """

    handle: StudyHandle
    stop: ShutdownSignal
    reader: StatusReader
    claims: ClaimManager


def run_workers(
    options: RunOptions,
    launcher: Launcher | None = None,
    while_open: AbstractContextManager[object] | None = None,
) -> RunResult:
    """Create or join a study and run its trials until all are finished.

    Without a launcher from :func:`search.launch.jobs.prepare_launch` workers run on this machine.
    ``while_open`` is entered once the study is open, and left at the end of the run.

    Raises:
        UserError: for invalid input, before anything is written.
        StorageLostError: if the storage or the study was deleted during the search.
    """
    # Each worker of a cluster stops itself.
    stop = ShutdownSignal(options.until if launcher is None else None)
    with Display(stop) as display:
        return _run(options, launcher, while_open or nullcontext(), stop, display)


def _run(
    options: RunOptions,
    launcher: Launcher | None,
    while_open: AbstractContextManager[object],
    stop: ShutdownSignal,
    display: Display,
) -> RunResult:
    name = options.stored_name
    try:
        handle, reader = wait_for_storage(
            lambda: _open(options), lambda: _find_outage_seconds(options), stop
        )
    except ShutdownRequestedError as error:
        _logger.info(str(error))
        return RunResult(name, 0, False, stop.signal)
    storage = handle.storage
    with closing(storage), while_open:
        _log_study(handle)
        was_finished = reader.recent_status().is_finished
        failed_workers = 0
        failure = ""
        with (
            _start_session(handle, stop, reader) as session,
            display.show_progress(reader),
        ):
            if launcher is not None:
                failure = run_jobs(options, launcher, handle, reader, stop)
            elif options.workers == 1:
                _work(session, options)
            else:
                _logger.info(f"starting {options.workers} worker processes")
                failed_workers = _run_processes(session, options, display)
            status = reader.read_status()
        storage.merge_log()
        if status.is_finished:
            _remove_leftovers(handle)
        failure = failure or _conclude(session, status, launcher)
    return RunResult(
        status.name,
        status.counts.finished,
        was_finished,
        stop.signal,
        failed_workers,
        failure,
        status.is_finished,
    )


def _open(options: RunOptions) -> tuple[StudyHandle, StatusReader]:
    if options.by_name:
        is_local = options.target.is_local
        handle = open_study(options.study, options.storage, options, is_local)
    else:
        handle = create_or_join(options)
    return _with_reader(handle, options.workers)


def _with_reader(handle: StudyHandle, workers: int = 0) -> tuple[StudyHandle, StatusReader]:
    """Read the status of an open study, which is closed if that fails."""
    with ExitStack() as on_error:
        on_error.enter_context(closing(handle.storage))
        reader = StatusReader(handle.study, handle.storage, handle.config, workers)
        on_error.pop_all()
    return handle, reader


def _find_outage_seconds(options: RunOptions) -> float:
    """Return how long to wait for the storage, as far as that is known without it."""
    try:
        return options.load_file().outage_seconds
    except Exception as error:  # which Optuna, SQLAlchemy or the disk may raise
        if not is_outage(error):
            raise
        return load_overrides(options.overrides).outage_seconds


def wait_for_storage(
    operation: Callable[[], _T],
    outage_seconds: Callable[[], float],
    stop: ShutdownSignal,
) -> _T:
    """Call a function again while the storage is unavailable, and return its result.

    Args:
        operation: function that may be called again after it raised an error.
        outage_seconds: returns how long to wait; called after each failed attempt.
        stop: signal on which to end the wait; its handlers are installed between the attempts.

    Raises:
        ShutdownRequestedError: if a shutdown was requested during the wait.
        StorageUnavailableError: if the storage was unavailable for too long.
    """
    unavailable_since: float | None = None
    seconds_to_next = 0.1
    while True:
        try:
            result = operation()
        except Exception as error:  # as above
            if not is_outage(error):
                raise
            reason = error_message(database_error(error))
            limit = outage_seconds()
            now = time.monotonic()
            if unavailable_since is None:
                unavailable_since = now
                _logger.info(
                    f"storage unavailable ({reason}); waiting for it for up to {limit:g} s"
                )
            elapsed = now - unavailable_since
            if elapsed >= limit:
                raise StorageUnavailableError(
                    f"storage unavailable for {elapsed:.0f} s ({reason}), longer than {limit:g} s; "
                    "restore it and run the same command again"
                ) from error
        else:
            if unavailable_since is not None:
                _logger.info("storage available again")
            return result
        # Random, so that processes that were refused together do not retry together.
        with stop:
            stop.wait(min(seconds_to_next * random.uniform(0.5, 1), limit - elapsed))
        if stop.requested:
            raise ShutdownRequestedError(
                "stopped while waiting for the storage: run the same command again"
            )
        seconds_to_next = min(2 * seconds_to_next, RETRY_SECONDS)


# ------------------------------------------------------------------ one worker


@contextmanager
def _start_session(
    handle: StudyHandle, stop: ShutdownSignal, reader: StatusReader
) -> Iterator[_Session]:
    """Handle signals and claim trials until the session ends."""
    lease = handle.config.lease.seconds
    outage = handle.config.outage.seconds
    claims = ClaimManager(handle.storage, handle.study_id, name_worker(), stop, lease, outage)
    with stop, claims:
        reader.attach(claims)
        yield _Session(handle, stop, reader, claims)


def _work(session: _Session, options: WorkerOptions) -> None:
    """Run a worker in this process until no trial is left or a stop is requested."""
    handle = session.handle
    claims = session.claims
    if handle.device is None:
        _run_loop(session, options)
        return
    from search.worker.cpu_budget import ThreadBudget
    from search.worker.trainer import Trainer, Worker

    query = partial(claims.query, default=None, after_flush=True)
    with ThreadBudget(options.threads) as budget:
        trainer = Trainer(handle, handle.device, budget, query, name_worker(), options.lockstep)
        queue = TrialQueue(handle, claims, session.stop, trainer.best_weights.evict)
        Worker(queue, trainer, options.wait).run()


def _run_loop(session: _Session, options: WorkerOptions) -> None:
    handle = session.handle
    assert handle.config.loop is not None
    if handle.config.loop.function is None:
        raise UserError(
            f"study {handle.name!r} has a loop without a function: run the script that claims its "
            'trials, or state one, as in loop.function = "train.py:train"'
        )
    function, source = load_function(handle.config.loop.function)
    worker = LoopWorker(handle, session.claims, session.stop, source, [Exception], options.wait)
    if not find_torch_version():
        worker.run(function)
        return
    from search.worker.cpu_budget import ThreadBudget

    with ThreadBudget(options.threads) as budget:
        worker.run(function, budget.apply)


def _log_study(handle: StudyHandle) -> None:
    _logger.info(f"study {handle.name}: {_describe_trials(handle)}")
    for line in handle.notice.splitlines():
        _logger.info(line)
    if handle.warning:
        _logger.warning(handle.warning)


def _describe_trials(handle: StudyHandle) -> str:
    config = handle.config
    steps = f"{config.length_of().steps:,} steps"
    if config.loop is not None:
        return f"a loop of your own, {config.loop.metric}; {steps} per trial"
    data = f"task {config.task.source}, {find_measure(config).name}"
    for task in handle.tasks.values():
        if (text := task.record.text) is not None:
            data = f"{text.corpus}, {text.length:,} bytes"
    if config.task_records:
        data = f"tasks {', '.join(config.task_records)}"
        counts = {config.length_of({TASK: task}).steps for task in config.task_records}
        steps = " or ".join(f"{count:,}" for count in sorted(counts)) + " steps"
    return f"{data}; {steps} per trial, {config.precision} on {handle.device}"


def _conclude(session: _Session, status: Status, launcher: Launcher | None) -> str:
    """Print the outcome of a run; return why a finished study has no complete trial, or ""."""
    _logger.info(shorten(f"study {status.name}: {format_progress(status)}", MAX_LINE))
    if session.stop.requested and not status.is_finished and launcher is None:
        _logger.info("stopped; progress is saved: run the same command to resume")
    if status.is_finished and not status.counts.complete + status.counts.pruned:
        trials = read_trials(session.handle.storage, session.handle.study_id)
        return explain_failure(status.name, trials, status.counts, session.handle.config)
    return ""


def _remove_leftovers(handle: StudyHandle) -> None:
    """Remove the checkpoints of a finished study, and temporary files of killed workers."""
    try:
        handle.folders.clear(handle.artifact_folder)
    except OSError as error:  # the results are recorded; leftover files must not fail the run
        _logger.warning(
            f"cannot remove checkpoints or temporary files of the finished study ({error}); they "
            "are no longer needed"
        )


# ------------------------------------------------------------------ a loop that claims


def claim_trials(
    name: str,
    url: str,
    options: WorkerOptions,
    catch: Sequence[type[Exception]] = (),
    prune: bool = False,
) -> Iterator[Trial]:
    """Claim the trials of a study with a loop; see :meth:`rnn_search.study.Study.claim`.

    Signals are handled meanwhile. At the end, the one that has stopped the loop is sent again.
    """
    require_one_process()
    stop = ShutdownSignal(options.until)
    outage_seconds = load_overrides(options.overrides).outage_seconds
    handle = wait_for_storage(lambda: open_study(name, url, options), lambda: outage_seconds, stop)
    with ExitStack() as opened:
        opened.enter_context(closing(handle.storage))
        if handle.config.loop is None:
            raise UserError(
                f"study {name!r} trains networks: expected one with [loop]; train them with "
                "study.run() or rnn-search run"
            )
        if prune and not handle.config.pruning.enabled:
            handle = replace(handle, config=enable_pruning(handle))
        opened.enter_context(Display(stop))
        _, reader = _with_reader(handle)
        session = opened.enter_context(_start_session(handle, stop, reader))
        _log_study(handle)
        worker = LoopWorker(handle, session.claims, stop, find_script(), catch, options.wait)
        worker.close = opened.close
        yield from worker.trials()
        status = reader.read_status()
        handle.storage.merge_log()
        if status.is_finished:
            _remove_leftovers(handle)
        failure = _conclude(session, status, None)
    if stop.signal is not None:
        signal.raise_signal(stop.signal)
    if failure:
        raise UserError(failure)


# ------------------------------------------------------------------ worker processes


def run_worker_process(name: str, url: str, options: WorkerOptions, output: Connection) -> None:
    """Work on a stored study; the parent process shows what this one prints, and the progress.

    ``output`` replaces the standard output and the standard error.
    """
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    # The parent reports an interrupt and ends the workers that are not ready for signals.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def main() -> int:
        stop = ShutdownSignal(with_parent=True)
        try:
            with Display(stop):
                _work_on(name, url, options, stop)
        except ShutdownRequestedError:
            pass
        except StorageLostError:  # reported by the parent
            return EXIT_FAILURE
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        return 0 if stop.signal is None else 128 + stop.signal

    run_with_exit_code(main)


@contextmanager
def _blocked_interrupts() -> Iterator[None]:
    """Block Ctrl-C in processes that are spawned meanwhile, which import PyTorch first."""
    resource_tracker.ensure_running()  # its start would unblock Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work_on(name: str, url: str, options: WorkerOptions, stop: ShutdownSignal) -> None:
    outage_seconds = load_overrides(options.overrides).outage_seconds
    handle, reader = wait_for_storage(
        lambda: _with_reader(open_study(name, url, options)), lambda: outage_seconds, stop
    )
    session = _start_session(handle, stop, reader)
    with closing(handle.storage), session as opened:
        _work(opened, options)


def _run_processes(session: _Session, options: RunOptions, display: Display) -> int:
    """Start worker processes and wait for them; return the number of those that failed."""
    stop = session.stop
    devices = [options.device] * options.workers
    if session.handle.device is not None:  # a loop chooses its own
        from rnn.training.devices import assign_devices  # imports PyTorch

        devices = assign_devices(options.device, options.workers)
    worker = session.handle.for_worker(options).model_copy(update={"until": None})
    processes: list[BaseProcess] = []
    readers: list[threading.Thread] = []
    warned: set[BaseProcess] = set()
    try:
        with _hidden_main_program(), _blocked_interrupts():
            for device in devices:
                on_device = worker.model_copy(update={"device": device})
                arguments = (session.handle.name, options.storage, on_device)
                processes.append(_start_process(arguments, display, readers))
        while not stop.requested and (alive := [p for p in processes if p.is_alive()]):
            connection.wait([process.sentinel for process in alive], POLL_SECONDS)
            _warn_of_failed([p for p in processes if (p.exitcode or 0) < 0], warned)  # killed
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            process.join()
        for thread in readers:  # a process that a worker left may keep its output open
            thread.join(timeout=OUTPUT_SECONDS)
    clean = _CLEAN_EXIT_CODES
    if stop.requested:  # a process may be terminated before it handles signals
        clean = clean | {-signal.SIGTERM}
    failed = [process for process in processes if process.exitcode not in clean]
    if failed:
        session.reader.read_status()  # raises the error for all of them if the study is gone
        _warn_of_failed(failed, warned)
    return len(failed)


def _start_process(
    arguments: tuple[str, str, WorkerOptions], display: Display, readers: list[threading.Thread]
) -> BaseProcess:
    """Start a worker with arguments of :func:`run_worker_process`, and show what it prints."""
    # Torch's threads and the storage's connections do not survive a fork.
    context = multiprocessing.get_context("spawn")
    lines, output = context.Pipe(duplex=False)
    with output:
        process = context.Process(target=run_worker_process, args=(*arguments, output))
        process.start()
    readers.append(display.print_output(lines))
    return process


def _warn_of_failed(failed: Iterable[BaseProcess], warned: set[BaseProcess]) -> None:
    """Warn once of each worker that failed, or that a signal has killed."""
    for process in failed:
        if process in warned:
            continue
        warned.add(process)
        code = process.exitcode or 0
        reason = f"exited with code {code}"
        if code < 0:
            reason = f"was killed ({signal.strsignal(-code) or f'signal {-code}'})"
        _logger.warning(f"a worker {reason}: the same command in another terminal adds a worker")


@contextmanager
def _hidden_main_program() -> Iterator[None]:
    """Keep processes that are spawned meanwhile from running the main program first.

    Each would run a script that is not protected by ``if __name__ == "__main__"``, search included,
    and workers need nothing from it.
    """
    main = vars(sys.modules["__main__"])
    with _main_program_lock:
        hidden: dict[str, Any] = {
            name: main.pop(name) for name in ("__file__", "__spec__") if name in main
        }
        main["__spec__"] = None
        try:
            yield
        finally:
            main.update(hidden)
