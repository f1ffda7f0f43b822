"""What one terminal does with a study: tell where it stands, or work on it with n processes."""

import json
import multiprocessing
import os
import shlex
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from ctypes import c_bool
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawValue

import click
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from rnn.training.devices import assign_devices, resolve_device, trim_heap
from search.errors import USER_ERRORS
from search.parameters import to_trial_config
from search.pruning.pause_resume import PauseResumeScheduler
from search.status import Status, StatusReader, status
from search.study import StudyHandle, StudyOptions, create_or_join
from search.terminal import (
    LiveDisplay,
    LogDisplay,
    QuietDisplay,
    SafeConsole,
    Ticker,
    progress_text,
)
from search.worker.best_models import BestModelStore
from search.worker.claims import ClaimManager
from search.worker.cpu_budget import ThreadBudget
from search.worker.protocols import WorkerCallbacks
from search.worker.shutdown import SIGNALS, ShutdownSignal
from search.worker.trainer import Trainer
from search.worker.trial_artifacts import CheckpointStore, WeightStore
from search.worker.worker import Worker
from studies.artifacts import ArtifactKind, open_store
from studies.attributes import ERROR, is_grid_trial
from studies.cli import run_with_exit_code, study_name
from studies.config import StudyConfig, top_count
from studies.loader import load_config_file, stored_config
from studies.storage.counts import TrialCounts
from studies.storage.open import load_study, read_storage
from studies.text import format_duration

PROCESSES_SECONDS = 1.0
"""Between two looks at the processes that were started."""


_KINDS: tuple[ArtifactKind, ...] = ("checkpoints", "weights")

_ORDERLY = {0, *(128 + number for number in SIGNALS)}
"""The exit codes of workers that did all that was to be done, or were asked to stop."""


@dataclass(frozen=True)
class RunOptions:
    """The command line, as it was given; see ``run_search.py --help``.

    Attributes:
        until: seconds after which to stop.
        child: whether another process of ours has started this one, and speaks for it.
        program: that was started.
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
    child: bool = False
    program: str = "run_search.py"

    def terms(self) -> StudyOptions:
        """Return what the command line says beside the definition."""
        return StudyOptions(
            self.name,
            self.corpus,
            self.precision,
            self.prune,
            self.extend,
            self.partial,
            self.command(),
        )

    def command(self) -> str:
        """Return what makes the same study again, wherever it is kept and whoever works on it."""
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


Companion = Callable[[str], AbstractContextManager[object]]
"""Called with a study's name, and entered while the process that a person started works on it."""


@dataclass(frozen=True)
class Result:
    """How a session ended.

    Attributes:
        study: the study's name.
        finished: how many of its points are finished, by whichever worker.
        exit_code: of the command.
    """

    study: str
    finished: int
    exit_code: int


def show_status(options: RunOptions, as_json: bool) -> None:
    """Print where a study stands, without changing anything.

    Raises:
        StudiesError: if there is no such storage or study.
    """
    with closing(read_storage(options.storage)) as storage:
        study = load_study(storage, options.name or study_name(options.study))
        config = stored_config(study)
        found = status(study, storage, config)
    if as_json:
        click.echo(json.dumps(found.as_json()))
        return
    shown = found.as_json()
    for key in ("planned", "complete", "running", "waiting", "pruned", "diverged", "failed"):
        paused = f", {shown['paused']} of them paused" if shown["paused"] else ""
        click.echo(f"{key:9} {shown[key]}{paused if key == 'waiting' else ''}")
    if found.best:
        click.echo(
            f"best      {found.best.value:.4f} nats, trial {found.best.number}, "
            f"{found.best.architecture}"
        )
    if config.pruning.enabled:
        pruning = config.pruning
        kept = top_count(pruning.keep, found.counts.planned)
        click.echo(f"to keep   the best {kept}, with a confidence of {pruning.confidence:g}")
    click.echo(f"time left {_time_left(found, config)}")
    if found.retries:
        again = ", ".join(f"{count} {cause}" for cause, count in found.retries.items())
        click.echo(f"run again {again}")


