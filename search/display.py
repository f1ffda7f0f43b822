"""Output of a search: its text, and displays for a log, a terminal and a notebook."""

import io
import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from typing import Any, Self

from optuna.trial import TrialState
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.errors import is_bug
from search.pruning.audit import describe_look
from search.status import (
    REFRESH_SECONDS,
    FirstRung,
    RunningTrial,
    Status,
    StatusReader,
    TrialEvent,
)
from studies.attributes import ERROR
from studies.best import Best
from studies.cli import describe_bug
from studies.config import StudyConfig, to_trial_config, top_count
from studies.measure import find_measure
from studies.storage.counts import TrialCounts
from studies.storage.trials import StoredTrial
from studies.text import format_bytes, format_duration, to_line

PROGRESS_SECONDS = 3.0
"""Silence after which a log gets a line of progress; with the delays below, no gap reaches 5 s
while trials run."""

LEADER_SECONDS = 30.0
"""Interval between a log's lines on the leaders at the first rung."""

TICK_SECONDS = 0.25
"""Interval between checks for silence."""

MAX_ROWS = 12
"""Number of running trials that a display lists."""

MAX_WORKERS = 20
"""Number of workers that a status lists."""

_LOGGERS = (logging.getLogger("search"), logging.getLogger("studies"))
"""Loggers whose messages a display prints."""

WAITING = "the remaining trials are running in other workers; waiting for them"


# ------------------------------------------------------------------ text


def format_trial_end(event: TrialEvent, config: StudyConfig) -> str:
    """Format the outcome of a trial: ``trial 14  1×32 GRU  complete 1.4321 nats  55.3 s``."""
    label = to_trial_config(event.trial.params, config).label
    measure = find_measure(config.of_trial(event.trial.params))
    value = "" if event.value is None else measure.describe(event.value)
    outcome = " ".join(filter(None, (event.message, value)))
    return f"trial {event.trial.number}  {label}  {outcome}  {event.seconds:.1f} s"


def format_progress(status: Status) -> str:
    """Format the progress of a study: ``12 of 96 finished, 4 running, best …``."""
    parts = [status.counts.describe()]
    if rung := status.first_rung:
        parts.insert(0, _format_rung(rung, status.counts))
    if best := status.best:
        parts.append(f"best {best.text} ({_name_trial(best)})")
    if seconds := _format_seconds_left(status):
        parts.append(f"{seconds} left")
    return ", ".join(parts)


def format_running(running: Sequence[RunningTrial], config: StudyConfig) -> str:
    """Format the last logged steps of running trials; empty if none is running."""
    if not running:
        return ""
    first = running[0]
    if len(running) == 1:
        step = f"step {first.step:,} of {first.steps:,}"
        parts = f"trial {first.number}", first.trial_config.label, step
        return "  ".join(filter(None, (*parts, format_loss(first.smoothed_loss, config))))
    low, high = min(trial.step for trial in running), max(trial.step for trial in running)
    span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"running trials at step {span} of {first.steps:,}"


def format_leaders(rung: FirstRung, config: StudyConfig) -> list[str]:
    """Format the leaders at the first rung: ``1.4321 nats, trial 14, 1×32 GRU``."""
    return [
        f"{format_loss(trial.smoothed_loss, config)}, trial {trial.number}, "
        f"{trial.trial_config.label}"
        for trial in rung.leaders
    ]


def format_loss(loss: float | None, config: StudyConfig) -> str:
    """Format a smoothed training loss with its unit; empty for None."""
    return "" if loss is None else find_measure(config).format_short(loss)


