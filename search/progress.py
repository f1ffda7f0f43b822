"""What the terminal shows of a search."""

import io
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

from optuna.trial import FrozenTrial
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.collaborators import Ended
from search.status import Running, Status

REFRESH_SECONDS = 2.0
"""Between two looks at the storage: a look costs a worker some milliseconds of training."""

PLAIN_SECONDS = 30.0
"""Between two lines about one trial, where the output is no terminal."""

SHOWN = 16
"""The most trials that are shown at once."""


class Terminal(Console):
    """A console that falls silent when it cannot be written to.

    A terminal that is closed, or a log on a full disk, is not to end what is shown on it.
    """

    def __exit__(self, *error: Any) -> None:
        """Write what was said in this context, or give it up for good."""
        try:
            super().__exit__(*error)
        except OSError:
            self.quiet = True
            sys.stdout = io.StringIO()  # or what is left unsaid is tried again at the exit


class Display(Protocol):
    """What a search tells a person; a context that begins and ends with the search."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def advanced(self, running: Sequence[Running]) -> None:
        """This worker's trials have come to a log point."""

    def ended(self, ended: Ended) -> None:
        """One of this worker's trials is done with."""

    def waits(self) -> None:
        """No point is left to claim, but others still hold some."""

    def says(self, line: str) -> None:
        """Something that a person should know."""

    def show(self, running: Sequence[Running]) -> None:
        """These trials run, in whichever worker."""


class Plain:
    """Lines, for an output that is no terminal.

    Args:
        console: to write to.
        read: reads the study's status.
        label: says what network a trial is of.
    """

    def __init__(
        self, console: Console, read: Callable[[], Status], label: Callable[[FrozenTrial], str]
    ) -> None:
        self._console = console
        self._read = read
        self._label = label
        self._last = time.monotonic()
        self._waiting = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def advanced(self, running: Sequence[Running]) -> None:
        """Print a line about long trials now and then."""
        if time.monotonic() - self._last < PLAIN_SECONDS:
            return
        first, *others = running
        more = f"  and {len(others)} more" if others else ""
        self._print(
            f"trial {first.number}  {first.label}  step {first.step:,} of {first.steps:,}  "
            f"{loss_text(first.smoothed_loss)}{more}"
        )

    def ended(self, ended: Ended) -> None:
        """Print the trial's outcome and the study's progress."""
        self._print(f"{ended_text(ended, self._label)}  |  {progress_text(self._read())}")

    def waits(self) -> None:
        """Print once that others still work."""
        if not self._waiting:
            self._waiting = True
            self._print("no point is left to claim; waiting for those that other workers hold")

    def says(self, line: str) -> None:
        """Print it."""
        self._print(line)

    def show(self, running: Sequence[Running]) -> None:
        """Say nothing: each worker prints its own lines."""

    def _print(self, line: str) -> None:
        self._last = time.monotonic()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Drawn:
    """A display that is drawn anew in place, for a terminal.

    Args:
        console: to draw on.
        read: reads the study's status.
        label: says what network a trial is of.
    """

    def __init__(
        self, console: Console, read: Callable[[], Status], label: Callable[[FrozenTrial], str]
    ) -> None:
        self._read = read
        self._label = label
        self._status = read()
        self._read_at = time.monotonic()
        self._console = console
        self._running: Sequence[Running] = ()
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

    def advanced(self, running: Sequence[Running]) -> None:
        """Show where this worker's trials are."""
        self.show(running)

    def ended(self, ended: Ended) -> None:
        """Take the trial away, and say what is unusual about its end."""
        self.show([trial for trial in self._running if trial.number != ended.trial.number])
        if ended.value is None and not ended.is_paused:
            self.says(ended_text(ended, self._label))

    def waits(self) -> None:
        """Say that others still work."""
        self.show([])
        self._note = "no point is left to claim; waiting for those that other workers hold"

    def says(self, line: str) -> None:
        """Print it above what is drawn."""
        self._console.print(line, markup=False, highlight=False)

    def show(self, running: Sequence[Running]) -> None:
        """Show these trials, and the study as it stands."""
        self._running = running
        self._note = ""
        if time.monotonic() - self._read_at >= REFRESH_SECONDS:
            self._status = self._read()
            self._read_at = time.monotonic()

    def _draw(self) -> RenderableType:
        return draw(self._status, self._running, self._note)


class Silent(Plain):
    """Says nothing: the process that started this worker speaks for it."""

    def _print(self, line: str) -> None:
        return

    def says(self, line: str) -> None:
        """Say it all the same."""
        self._console.print(line, markup=False, highlight=False)

    def ended(self, ended: Ended) -> None:
        """Say only what is unusual, and read nothing for it."""
        if ended.value is None and not ended.is_paused:
            self.says(ended_text(ended, self._label))


def draw(status: Status, running: Sequence[Running], note: str = "") -> RenderableType:
    """Return a study's progress and its running trials as rich draws them."""
    accounting = status.accounting
    head = Text(f"{status.name}  {progress_text(status)}")
    bar = Table.grid()  # which gives it a line of its own
    bar.add_row(
        ProgressBar(total=max(1, accounting.planned), completed=accounting.finished, width=60)
    )
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


def ended_text(ended: Ended, label: Callable[[FrozenTrial], str]) -> str:
    """Return a trial's outcome in one line."""
    value = "" if ended.value is None else f" {loss_text(ended.value)}"
    return (
        f"trial {ended.trial.number}  {label(ended.trial)}  {ended.outcome}{value}  "
        f"{ended.seconds:.1f} s"
    )


def progress_text(status: Status) -> str:
    """Return a study's progress in one line."""
    a = status.accounting
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
        parts.append(f"about {duration_text(status.seconds_left)} left")
    return ", ".join(parts)


def loss_text(loss: float | None) -> str:
    """Return a loss with its unit."""
    return "" if loss is None else f"{loss:.4f} nats"


def duration_text(seconds: float) -> str:
    """Return a duration to the second, the minute or the tenth of an hour."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
