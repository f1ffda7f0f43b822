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

from rnn.device import find_device, give_memory_back, share_devices
from search.checkpoints import Checkpoints
from search.claims import ClaimKeeper
from search.errors import BAD_INPUT
from search.joining import Joined, Terms, join
from search.keeping import Keeping
from search.pausing import Pausing
from search.progress import (
    Display,
    Drawn,
    Plain,
    Silent,
    Terminal,
    Ticker,
    duration_text,
    progress_text,
)
from search.space import member_of
from search.status import Status, StatusReader, label, status
from search.stopping import SIGNALS, StopRequest
from search.threads import ThreadBudget
from search.trainer import Trainer
from search.weights import BestWeights
from search.worker import Worker
from studies.accounting import Accounting
from studies.command_line import leave_with, study_name
from studies.definition import Definition, quota
from studies.opening import load_study, read_storage
from studies.reading import find_definition
from studies.records import ERROR, is_point
from studies.stored import stored_definition
from studies.stores import Kind, open_store

PROCESSES_SECONDS = 1.0
"""Between two looks at the processes that were started."""


_KINDS: tuple[Kind, ...] = ("checkpoints", "weights")

_ORDERLY = {0, *(128 + number for number in SIGNALS)}
"""The exit codes of workers that did all that was to be done, or were asked to stop."""


@dataclass(frozen=True)
class Options:
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
    population: int | None = None
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

    def terms(self) -> Terms:
        """Return what the command line says beside the definition."""
        return Terms(
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


def show_status(options: Options, as_json: bool) -> None:
    """Print where a study stands, without changing anything.

    Raises:
        StudiesError: if there is no such storage or study.
    """
    with closing(read_storage(options.storage)) as storage:
        study = load_study(storage, options.name or study_name(options.study))
        definition = stored_definition(study)
        found = status(study, storage, definition)
    if as_json:
        click.echo(json.dumps(found.as_json()))
        return
    accounting = found.as_json()
    for key in ("planned", "complete", "running", "waiting", "pruned", "diverged", "failed"):
        paused = f", {accounting['paused']} of them paused" if accounting["paused"] else ""
        click.echo(f"{key:9} {accounting[key]}{paused if key == 'waiting' else ''}")
    if found.best:
        click.echo(
            f"best      {found.best.value:.4f} nats, trial {found.best.number}, "
            f"{found.best.architecture}"
        )
    if definition.pruning.enabled:
        pruning = definition.pruning
        kept = quota(pruning.keep, found.accounting.planned)
        click.echo(f"to keep   the best {kept}, with a confidence of {pruning.confidence:g}")
    click.echo(f"time left {_time_left(found, definition)}")
    if found.setbacks:
        counts = ", ".join(f"{count} {cause}" for cause, count in found.setbacks.items())
        click.echo(f"run again {counts}")


def work(
    options: Options, companion: Companion = nullcontext, trained: c_bool | None = None
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
    console = Terminal()
    name = options.name or study_name(options.study)
    preparing = f"preparing study {name}: opening the storage and reading the text"
    with nullcontext() if options.child else Ticker(console, lambda: preparing):
        device = find_device(options.device)
        checkpoints, weights = (
            open_store(options.artifacts, options.storage, kind) for kind in _KINDS
        )
        file = find_definition(options.study, options.overrides, options.storage)
        joined = join(file, options.storage, options.terms(), device)
    with closing(joined.storage), companion(joined.study.study_name):
        result = _work(
            options,
            console,
            joined,
            device,
            Checkpoints(checkpoints, joined.folder),
            BestWeights(weights, joined.folder),
            c_bool(False) if trained is None else trained,
        )
    give_memory_back()  # what follows, a report, takes as much
    return result


def _work(
    options: Options,
    console: Terminal,
    joined: Joined,
    device: torch.device,
    checkpoints: Checkpoints,
    weights: BestWeights,
    trained: c_bool,
) -> Result:
    if not options.child:
        _greet(console, joined, device)
    definition = joined.definition
    reader = StatusReader(joined.study, joined.storage, definition, options.workers)
    name = f"{socket.gethostname()}/{os.getpid()}"
    with (
        StopRequest(options.until, with_parent=options.child) as stop,
        _display(options, console, joined, reader) as display,
        ClaimKeeper(
            joined.storage,
            joined.study_id,
            name,
            stop,
            display.says,
            definition.lease.seconds,
            definition.outage.seconds,
        ) as keeper,
    ):
        reader.read_through(keeper)
        failed = 0
        if options.workers == 1:
            with ThreadBudget(options.threads) as budget:
                keeping = Keeping(joined, weights, keeper.consult, display.says)
                trainer = Trainer(
                    joined, device, budget, checkpoints, display, name, options.population, keeping
                )
                pausing = None
                if definition.pruning.enabled:
                    pausing = Pausing(joined.storage, joined.study_id, definition)
                count = reader.accounting
                try:
                    Worker(keeper, trainer, count, stop, display, options.wait, pausing).run()
                finally:
                    trained.value = trained.value or trainer.has_trained
        else:
            trained = RawValue(c_bool, False)
            failed = _supervise(options, reader, stop, display, trained)
        end = reader.status()
    if options.child:  # the process that started this one concludes for all
        return Result(end.name, end.accounting.finished, stop.exit_code)
    is_finished = end.accounting.finished == end.accounting.planned
    if is_finished:
        _clear(checkpoints)
    console.say(f"study {end.name}: {progress_text(end)}")
    if stop.requested and not is_finished:
        if trained.value:
            console.say("stopped; what was trained is kept; run the same command to resume")
        else:
            console.say("stopped before anything was trained; run the same command to start")
    if is_finished and not end.accounting.complete + end.accounting.pruned:
        click.echo(f"error: {_nothing_worked(joined.study, end.accounting)}", err=True)
        failed = 1
    return Result(end.name, end.accounting.finished, stop.exit_code or failed)


def _nothing_worked(study: optuna.Study, accounting: Accounting) -> str:
    """Say in one line why a finished study has no complete trial, and what to do."""
    counts, changes = [], []
    if accounting.diverged:
        counts.append(f"{accounting.diverged} diverged")
        changes.append("lower training.learning_rate")
    if accounting.failed:
        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        with_error = [trial for trial in failed if is_point(trial) and ERROR in trial.user_attrs]
        last = max(with_error, key=lambda trial: str(trial.datetime_complete), default=None)
        error = f", the last with {last.user_attrs[ERROR]}" if last else ""
        counts.append(f"{accounting.failed} failed{error}")
        changes.append("change the settings that cause the error")
    return (
        f"study {study.study_name!r} is finished without a complete trial: {'; '.join(counts)}; "
        f"{', '.join(changes)} and search again under another --name"
    )


def _clear(checkpoints: Checkpoints) -> None:
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
    options: Options, reader: StatusReader, stop: StopRequest, display: Display, trained: c_bool
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
        for device in share_devices(options.device, options.workers)
    ]
    display.says(f"starting {options.workers} worker processes")
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes) and not stop.requested:
            display.show(reader.running())
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