def format_status(status: Status, config: StudyConfig) -> str:
    """Format the status of a study as the table that ``rnn-search status`` prints."""
    counts, rows = status.counts, []
    states = ["planned", "complete", "running", "waiting", "pruned", "diverged", "failed"]
    if config.results is not None:
        rows = [("imported", f"from {config.results.source}")]
        states = [state for state in states if state not in ("running", "waiting")]
    for state in states:
        paused = f" ({counts.paused} paused)" if state == "waiting" and counts.paused else ""
        rows.append((state, f"{getattr(counts, state)}{paused}"))
    if rung := status.first_rung:
        rows.append(("rung 1", _format_rung(rung, counts)))
        rows += _list_lines("leading", format_leaders(rung, config))
    if best := status.best:
        direction = "highest " if config.direction == "maximize" else ""
        rows.append(("best", f"{direction}{best.text}, {_name_trial(best)}"))
    lines = [
        f"{name}: {each.text}, {_name_trial(each)}" for name, each in status.best_by_task.items()
    ]
    rows += _list_lines("best", lines)
    if config.pruning.enabled:
        keep = top_count(config.pruning.keep, counts.planned)
        rows.append(("to keep", f"top {keep}, with confidence {config.pruning.confidence:g}"))
        rows.append(("audit", _format_audit(status)))
    if config.results is None:
        rows.append(("time left", _format_time_left(status, config)))
    if disk := _format_disk(status):
        rows.append(("disk", disk))
    if status.retries:
        retries = ", ".join(f"{count} {reason}" for reason, count in status.retries.items())
        rows.append(("requeued", retries))
    # The worker that was silent for longest comes first.
    lines = [worker.description for worker in status.workers[:MAX_WORKERS]]
    if len(status.workers) > MAX_WORKERS:
        lines.append(f"and {len(status.workers) - MAX_WORKERS} others: --json lists all")
    rows += _list_lines("workers", lines)
    return "\n".join(f"{name:9} {to_line(value)}" for name, value in rows)


def explain_failure(study: str, trials: Iterable[StoredTrial], counts: TrialCounts) -> str:
    """Return one line on why a finished study has no complete trial, and what to do."""
    causes, changes = [], []
    if counts.diverged:
        causes.append(f"{counts.diverged} diverged")
        changes.append("lower training.learning_rate")
    if counts.failed:
        errors = [
            (str(trial.completed), trial.attributes[ERROR])
            for trial in trials
            if trial.state is TrialState.FAIL and ERROR in trial.attributes
        ]
        error = f", the last with {max(errors)[1]}" if errors else ""
        causes.append(f"{counts.failed} failed{error}")
        changes.append("change the settings that cause the error")
    return (
        f"study {study!r} finished without a complete trial: {'; '.join(causes)}; "
        f"{', '.join(changes)} and search again under another --name"
    )


def _name_trial(best: Best) -> str:
    """Name trial and architecture of the best; of replicates the architecture first."""
    if best.runs is None:
        return f"trial {best.number}, {best.architecture}"
    return f"{best.architecture}, best run trial {best.number}"


def _format_rung(rung: FirstRung, counts: TrialCounts) -> str:
    """Format the progress to the first rung: ``187 of 432 through step 400 (about 6 min left)``."""
    text = f"{rung.reached} of {counts.planned} through step {rung.step:,}"
    if not rung.seconds_left:
        return text
    about = "more than" if rung.is_at_least else "about"
    return f"{text} ({about} {format_duration(rung.seconds_left)} left)"


def _format_disk(status: Status) -> str:
    size = status.checkpoint_bytes
    return f"{format_bytes(size)} of checkpoints" if size else ""


def _list_lines(name: str, lines: Iterable[str]) -> list[tuple[str, str]]:
    """Return a row of a status for each line, the first one with the name."""
    return [("" if place else name, line) for place, line in enumerate(lines)]


def _format_audit(status: Status) -> str:
    """Format the number of audited trials, and the last look at them."""
    if not status.audited:
        return "none: what pruning loses is not measured"
    text = f"{status.audited} trials"
    alarms = [look for look in status.looks.values() if look.alarm]
    if looks := alarms or [look for look in status.looks.values() if look.trials]:
        last = max(looks, key=lambda look: look.complete)
        text += f"{'; alarm' if alarms else ''}: {describe_look(last)}"
    return text


