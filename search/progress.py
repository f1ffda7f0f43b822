"""Progress of a search as lines of text."""

from collections.abc import Iterable, Sequence

from optuna.trial import TrialState

from search.pruning.audit import describe_look
from search.status import RunningTrial, Status, TrialEvent
from studies.attributes import ERROR
from studies.best import Best
from studies.config import StudyConfig, to_trial_config, top_count
from studies.measure import find_measure
from studies.storage.counts import TrialCounts
from studies.storage.trials import StoredTrial
from studies.text import format_duration, to_line

MAX_WORKERS = 20
"""Number of workers that a status lists."""


def format_trial_end(event: TrialEvent, config: StudyConfig) -> str:
    """Format the outcome of a trial: ``trial 14  1×32 GRU  complete 1.4321 nats  55.3 s``."""
    label = to_trial_config(event.trial.params, config).label
    value = "" if event.value is None else find_measure(config).describe(event.value)
    outcome = " ".join(filter(None, (event.message, value)))
    return f"trial {event.trial.number}  {label}  {outcome}  {event.seconds:.1f} s"


def format_progress(status: Status) -> str:
    """Format the progress of a study: ``12 of 96 finished, 4 running, best …``."""
    counts = status.counts
    parts = [counts.describe()]
    if best := status.best:
        parts.append(f"best {best.text} ({_name_trial(best)})")
    if status.seconds_left:
        parts.append(f"about {format_duration(status.seconds_left)} left")
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


def format_loss(loss: float | None, config: StudyConfig) -> str:
    """Format a smoothed training loss with its unit; empty for None."""
    return "" if loss is None else find_measure(config).format(loss)


def _name_trial(best: Best) -> str:
    """Name trial and architecture of the best; of replicates the architecture first."""
    if best.runs is None:
        return f"trial {best.number}, {best.architecture}"
    return f"{best.architecture}, best run trial {best.number}"


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
    if best := status.best:
        direction = "highest " if config.direction == "maximize" else ""
        rows.append(("best", f"{direction}{best.text}, {_name_trial(best)}"))
    if config.pruning.enabled:
        keep = top_count(config.pruning.keep, counts.planned)
        rows.append(("to keep", f"top {keep}, with confidence {config.pruning.confidence:g}"))
        rows.append(("audit", _format_audit(status)))
    if config.results is None:
        rows.append(("time left", _format_time_left(status, config)))
    if status.retries:
        retries = ", ".join(f"{count} {reason}" for reason, count in status.retries.items())
        rows.append(("requeued", retries))
    rows += _list_workers(status)
    return "\n".join(f"{name:9} {to_line(value)}" for name, value in rows)


def _list_workers(status: Status) -> list[tuple[str, str]]:
    """Return a row for each worker that holds trials, the one that was silent for longest first."""
    lines = [worker.description for worker in status.workers[:MAX_WORKERS]]
    if len(status.workers) > MAX_WORKERS:
        lines.append(f"and {len(status.workers) - MAX_WORKERS} others: --json lists all")
    return [("workers" if not place else "", line) for place, line in enumerate(lines)]


def _format_audit(status: Status) -> str:
    """Format the number of audited trials, and the last look at them."""
    if not status.audited:
        return "none: what pruning loses is not measured"
    text = f"{status.audited} trials"
    alarms = [look for look in status.looks.values() if look.alarm]
    if looks := alarms or list(status.looks.values()):
        last = max(looks, key=lambda look: look.complete)
        text += f"{'; alarm' if alarms else ''}: {describe_look(last)}"
    return text


def _format_time_left(status: Status, config: StudyConfig) -> str:
    if status.is_finished:
        return "none: every trial is finished"
    if config.pruning.enabled and status.counts.waiting:
        return "unknown: pruning decides how many of the waiting trials are needed"
    if status.seconds_left is None:
        return "unknown: no active worker, or too few complete trials"
    return f"about {format_duration(status.seconds_left)} with the current workers"


def explain_failure(study: str, trials: Iterable[StoredTrial], counts: TrialCounts) -> str:
    """Return one line on why a finished study has no complete trial, and what to do.

    Args:
        study: name of the study.
        trials: its grid trials.
        counts: number of them by state.
    """
    causes, changes = [], []
    if counts.diverged:
        causes.append(f"{counts.diverged} diverged")
        changes.append("lower training.learning_rate")
    if counts.failed:
        with_error = [
            trial
            for trial in trials
            if trial.state is TrialState.FAIL and ERROR in trial.attributes
        ]
        last = max(with_error, key=lambda trial: str(trial.completed), default=None)
        error = f", the last with {last.attributes[ERROR]}" if last else ""
        causes.append(f"{counts.failed} failed{error}")
        changes.append("change the settings that cause the error")
    return (
        f"study {study!r} finished without a complete trial: {'; '.join(causes)}; "
        f"{', '.join(changes)} and search again under another --name"
    )
