"""What a search shows while it runs: its messages, and the progress of its study."""

import contextlib
import io
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from search.errors import is_bug
from search.status import Status, StatusReader, format_best, format_progress
from search.worker.shutdown import ShutdownSignal
from studies.failures import describe_bug
from studies.messages import shorten, to_line

REFRESH_SECONDS = 1.0
"""Interval between two updates of the bar."""

BAR_WIDTH = 20
"""Columns of the bar, which the text of the progress follows."""

PROGRESS_SECONDS = 30.0
"""Interval between two lines of progress in a log."""

_LOGGERS = [logging.getLogger(name) for name in ("rnn_search", "search", "studies")]
"""Loggers whose messages are shown."""


class Display(logging.Handler):
    """Prints log messages as lines, and shows the progress of a study.

    A terminal and a notebook have a bar; in anything else, such as a file, there is a line of
    progress from time to time. It is a context manager. A thread prints what is logged meanwhile,
    so that a terminal that is paused blocks neither the training nor its heartbeats. The shutdown
    signal is told when the reader of the output has exited.
    """

    def __init__(self, stop: ShutdownSignal | None = None) -> None:
        super().__init__()
        self._stop = stop
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._bugs: list[list[str]] = []  # that were printed
        self._reader: StatusReader | None = None
        self._bar: _Bar | None = None
        self._best = ""  # that was named last, in a log
        self._logged_at = 0.0
        self._drawing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)

    def __enter__(self) -> Self:
        self._replaced = [
            (logger, logger.handlers, logger.level, logger.propagate) for logger in _LOGGERS
        ]
        for logger in _LOGGERS:
            logger.handlers = [self]
            logger.setLevel(logging.INFO)
            logger.propagate = False
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        for logger, handlers, level, propagate in self._replaced:
            logger.handlers = handlers
            logger.setLevel(level)
            logger.propagate = propagate
        self._lines.put(None)
        self._thread.join()

    @contextlib.contextmanager
    def show_progress(self, reader: StatusReader) -> Iterator[None]:
        """Show the progress of a study while the context is active."""
        with self._drawing:
            self._bar = self._start_bar(reader.recent_status())
            self._logged_at = time.monotonic()
            self._reader = reader
        try:
            yield
        finally:
            with self._drawing, contextlib.suppress(OSError):  # the terminal was closed
                self._reader = None
                if self._bar is not None:
                    self._bar.stop()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message as a line, and the traceback of a bug once."""
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        self.print_line(prefix + record.getMessage())
        error = record.exc_info[1] if record.exc_info else None
        if error is None or not is_bug(error) or (lines := describe_bug(error)) in self._bugs:
            return
        self._bugs.append(lines)
        for line in lines:
            self.print_line(line)

    def print_line(self, line: str) -> None:
        """Have a line printed soon."""
        self._lines.put(to_line(line))

    def print_output(self, output: Connection) -> threading.Thread:
        """Print the lines that another process writes; return the thread that reads them."""

        def read() -> None:
            with os.fdopen(os.dup(output.fileno()), encoding="utf-8", errors="replace") as lines:
                output.close()
                for line in lines:
                    self.print_line(line.removesuffix("\n"))

        thread = threading.Thread(target=read, name="output", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while True:
            line: str | None = ""
            with contextlib.suppress(queue.Empty):
                line = self._lines.get(timeout=REFRESH_SECONDS)
            if line is None:
                return
            with self._drawing:
                if line:
                    self._print(line)
                if self._reader is not None:
                    self._show_progress(self._reader.recent_status())

    def _print(self, line: str) -> None:
        try:
            print(line, flush=True)  # above the bar: rich replaces standard output meanwhile
        except (OSError, ValueError) as error:  # no reader, a full disk, a closed file
            if isinstance(error, BrokenPipeError) and self._stop is not None:
                self._stop.request(signal.SIGPIPE)
            sys.stdout = io.StringIO()  # otherwise the interpreter would fail again at exit

    def _show_progress(self, status: Status) -> None:
        if self._bar is None:
            self._log_progress(status)
        else:
            self._bar.update(status)

    def _start_bar(self, status: Status) -> "_Bar | None":
        console = Console()
        # Not console.is_terminal, which Jupyter's FORCE_COLOR sets everywhere.
        is_terminal = sys.stdout.isatty() and not console.is_dumb_terminal
        if console.is_jupyter or is_terminal:
            return _Bar(status, console.is_jupyter)
        return None

    def _log_progress(self, status: Status) -> None:
        """Print a line of progress if one is due; it names the best only when it has changed."""
        now = time.monotonic()
        if now - self._logged_at < PROGRESS_SECONDS:
            return
        best = format_best(status)
        self._print(format_progress(status, with_best=best != self._best))
        self._best = best
        self._logged_at = now


class _Bar:
    """Bar of rich, in a terminal or a notebook."""

    def __init__(self, status: Status, is_notebook: bool) -> None:
        text = TextColumn("{task.description}", markup=False)
        self._progress = Progress(BarColumn(BAR_WIDTH), text, transient=True, refresh_per_second=2)
        self._task = self._progress.add_task("")
        self._output: Any = None
        self.update(status)
        if is_notebook:
            display = import_module("IPython.display").display
            self._output = display(self._progress, display_id=True)
        else:
            self._progress.start()

    def update(self, status: Status) -> None:
        """Draw the bar again."""
        # A terminal echoes ^C behind the bar, which must not reach the next line.
        width = self._progress.console.width - BAR_WIDTH - 4
        self._progress.update(
            self._task,
            total=max(1, status.counts.planned),
            completed=status.counts.finished,
            description=shorten(format_progress(status), max(1, width)),
        )
        if self._output is not None:
            self._output.update(self._progress)

    def stop(self) -> None:
        """Remove the bar; that of a notebook stays."""
        if self._output is None:
            self._progress.stop()