def work(
    options: RunOptions, companion: Companion = nullcontext, trained: c_bool | None = None
) -> Result:
    """Join the study and work on it until all its points are finished.

    Args:
        options: the command line.
        companion: goes along with the work, and may take nothing from it.
        trained: in memory shared with the process that started this one; set once this process has
            trained a step.

    Raises:
        StudiesError, RNNError, SearchError: for bad input, before anything is written.
    """
    console = SafeConsole()
    name = options.name or study_name(options.study)
    preparing = f"preparing study {name}: opening the storage and reading the text"
    with nullcontext() if options.child else Ticker(console, lambda: preparing):
        device = resolve_device(options.device)
        checkpoints, weights = (
            open_store(options.artifacts, options.storage, kind) for kind in _KINDS
        )
        file = load_config_file(options.study, options.overrides, options.storage)
        joined = create_or_join(file, options.storage, options.terms(), device)
    with closing(joined.storage), companion(joined.study.study_name):
        result = _work(
            options,
            console,
            joined,
            device,
            CheckpointStore(checkpoints, joined.folder),
            WeightStore(weights, joined.folder),
            c_bool(False) if trained is None else trained,
        )
    trim_heap()  # what follows, a report, takes as much
    return result


def _work(
    options: RunOptions,
    console: SafeConsole,
    joined: StudyHandle,
    device: torch.device,
    checkpoints: CheckpointStore,
    weights: WeightStore,
    trained: c_bool,
) -> Result:
    if not options.child:
        _greet(console, joined, device)
    config = joined.config
    reader = StatusReader(joined.study, joined.storage, config, options.workers)
    name = f"{socket.gethostname()}/{os.getpid()}"
    with (
        ShutdownSignal(options.until, with_parent=options.child) as stop,
        _display(options, console, joined, reader) as display,
        ClaimManager(
            joined.storage,
            joined.study_id,
            name,
            stop,
            display.on_message,
            config.lease.seconds,
            config.outage.seconds,
        ) as keeper,
    ):
        reader.read_through(keeper)
        failed = 0
        if options.workers == 1:
            with ThreadBudget(options.threads) as budget:
                keeping = BestModelStore(joined, weights, keeper.consult, display.on_message)
                trainer = Trainer(
                    joined, device, budget, checkpoints, display, name, options.lockstep, keeping
                )
                pausing = None
                if config.pruning.enabled:
                    pausing = PauseResumeScheduler(joined.storage, joined.study_id, config)
                count = reader.counts
                try:
                    Worker(keeper, trainer, count, stop, display, options.wait, pausing).run()
                finally:
                    trained.value = trained.value or trainer.has_trained
        else:
            trained = RawValue(c_bool, False)
            failed = _supervise(options, reader, stop, display, trained)
        end = reader.status()
    if options.child:  # the process that started this one concludes for all
        return Result(end.name, end.counts.finished, stop.exit_code)
    is_finished = end.counts.finished == end.counts.planned
    if is_finished:
        _clear(checkpoints)
    console.say(f"study {end.name}: {progress_text(end)}")
    if stop.requested and not is_finished:
        if trained.value:
            console.say("stopped; what was trained is kept; run the same command to resume")
        else:
            console.say("stopped before anything was trained; run the same command to start")
    if is_finished and not end.counts.complete + end.counts.pruned:
        click.echo(f"error: {_nothing_worked(joined.study, end.counts)}", err=True)
        failed = 1
    return Result(end.name, end.counts.finished, stop.exit_code or failed)