def _wait(processes: Sequence[BaseProcess], stop: StopRequest) -> None:
    """Wait a moment, for a stop or for the end of all processes at the latest."""
    end = time.monotonic() + PROCESSES_SECONDS
    while time.monotonic() < end and not stop.requested:
        if not any(process.is_alive() for process in processes):
            return
        time.sleep(0.1)


def _work_and_exit(options: Options, trained: c_bool) -> None:
    leave_with(lambda: work(options, trained=trained).exit_code, BAD_INPUT)


def _display(options: Options, console: Terminal, joined: Joined, reader: StatusReader) -> Display:
    def label_of(trial: FrozenTrial) -> str:
        return label(member_of(trial.params, joined.definition))

    kind: type[Plain | Drawn | Silent] = Drawn if console.is_terminal else Plain
    if options.child:  # the process that started it shows the progress of all workers
        kind = Silent
    return kind(console, reader, label_of)


def _greet(console: Terminal, joined: Joined, device: torch.device) -> None:
    definition = joined.definition
    console.say(
        f"study {joined.study.study_name}: {joined.corpus.name}, "
        f"{len(joined.corpus.text):,} bytes; {definition.training.steps:,} steps a point, "
        f"{definition.precision}, on {device}",
    )
    if joined.news:
        console.say(joined.news)


def _time_left(found: Status, definition: Definition) -> str:
    if found.accounting.finished == found.accounting.planned:
        return "none: every point is finished"
    if definition.pruning.enabled and found.accounting.waiting:
        return "unknown (it depends on how many of the waiting points will be wanted)"
    if found.seconds_left is None:
        return "unknown (nobody works on it, or nothing is complete yet)"
    return f"about {duration_text(found.seconds_left)} at the present number of workers"
