"""Output of a search: log lines, or a display that is redrawn in a terminal or a notebook."""

import html
import io
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.errors import is_bug
from search.progress import format_loss, format_progress, format_running, format_trial_end
from search.status import RunningTrial, Status, StatusReader, TrialEvent, WorkerCallbacks
from studies.cli import describe_bug
from studies.config import StudyConfig
from studies.measure import find_measure
from studies.text import to_line

REFRESH_SECONDS = 2.0
"""Interval between reads of the status: each costs a worker some milliseconds of training."""

PROGRESS_SECONDS = 3.0
"""Silence after which a log gets a line of progress; with the delays below, no gap reaches 5 s
while trials run."""

TICK_SECONDS = 0.25
"""Interval between checks for silence."""

MAX_ROWS = 16
"""Number of running trials that the live display lists."""

_LOGGERS = (logging.getLogger("search"), logging.getLogger("studies"))
"""Loggers whose messages a display prints."""

WAITING = "the remaining trials are running in other workers; waiting for them"


class SafeConsole(Console):
    """Console that goes quiet when it cannot be written to.

    A closed terminal or a log on a full disk must not end the search.

    Attributes:
        printed_at: monotonic time of the last line, initially of the creation.
        is_broken: whether the reader of the output has exited.
        is_notebook: whether the output is that of a cell of a notebook.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_notebook = self.is_jupyter
        self.is_jupyter = False  # there each line would be a box of its own
        self.printed_at = time.monotonic()
        self.is_broken = False

    @property
    def is_terminal(self) -> bool:
        """Whether lines can be redrawn; ``FORCE_COLOR``, which Jupyter sets, does not say so."""
        try:
            return self.file.isatty()
        except ValueError:  # the file is closed
            return False

    def __exit__(self, *error: Any) -> None:
        """Flush the output of this context, or discard all output from now on."""
        try:
            super().__exit__(*error)
        except OSError:
            self.quiet = True
            sys.stdout = io.StringIO()  # otherwise the interpreter would flush again at exit

    def on_broken_pipe(self) -> None:
        """Exit in the main thread; in another, which must not end, print nothing from now on."""
        self.is_broken = True
        with suppress(SystemExit):
            super().on_broken_pipe()
        self.exit_if_broken()

    def exit_if_broken(self) -> None:
        """Exit if the reader of the output has exited and this is the main thread."""
        if self.is_broken and threading.current_thread() is threading.main_thread():
            raise SystemExit(1)

    def print_line(self, line: str) -> None:
        """Print a line: wrapped between words in a terminal, unbroken in a file."""
        self.print(to_line(line), markup=False, highlight=False, soft_wrap=not self.is_terminal)
        self.printed_at = time.monotonic()


class Ticker:
    """Context manager whose thread prints a line after each :data:`PROGRESS_SECONDS` of silence.

    Args:
        console: console to print to.
        line: function that returns the line, called in the thread; or what is being done, which is
            printed once, and then at growing intervals with the seconds since the start.
    """

    def __init__(self, console: SafeConsole, line: Callable[[], str] | str) -> None:
        self._console = console
        self._line = line
        self._silence = PROGRESS_SECONDS
        self._started_at = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()

    def tick(self) -> None:
        """Print the line if the console has been silent for too long."""
        if time.monotonic() - self._console.printed_at >= self._silence:
            line = self._line
            self._console.print_line(self._time(line) if isinstance(line, str) else line())

    def _time(self, activity: str) -> str:
        is_first = self._silence == PROGRESS_SECONDS
        self._silence *= 2
        seconds = time.monotonic() - self._started_at
        return activity if is_first else f"still {activity}: {seconds:.0f} s"

    def _run(self) -> None:
        while not self._stopped.wait(TICK_SECONDS):
            self.tick()


class QuietDisplay(WorkerCallbacks, logging.Handler):
    """Log messages and unusual outcomes only, for workers whose parent shows the progress.

    Args:
        console: console to print to.
        reader: reader of the study's status.
    """

    def __init__(self, console: SafeConsole, reader: StatusReader) -> None:
        super().__init__()
        self._console = console
        self._reader = reader
        self._pending: deque[logging.LogRecord] = deque()  # of other threads than the main one
        self._bugs: list[list[str]] = []  # that were printed
        self._replaced: list[list[logging.Handler]] = []

    def __enter__(self) -> Self:
        logging.getLogger("search").setLevel(logging.INFO)
        for logger in _LOGGERS:
            self._replaced.append(logger.handlers)
            logger.handlers, logger.propagate = [self], False
        return self

    def __exit__(self, *error: object) -> None:
        for logger in reversed(_LOGGERS):
            logger.handlers, logger.propagate = self._replaced.pop(), True
        self._print_pending()

    def on_poll(self) -> None:
        """Print the messages of other threads."""
        self._print_pending()

    def on_wait(self) -> None:
        """Print the messages of other threads."""
        self._print_pending()

    def on_trial_end(self, event: TrialEvent) -> None:
        """Print the outcome unless the trial is complete or paused."""
        if event.value is None and not event.is_paused:
            self._console.print_line(format_trial_end(event, self._reader.config))

    def handle(self, record: logging.LogRecord) -> bool:
        """Print a message of the main thread; keep another thread's for the next callback.

        A terminal that is paused must not block the thread that sends heartbeats.
        """
        if threading.current_thread() is threading.main_thread():
            self.emit(record)
        else:
            self._pending.append(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Print a log message as a line, and the traceback of a bug once."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        self._console.print_line(prefix + record.getMessage())
        error = record.exc_info[1] if record.exc_info else None
        if error is None or not is_bug(error) or (lines := describe_bug(error)) in self._bugs:
            return
        self._bugs.append(lines)
        for line in lines:
            self._console.print_line(line)

    def _print_pending(self) -> None:
        while self._pending:
            self.emit(self._pending.popleft())


class LogDisplay(QuietDisplay):
    """One line per event, for output that is not a terminal."""

    def __init__(self, console: SafeConsole, reader: StatusReader) -> None:
        super().__init__(console, reader)
        self._running: Sequence[RunningTrial] = ()
        self._is_waiting = False
        self._ticker = Ticker(console, self._format_progress)

    def __enter__(self) -> Self:
        self._ticker.__enter__()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._ticker.__exit__(*error)

    def on_log(self, running: Sequence[RunningTrial]) -> None:
        """Store the running trials for the next progress line."""
        self._console.exit_if_broken()
        self._running = running

    def on_trial_end(self, event: TrialEvent) -> None:
        """Print the outcome of the trial and the progress of the study."""
        self._running = [trial for trial in self._running if trial.number != event.trial.number]
        progress = format_progress(self._reader.read_status())
        self._console.print_line(f"{format_trial_end(event, self._reader.config)}  |  {progress}")

    def on_wait(self) -> None:
        """Print once that this worker waits for others."""
        super().on_wait()
        self.on_log([])
        if not self._is_waiting:
            self._is_waiting = True
            self._console.print_line(WAITING)

    def _format_progress(self) -> str:
        parts = (
            format_progress(self._reader.recent_status()),
            format_running(self._running, self._reader.config),
        )
        return "  |  ".join(filter(None, parts))


class StatusDisplay(QuietDisplay):
    """Status of the study and the trials of this worker, which a subclass shows in place."""

    def __init__(self, console: SafeConsole, reader: StatusReader) -> None:
        super().__init__(console, reader)
        self._status: Status
        self._read_at = 0.0
        self._running: Sequence[RunningTrial] = ()
        self._note = ""

    def __enter__(self) -> Self:
        self._refresh()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._running, self._note = (), ""
        if error[0] is None:
            self._refresh()

    def on_log(self, running: Sequence[RunningTrial]) -> None:
        """Show the running trials and the progress of the study."""
        self._show(running, "")

    def on_trial_end(self, event: TrialEvent) -> None:
        """Remove the trial from the display, and print an unusual outcome."""
        super().on_trial_end(event)
        self._show([trial for trial in self._running if trial.number != event.trial.number], "")

    def on_wait(self) -> None:
        """Show that this worker waits for others."""
        super().on_wait()
        self._show([], WAITING)

    def _show(self, running: Sequence[RunningTrial], note: str) -> None:
        self._running, self._note = running, note
        if time.monotonic() - self._read_at >= REFRESH_SECONDS:
            self._refresh()

    def _refresh(self) -> None:
        """Read the status again."""
        self._status = self._reader.read_status()
        self._read_at = time.monotonic()


class LiveDisplay(StatusDisplay):
    """Display that is redrawn in place, for a terminal; messages scroll above it."""

    def __enter__(self) -> Self:
        super().__enter__()
        self._live = Live(
            get_renderable=self._draw, console=self._console, refresh_per_second=2, transient=True
        )
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._live.stop()

    def _draw(self) -> RenderableType:
        return draw_status(self._status, self._running, self._reader.config, self._note)


class NotebookDisplay(StatusDisplay):
    """A progress bar that is redrawn in place, and a line for each trial, for a notebook."""

    _output: Any = None

    def on_trial_end(self, event: TrialEvent) -> None:
        """Print the outcome of the trial."""
        self._console.print_line(format_trial_end(event, self._reader.config))
        self._show([], "")

    def _refresh(self) -> None:
        """Read the status again, and draw it."""
        super()._refresh()
        counts = self._status.counts
        progress = f"{self._status.name}: {format_progress(self._status)}"
        parts = progress, format_running(self._running, self._reader.config), self._note
        line = to_line("  |  ".join(filter(None, parts)))
        bar = f'<progress value="{counts.finished}" max="{max(1, counts.planned)}"></progress>'
        data = {"text/plain": line, "text/html": f"{bar} {html.escape(line)}"}
        if self._output is None:
            display = import_module("IPython.display").display
            self._output = display(data, raw=True, display_id=True)
        else:
            self._output.update(data, raw=True)


def create_display(console: SafeConsole, reader: StatusReader, is_subprocess: bool) -> QuietDisplay:
    """Return the display that suits the console.

    Args:
        console: console to print to.
        reader: reader of the study's status.
        is_subprocess: whether the parent process shows the progress.
    """
    if is_subprocess:
        return QuietDisplay(console, reader)
    if console.is_notebook:
        return NotebookDisplay(console, reader)
    is_live = console.is_terminal and not console.is_dumb_terminal
    return (LiveDisplay if is_live else LogDisplay)(console, reader)


def draw_status(
    status: Status, running: Sequence[RunningTrial], config: StudyConfig, note: str = ""
) -> RenderableType:
    """Return a study's progress and its running trials as a rich renderable."""
    counts = status.counts
    bar = Table.grid()  # gives the bar a line of its own
    bar.add_row(ProgressBar(total=max(1, counts.planned), completed=counts.finished, width=60))
    parts: list[RenderableType] = [Text(f"{status.name}  {format_progress(status)}"), bar]
    if running:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("trial", "architecture", "step", f"smoothed {find_measure(config).loss}"):
            table.add_column(column, style="dim" if column == "trial" else "", no_wrap=True)
        for trial in running[:MAX_ROWS]:
            table.add_row(
                str(trial.number),
                trial.trial_config.label,
                f"{trial.step:,} of {trial.steps:,}",
                format_loss(trial.smoothed_loss, config),
            )
        parts.append(table)
        if len(running) > MAX_ROWS:
            parts.append(Text(f"and {len(running) - MAX_ROWS} more", style="dim"))
    if note:
        parts.append(Text(note, style="dim"))
    return Group(*parts)
