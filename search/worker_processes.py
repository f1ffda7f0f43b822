"""Worker processes of one run: their start, their end, and what keeps each from being a copy."""

import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_bool
from dataclasses import replace
from multiprocessing.process import BaseProcess
from typing import Any

import click

from rnn.training.devices import assign_devices
from search.display import QuietDisplay
from search.session import RunOptions
from search.status import StatusReader
from search.worker.shutdown import SIGNALS, ShutdownSignal
from studies.interrupts import blocked_interrupts

POLL_SECONDS = 1.0
"""Interval between checks of the worker processes."""

_CLEAN_EXIT_CODES = {0, *(128 + number for number in SIGNALS)}
"""Exit codes of workers that finished, or stopped on request."""

_main_program_lock = threading.Lock()
"""Held while worker processes start, see :func:`_hidden_main_program`."""


def run_worker_processes(
    target: Callable[[RunOptions, c_bool], None],
    options: RunOptions,
    reader: StatusReader,
    stop: ShutdownSignal,
    display: QuietDisplay,
    has_trained: c_bool,
) -> int:
    """Start worker processes and wait for them.

    Args:
        target: function that each process calls with its options and the flag.
        options: options of the command line.
        reader: reads what the processes have stored, for the display.
        stop: signal on which they are asked to stop.
        display: shows the running trials.
        has_trained: flag in shared memory that is set once a process has trained a step.

    Returns:
        The number of those that failed.
    """
    # The study exists by now; options that apply to the whole run are not passed on.
    worker = replace(options, workers=1, extend=False, until=None, is_subprocess=True)
    # Torch's threads and the storage's connections do not survive a fork.
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [
        context.Process(target=target, args=(replace(worker, device=device), has_trained))
        for device in assign_devices(options.device, options.workers)
    ]
    warned: set[BaseProcess] = set()
    try:
        with _hidden_main_program(), blocked_interrupts():
            for process in processes:
                process.start()
        while any(process.is_alive() for process in processes) and not stop.requested:
            _warn_of_killed(processes, warned)
            display.on_log(reader.read_running())
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
    if failed:
        reader.read_status()  # raises the error for all of them if the study is gone
    for process in failed:
        if process not in warned:
            click.echo(f"warning: a worker exited with code {process.exitcode}", err=True)
    return len(failed)


def _warn_of_killed(processes: Sequence[BaseProcess], warned: set[BaseProcess]) -> None:
    """Warn once of each worker that a signal has killed, while others continue the search."""
    for process in processes:
        if process in warned or process.exitcode is None or process.exitcode >= 0:
            continue
        warned.add(process)
        name = signal.strsignal(-process.exitcode) or f"signal {-process.exitcode}"
        click.echo(
            f"warning: a worker was killed ({name}): the other workers continue the search; the "
            "same command in another terminal adds a worker",
            err=True,
        )


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


def _wait_for_exit(processes: Sequence[BaseProcess], stop: ShutdownSignal) -> None:
    """Wait until all processes have exited or a stop is requested, up to POLL_SECONDS."""
    end = time.monotonic() + POLL_SECONDS
    while time.monotonic() < end and not stop.requested:
        if not any(process.is_alive() for process in processes):
            return
        time.sleep(0.1)