def _nothing_worked(study: optuna.Study, counts: TrialCounts) -> str:
    """Say in one line why a finished study has no complete trial, and what to do."""
    causes, changes = [], []
    if counts.diverged:
        causes.append(f"{counts.diverged} diverged")
        changes.append("lower training.learning_rate")
    if counts.failed:
        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        with_error = [
            trial for trial in failed if is_grid_trial(trial) and ERROR in trial.user_attrs
        ]
        last = max(with_error, key=lambda trial: str(trial.datetime_complete), default=None)
        error = f", the last with {last.user_attrs[ERROR]}" if last else ""
        causes.append(f"{counts.failed} failed{error}")
        changes.append("change the settings that cause the error")
    return (
        f"study {study.study_name!r} is finished without a complete trial: {'; '.join(causes)}; "
        f"{', '.join(changes)} and search again under another --name"
    )


def _clear(checkpoints: CheckpointStore) -> None:
    """Remove the checkpoints of a finished study, or warn that some are left."""
    try:
        checkpoints.clear()
    except Exception as error:  # the results are recorded: nothing here may end the search
        click.echo(
            f"warning: checkpoints of the finished study could not be removed ({error}); they are "
            "no longer needed",
            err=True,
        )


def _supervise(
    options: RunOptions,
    reader: StatusReader,
    stop: ShutdownSignal,
    display: WorkerCallbacks,
    trained: c_bool,
) -> int:
    """Start the workers as processes and wait for them.

    Returns:
        1 if one of them came to a bad end, else 0.
    """
    # The study is made: what is left of the command line is to be done once only.
    each = replace(options, workers=1, extend=False, until=None, child=True)
    # Not forked: torch's threads and the storage's connections do not survive that.
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [
        context.Process(target=_work_and_exit, args=(replace(each, device=device), trained))
        for device in assign_devices(options.device, options.workers)
    ]
    display.on_message(f"starting {options.workers} worker processes")
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes) and not stop.requested:
            display.on_log(reader.running())
            _wait(processes, stop)
    finally:  # whatever this one ends by: the others are not left to themselves
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            process.join()
    orderly = _ORDERLY
    if stop.requested:  # a process that was terminated while it started is orderly as well
        orderly = orderly | {-signal.SIGTERM}
    lost = [process for process in processes if process.exitcode not in orderly]
    for process in lost:
        click.echo(f"warning: a worker ended with exit code {process.exitcode}", err=True)
    return int(bool(lost))


def _wait(processes: Sequence[BaseProcess], stop: ShutdownSignal) -> None:
    """Wait a moment, for a stop or for the end of all processes at the latest."""
    end = time.monotonic() + PROCESSES_SECONDS
    while time.monotonic() < end and not stop.requested:
        if not any(process.is_alive() for process in processes):
            return
        time.sleep(0.1)


def _work_and_exit(options: RunOptions, trained: c_bool) -> None:
    run_with_exit_code(lambda: work(options, trained=trained).exit_code, USER_ERRORS)


def _display(
    options: RunOptions, console: SafeConsole, joined: StudyHandle, reader: StatusReader
) -> LogDisplay | LiveDisplay | QuietDisplay:
    def label_of(trial: FrozenTrial) -> str:
        return to_trial_config(trial.params, joined.config).label

    kind: type[LogDisplay | LiveDisplay | QuietDisplay] = (
        LiveDisplay if console.is_terminal else LogDisplay
    )
    if options.child:  # the process that started it shows the progress of all workers
        kind = QuietDisplay
    return kind(console, reader, label_of)


def _greet(console: SafeConsole, joined: StudyHandle, device: torch.device) -> None:
    config = joined.config
    console.say(
        f"study {joined.study.study_name}: {joined.corpus.name}, "
        f"{len(joined.corpus.text):,} bytes; {config.training.steps:,} steps a point, "
        f"{config.precision}, on {device}",
    )
    if joined.news:
        console.say(joined.news)


def _time_left(found: Status, config: StudyConfig) -> str:
    if found.counts.finished == found.counts.planned:
        return "none: every point is finished"
    if config.pruning.enabled and found.counts.waiting:
        return "unknown (it depends on how many of the waiting points will be wanted)"
    if found.seconds_left is None:
        return "unknown (nobody works on it, or nothing is complete yet)"
    return f"about {format_duration(found.seconds_left)} at the present number of workers"
