"""What the terminal shows of a search."""

import io
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from optuna.trial import FrozenTrial
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.status import RunningTrial, Status, StatusReader
from search.worker.protocols import TrialEvent, WorkerCallbacks
from studies.text import format_duration

REFRESH_SECONDS = 2.0
"""Between two looks at the storage: a look costs a worker some milliseconds of training."""

PROGRESS_SECONDS = 3.0
"""After which a silent log gets a line of progress: early enough that no gap comes to 5 s."""

TICK_SECONDS = 0.25
"""Between two looks at how long a log has been silent."""

SHOWN = 16
"""The most trials that are shown at once."""


class SafeConsole(Console):
    """A console that falls silent when it cannot be written to.

    A terminal that is closed, or a log on a full disk, is not to end what is shown on it.

    Attributes:
        printed_at: time of the last line, or of the beginning, on the monotonic clock.
        is_broken: whether the program that read the output has ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.printed_at = time.monotonic()
        self.is_broken = False

    def __exit__(self, *error: Any) -> None:
        """Write what was said in this context, or give it up for good."""
        try:
            super().__exit__(*error)
        except OSError:
            self.quiet = True
            sys.stdout = io.StringIO()  # or what is left unsaid is tried again at the exit

    def on_broken_pipe(self) -> None:
        """Exit; where another thread than the main one has printed, :meth:`require` does."""
        self.is_broken = True
        super().on_broken_pipe()

    def require(self) -> None:
        """Exit if the program that read the output has ended."""
        if self.is_broken:
            raise SystemExit(1)

    def say(self, line: str) -> None:
        """Print a line: broken between words in a terminal, left whole in a file."""
        self.print(line, markup=False, highlight=False, soft_wrap=not self.is_terminal)
        self.printed_at = time.monotonic()


class Ticker:
    """Prints a line whenever a console has been silent for :data:`PROGRESS_SECONDS`; a context.

    A thread prints it, whatever the main thread does or waits for.

    Args:
        console: to print to.
        line: returns the line; called in that thread.
    """

    def __init__(self, console: SafeConsole, line: Callable[[], str]) -> None:
        self._console = console
        self._line = line
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def tick(self) -> None:
        """Print the line if the console has been silent for too long."""
        if time.monotonic() - self._console.printed_at >= PROGRESS_SECONDS:
            self._console.say(self._line())

    def _run(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            self.tick()


class LogDisplay(WorkerCallbacks):
    """Lines, for an output that is no terminal.

    Args:
        console: to write to.
        reader: of the study's status.
        label: says what network a trial is of.
    """

    def __init__(
        self, console: SafeConsole, reader: StatusReader, label: Callable[[FrozenTrial], str]
    ) -> None:
        self._console = console
        self._reader = reader
        self._label = label
        self._running: Sequence[RunningTrial] = ()
        self._waiting = False
        self._ticker = Ticker(console, self._progress)

    def __enter__(self) -> Self:
        self._ticker.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._ticker.__exit__(*error)

    def on_trial_end(self, event: TrialEvent) -> None:
        """Print the trial's outcome and the study's progress."""
        self._running = [run for run in self._running if run.number != event.trial.number]
        progress = progress_text(self._reader.status())
        self.on_message(f"{ended_text(event, self._label)}  |  {progress}")

    def on_wait(self) -> None:
        """Print once that others still work."""
        self.on_log([])
        if not self._waiting:
            self._waiting = True
            self.on_message("no point is left to claim; waiting for those that other workers hold")

    def on_message(self, message: str) -> None:
        """Print it."""
        self._console.say(message)

    def on_log(self, running: Sequence[RunningTrial]) -> None:
        """Take note of the trials that run, for the next line of progress."""
        self._console.require()
        self._running = running

    def _progress(self) -> str:
        running = self._running
        parts = [progress_text(self._reader.recent()), running_text(running) if running else ""]
        return "  |  ".join(filter(None, parts))


class LiveDisplay(WorkerCallbacks):
    """A display that is drawn anew in place, for a terminal.

    Args:
        console: to draw on.
        reader: of the study's status.
        label: says what network a trial is of.
    """

    def __init__(
        self, console: SafeConsole, reader: StatusReader, label: Callable[[FrozenTrial], str]
    ) -> None:
        self._read = reader.status
        self._label = label
        self._status = reader.status()
        self._read_at = time.monotonic()
        self._console = console
        self._running: Sequence[RunningTrial] = ()
        self._note = ""
        self._live = Live(
            get_renderable=self._draw, console=console, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._running = ()
        if error[0] is None:
            self._status = self._read()
        self._live.stop()

    def on_trial_end(self, event: TrialEvent) -> None:
        """Take the trial away, and say what is unusual about its end."""
        self.on_log([trial for trial in self._running if trial.number != event.trial.number])
        if event.value is None and not event.is_paused:
            self.on_message(ended_text(event, self._label))

    def on_wait(self) -> None:
        """Say that others still work."""
        self.on_log([])
        self._note = "no point is left to claim; waiting for those that other workers hold"

    def on_message(self, message: str) -> None:
        """Print it above what is drawn."""
        self._console.say(message)

    def on_log(self, running: Sequence[RunningTrial]) -> None:
        """Show these trials, and the study as it stands."""
        self._running = running
        self._note = ""
        if time.monotonic() - self._read_at >= REFRESH_SECONDS:
            self._status = self._read()
            self._read_at = time.monotonic()

    def _draw(self) -> RenderableType:
        return draw(self._status, self._running, self._note)


class QuietDisplay(WorkerCallbacks):
    """Warnings only: the process that started this worker shows its progress.

    Args:
        console: to write to.
        reader: not used.
        label: says what network a trial is of.
    """

    def __init__(
        self, console: SafeConsole, reader: StatusReader, label: Callable[[FrozenTrial], str]
    ) -> None:
        self._console = console
        self._label = label

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def on_trial_end(self, event: TrialEvent) -> None:
        """Say only what is unusual, and read nothing for it."""
        if event.value is None and not event.is_paused:
            self.on_message(ended_text(event, self._label))

    def on_message(self, message: str) -> None:
        """Print it."""
        self._console.say(message)


def draw(status: Status, running: Sequence[RunningTrial], note: str = "") -> RenderableType:
    """Return a study's progress and its running trials as rich draws them."""
    counts = status.counts
    head = Text(f"{status.name}  {progress_text(status)}")
    bar = Table.grid()  # which gives it a line of its own
    bar.add_row(ProgressBar(total=max(1, counts.planned), completed=counts.finished, width=60))
    parts: list[RenderableType] = [head, bar]
    if running:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("trial", "architecture", "step", "smoothed loss"):
            table.add_column(column, style="dim" if column == "trial" else "", no_wrap=True)
        for trial in running[:SHOWN]:
            table.add_row(
                str(trial.number),
                trial.label,
                f"{trial.step:,} of {trial.steps:,}",
                loss_text(trial.smoothed_loss),
            )
        parts.append(table)
        if len(running) > SHOWN:
            parts.append(Text(f"and {len(running) - SHOWN} more", style="dim"))
    if note:
        parts.append(Text(note, style="dim"))
    return Group(*parts)