def _format_time_left(status: Status, config: StudyConfig) -> str:
    if status.is_finished:
        return "none: every trial is finished"
    if text := _format_seconds_left(status):
        return f"{text} with the current workers"
    if not status.workers:
        return "unknown: no active worker"
    if config.pruning.enabled and status.counts.waiting:
        return "unknown: too few trials are complete to predict the others"
    return "unknown: no trial of some size is complete yet"


def _format_seconds_left(status: Status) -> str:
    """Format the time left, of a search that prunes with its range; empty if it is unknown."""
    if not status.seconds_left:
        return ""
    text = f"about {format_duration(status.seconds_left)}"
    if status.seconds_range is None:
        return text
    low, high = map(format_duration, status.seconds_range)
    return text if low == high else f"{text} ({low} to {high})"


# ------------------------------------------------------------------ console


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


# ------------------------------------------------------------------ displays


class QuietDisplay(logging.Handler):
    """Log messages and unusual outcomes only, for workers whose parent shows the progress.

    A worker calls its methods ``on_…`` from its main thread.
    """

    def __init__(self, console: SafeConsole, reader: StatusReader) -> None:
        super().__init__()
        self._console = console
        self._reader = reader
        self._pending: deque[logging.LogRecord] = deque()  # of other threads than the main one
        self._bugs: list[list[str]] = []  # that were printed
        self._replaced: list[list[logging.Handler]] = []
        self._background: AbstractContextManager[object] = nullcontext()  # a thread that draws

    def __enter__(self) -> Self:
        self._background.__enter__()
        logging.getLogger("search").setLevel(logging.INFO)
        for logger in _LOGGERS:
            self._replaced.append(logger.handlers)
            logger.handlers, logger.propagate = [self], False
        return self

    def __exit__(self, *error: object) -> None:
        for logger in reversed(_LOGGERS):
            logger.handlers, logger.propagate = self._replaced.pop(), True
        self.on_poll()
        self._background.__exit__(None, None, None)

    def on_log(self, running: Sequence[RunningTrial]) -> None:
        """Handle a log point of the running trials."""

    def on_poll(self) -> None:
        """Print the messages of other threads, several times a second during training."""
        while self._pending:
            self.emit(self._pending.popleft())

    def on_wait(self) -> None:
        """Do the same while other workers run trials, with none left to claim."""
        self.on_poll()

    def on_trial_end(self, event: TrialEvent) -> None:
        """Print the end of a trial in this worker unless the trial is complete or paused."""
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


class ProgressDisplay(QuietDisplay):
    """The running trials of this worker, and a line for each trial that has ended."""

    def __init__(self, console: SafeConsole, reader: StatusReader) -> None:
        super().__init__(console, reader)
        self._running: Sequence[RunningTrial] = ()
        self._note = ""

    def on_log(self, running: Sequence[RunningTrial]) -> None:
        """Show the running trials."""
        self._console.exit_if_broken()
        self._show(running, "")

    def on_trial_end(self, event: TrialEvent) -> None:
        """Print the outcome unless the trial is paused: a pruned grid pauses most of its trials."""
        if not event.is_paused:
            self._console.print_line(self._format_end(event))
        others = [trial for trial in self._running if trial.number != event.trial.number]
        self._show(others, self._note)

    def on_wait(self) -> None:
        """Show that this worker waits for others."""
        super().on_wait()
        self._show((), WAITING)

    def _show(self, running: Sequence[RunningTrial], note: str) -> None:
        """Have these trials and a note shown by the next line or drawing."""
        self._running, self._note = running, note

    def _format_end(self, event: TrialEvent) -> str:
        return format_trial_end(event, self._reader.config)

    def _draw(self) -> Table:
        status = self._reader.recent_status()
        return draw_status(status, self._running, self._reader.config, self._note)


