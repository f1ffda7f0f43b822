"""Hooks in the processes that tests start, so that no outcome depends on speed.

A :class:`Gate` holds a training at a step until the test opens it. A test that needs a lease to
expire uses leases of different lengths, or moves a :class:`Clock`. Workers wait up to
:data:`HANG_TIMEOUT` where a shorter timeout could expire on a slow machine.

The hooks are passed in an environment variable. :func:`install` applies them in the process of a
command; worker processes that this command spawns import this module first and apply them too.
"""

import importlib
import json
import os
import runpy
import sys
import time
from dataclasses import dataclass
from multiprocessing import spawn
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[1]

VARIABLE = "RNN_SEARCH_TEST_HOOKS"

HANG_TIMEOUT = 600.0
"""Seconds after which a wait counts as a hang; no test depends on the value."""

TIMEOUTS = {
    "search.worker.claims": ("QUERY_TIMEOUT", "SHUTDOWN_GRACE", "NO_RESPONSE_TIMEOUT"),
    "search.worker.queue": ("SHUTDOWN_GRACE",),
}
"""Constants that limit how long a worker waits for an answer, by module."""


def make_patient(patch=setattr):
    """Extend the timeouts of this process, for slow machines."""
    for module, names in TIMEOUTS.items():
        for name in names:
            patch(importlib.import_module(module), name, HANG_TIMEOUT)


def use_one_core():
    """Let each worker train on one thread: several tests run at a time."""
    importlib.import_module("search.worker.cpu_budget").cores = lambda: 1


class Gate:
    """Gate in a folder, through which the test speaks with the processes of commands that it holds.

    Args:
        folder: the folder, which does not exist yet.
        settings: what it holds: trainings at a ``step``, after its loss is reported; a process at
            the end of a call of a ``function``, ``package.module:name`` or ``…:Class.name``; or one
            before a ``statement`` of SQL that begins so, or its ``COMMIT``. A held training checks
            claims and signals and writes checkpoints, as between two steps. One that resumes after
            the step is not held.
    """

    def __init__(self, folder: Path, **settings: object) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.hook = {"folder": str(folder), **settings}

    @property
    def held(self) -> set[int]:
        """Ids of processes that are held, or were held when they were killed."""
        return {int(path.name.removeprefix("held-")) for path in self._folder.glob("held-*")}

    def open(self) -> None:
        (self._folder / "open").touch()


class Clock:
    """Clock for the heartbeats and leases of commands, which a test can advance."""

    def __init__(self, path: Path) -> None:
        self.hook = {"path": str(path)}
        self._path = path
        self._seconds = 0.0
        self.advance(0)

    def advance(self, seconds: float) -> None:
        self._seconds += seconds
        temporary = self._path.with_suffix(".part")
        temporary.write_text(str(self._seconds))
        temporary.replace(self._path)


@dataclass(frozen=True)
class Hooks:
    """Changes to a command's processes."""

    patient: bool = True
    report: bool = True
    gate: Gate | None = None
    clock: Clock | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Environment variable that passes the hooks to a process."""
        settings = {name: getattr(value, "hook", value) for name, value in vars(self).items()}
        return {VARIABLE: json.dumps(settings)}


def install() -> None:
    """Apply the hooks of the environment to this process and the workers that it spawns."""
    settings = json.loads(os.environ.get(VARIABLE, "{}"))
    if not settings:
        return
    if settings["patient"]:
        make_patient()
    if not settings["report"]:
        importlib.import_module("reports.final_report").finalize_search = lambda *study: None
    use_one_core()
    # No test looks at the floors that a command measures.
    importlib.import_module("search.task_check")._MAX_UPDATES = 20
    if settings["clock"]:
        _replace_clock(**settings["clock"])
    if gate := settings["gate"]:
        holds = {"step": _hold_trainings, "function": _hold_calls, "statement": _hold_statements}
        (hold,) = (holds[name] for name in holds.keys() & gate.keys())
        hold(**gate)
    prepare = spawn.get_preparation_data

    def with_hooks(name):
        # Replaces the main program, which a worker process does not need.
        return prepare(name) | {"init_main_from_path": __file__}

    spawn.get_preparation_data = with_hooks


def _mark(folder: str) -> Path:
    """Return the file by which this process says that it is held."""
    return Path(folder, f"held-{os.getpid()}")


def _hold(folder: str) -> None:
    """Say that this process is held, and wait until the gate is open."""
    _mark(folder).touch()
    while not Path(folder, "open").exists():
        time.sleep(0.02)


def _hold_statements(folder: str, statement: str) -> None:
    import sqlalchemy as sa

    def before_statement(connection, cursor, executed, *others):
        connection.info["inserted"] = executed.startswith("INSERT INTO trials") or (
            connection.info.get("inserted")
        )
        if executed.startswith(statement):
            _hold(folder)

    def before_commit(connection):
        # Not that of a reader: its transaction has inserted trials.
        if statement == "COMMIT" and connection.info.get("inserted"):
            _hold(folder)

    sa.event.listen(sa.Engine, "before_cursor_execute", before_statement)
    sa.event.listen(sa.Engine, "commit", before_commit)


def _hold_trainings(folder: str, step: int) -> None:
    from rnn.training.loop import TrainLoop

    train, mark, opened = TrainLoop.train, _mark(folder), Path(folder, "open")

    def train_with_gate(run, on_step=lambda: None):
        def hold():
            on_step()
            if run.step != step or opened.exists():
                return
            mark.touch()
            # Without networks there is nothing left to hold.
            while run.configs and not opened.exists():
                time.sleep(0.02)
                on_step()
            mark.unlink()

        yield from train(run, hold)

    TrainLoop.train = train_with_gate


def _hold_calls(folder: str, function: str) -> None:
    module_name, _, path = function.partition(":")
    owner: object = importlib.import_module(module_name)
    *owners, name = path.split(".")
    for each in owners:
        owner = getattr(owner, each)
    original = getattr(owner, name)

    def call_and_hold(*args, **kwargs):
        result = original(*args, **kwargs)
        _hold(folder)
        return result

    setattr(owner, name, call_and_hold)


def _replace_clock(path: str) -> None:
    def monotonic() -> float:
        return time.monotonic() + float(Path(path).read_text())

    moved = SimpleNamespace(**vars(time) | {"monotonic": monotonic})
    importlib.import_module("search.worker.claims").time = moved


ALIASES = {"run_search.py": "run", "refine.py": "refine"}
"""Files of a clone, and the subcommand of ``rnn-search`` that each of them is."""


def run_program(command: str = "", *arguments: str) -> int:
    """Run ``rnn-search COMMAND …`` in this process; return its exit code."""
    if command.endswith(".py") and command not in ALIASES:  # a user's own script
        sys.argv = [command, *arguments]
        runpy.run_path(command, run_name="__main__")
        return 0
    from rnn_search.commands import main

    sys.argv = ["rnn-search", *filter(None, [ALIASES.get(command, command)]), *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0


if __name__ == "__mp_main__":  # in a spawned worker process
    install()