def ended_text(ended: TrialEvent, label: Callable[[FrozenTrial], str]) -> str:
    """Return a trial's outcome in one line."""
    value = "" if ended.value is None else f" {loss_text(ended.value)}"
    return (
        f"trial {ended.trial.number}  {label(ended.trial)}  {ended.message}{value}  "
        f"{ended.seconds:.1f} s"
    )


def progress_text(status: Status) -> str:
    """Return a study's progress in one line."""
    a = status.counts
    parts = [f"{a.finished} of {a.planned} finished"]
    parts += [
        f"{count} {name}"
        for name, count in (
            ("running", a.running),
            ("paused", a.paused),
            ("pruned", a.pruned),
            ("diverged", a.diverged),
            ("failed", a.failed),
        )
        if count
    ]
    if status.best:
        best = status.best
        parts.append(f"best {loss_text(best.value)} (trial {best.number}, {best.architecture})")
    if status.seconds_left:
        parts.append(f"about {format_duration(status.seconds_left)} left")
    return ", ".join(parts)


def running_text(running: Sequence[RunningTrial]) -> str:
    """Return how far trials that run were at their last log points."""
    first, *others = running
    if not others:
        parts = (f"trial {first.number}", first.label, f"step {first.step:,} of {first.steps:,}")
        return "  ".join(filter(None, (*parts, loss_text(first.smoothed_loss))))
    low, high = min(run.step for run in running), max(run.step for run in running)
    span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"running trials at step {span} of {first.steps:,}"


def loss_text(loss: float | None) -> str:
    """Return a loss with its unit."""
    return "" if loss is None else f"{loss:.4f} nats"