class LogDisplay(ProgressDisplay):
    """Lines only, for output that is not a terminal."""

    def __init__(self, console: SafeConsole, reader: StatusReader) -> None:
        super().__init__(console, reader)
        self._has_waited = False
        self._leaders_at = -math.inf
        self._background = Ticker(console, self._format_progress)

    def on_wait(self) -> None:
        """Print once that this worker waits for others."""
        super().on_wait()
        if not self._has_waited:
            self._has_waited = True
            self._console.print_line(WAITING)

    def _format_end(self, event: TrialEvent) -> str:
        return f"{super()._format_end(event)}  |  {format_progress(self._reader.read_status())}"

    def _format_progress(self) -> str:
        status, config = self._reader.recent_status(), self._reader.config
        parts, rung, now = [format_progress(status)], status.first_rung, time.monotonic()
        if rung and rung.leaders and now - self._leaders_at >= LEADER_SECONDS:
            self._leaders_at = now
            leaders = "; ".join(format_leaders(rung, config))
            parts += [f"leading at step {rung.step:,}: {leaders}", _format_disk(status)]
        return "  |  ".join(filter(None, (*parts, format_running(self._running, config))))


class LiveDisplay(ProgressDisplay):
    """Display that is redrawn in place, for a terminal; lines scroll above it."""

    def __init__(self, console: SafeConsole, reader: StatusReader) -> None:
        super().__init__(console, reader)
        self._background = Live(
            get_renderable=self._draw, console=console, refresh_per_second=2, transient=True
        )


class NotebookDisplay(ProgressDisplay):
    """Display that is redrawn in place, for a notebook: rich's, without a thread or widgets."""

    _drawn_at = -math.inf

    def __enter__(self) -> Self:
        self._output: Any = import_module("IPython.display").display(self._draw(), display_id=True)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._drawn_at = -math.inf
        self._show((), "")

    def _show(self, running: Sequence[RunningTrial], note: str) -> None:
        super()._show(running, note)
        if (now := time.monotonic()) - self._drawn_at >= REFRESH_SECONDS:
            self._drawn_at = now
            self._output.update(self._draw())


def create_display(console: SafeConsole, reader: StatusReader) -> QuietDisplay:
    """Return the display that suits the console."""
    if console.is_notebook:
        return NotebookDisplay(console, reader)
    is_live = console.is_terminal and not console.is_dumb_terminal
    return (LiveDisplay if is_live else LogDisplay)(console, reader)


def draw_status(
    status: Status, running: Sequence[RunningTrial], config: StudyConfig, note: str = ""
) -> Table:
    """Return a study's progress and its running trials as a table of rich."""
    counts, rung = status.counts, status.first_rung
    drawn, bars = Table.grid(), Table.grid(padding=(0, 2, 0, 0))
    drawn.add_row(Text(f"{status.name}  {format_progress(status)}"))
    places = {"finished": counts.finished}
    if rung is not None:
        places = {f"step {rung.step:,}": rung.reached, **places}
    for name, reached in places.items():
        bars.add_row(name, ProgressBar(max(1, counts.planned), reached, width=60))
    drawn.add_row(bars)
    if rung is not None and rung.leaders:
        drawn.add_row(_draw_trials("leading", rung.leaders, config))
    if running:
        drawn.add_row(_draw_trials("trial", running[:MAX_ROWS], config))
    notes = [f"and {len(running) - MAX_ROWS} more"] if len(running) > MAX_ROWS else []
    notes += filter(None, (_format_disk(status), note))
    for text in notes:
        drawn.add_row(Text(text, style="dim"))
    return drawn


def _draw_trials(name: str, trials: Sequence[RunningTrial], config: StudyConfig) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in (name, "architecture", "step", f"smoothed {find_measure(config).loss}"):
        table.add_column(column, style="dim" if column == name else "", no_wrap=True)
    for trial in trials:
        table.add_row(
            str(trial.number),
            trial.trial_config.label,
            f"{trial.step:,} of {trial.steps:,}",
            format_loss(trial.smoothed_loss, config),
        )
    return table
