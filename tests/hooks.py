"""Hooks in the processes that tests start, so that no outcome depends on speed.

A :class:`Gate` holds a training at a step until the test opens it. A test that needs a lease to
expire uses leases of different lengths, or moves a :class:`Clock`. Workers wait up to
:data:`HANG_TIMEOUT` where a shorter timeout could expire on a slow machine.

The hooks are passed in an environment variable. :func:`install` applies them in the process of a
command; worker processes that this command spawns import this module first and apply them too.
``python tests/hooks.py run_search.py`` runs a program with hooks in a separate interpreter.
"""

import importlib
import json
import os
import runpy
import signal
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
    "search.worker.claims": ("QUERY_TIMEOUT",),
    "search.worker.pruning_decisions": ("DECISION_WAIT",),
    "search.status": ("READ_TIMEOUT",),
    "search.worker.storage_client": ("SHUTDOWN_GRACE", "NO_RESPONSE_TIMEOUT"),
    "search.worker.worker": ("SHUTDOWN_GRACE",),
}
"""Constants that limit how long a worker waits for an answer, by module."""


def make_patient(patch=setattr):
    """Extend the timeouts of this process, for slow machines."""
    for module, names in TIMEOUTS.items():
        for name in names:
            patch(importlib.import_module(module), name, HANG_TIMEOUT)


class FolderGate:
    """Gate in a folder, through which its processes and the test speak with each other.

    Args:
        folder: new folder for the gate.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder

    @property
    def held(self) -> set[int]:
        """Ids of processes that are held, or were held when they were killed."""
        return {int(path.name.removeprefix("held-")) for path in self._folder.glob("held-*")}

    def open(self) -> None:
        """Let all processes continue."""
        (self._folder / "open").touch()


class Gate(FolderGate):
    """Gate that holds the trainings of commands at a step until it is opened.

    A held training checks claims and signals and writes checkpoints, as between two steps. A
    training that resumes after the step is not held.

    Args:
        folder: new folder for the gate.
        step: step at which to hold, after its loss is reported.
    """

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder)
        self.hook = {"folder": str(folder), "step": step}


class Clock:
    """Clock for the heartbeats and leases of commands, which a test can advance.

    Args:
        path: file that does not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.hook = str(path)
        self._path = path
        self._seconds = 0.0
        self.advance(0)

    def advance(self, seconds: float) -> None:
        """Advance the clock by a number of seconds."""
        self._seconds += seconds
        temporary = self._path.with_suffix(".part")
        temporary.write_text(str(self._seconds))
        temporary.replace(self._path)


class DecisionGate(FolderGate):
    """Gate that holds the pruning decisions at rungs until it is opened.

    Training does not wait for a decision that is held, and waits for all others.

    Args:
        folder: new folder for the gate.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.hook = str(folder)


class CallGate(FolderGate):
    """Gate that holds a process after a call of a function, before it returns, until it is opened.

    Args:
        folder: new folder for the gate.
        function: the function, as ``package.module:name`` or ``package.module:Class.name``.
    """

    def __init__(self, folder: Path, function: str) -> None:
        super().__init__(folder)
        self.hook = {"folder": str(folder), "function": function}


class StatementGate(FolderGate):
    """Gate that holds a process before a statement of SQL until it is opened.

    Args:
        folder: new folder for the gate.
        statement: beginning of the statement, or ``COMMIT``.
    """

    def __init__(self, folder: Path, statement: str) -> None:
        super().__init__(folder)
        self.hook = {"folder": str(folder), "statement": statement}


@dataclass(frozen=True)
class Hooks:
    """Changes to a command's processes.

    Attributes:
        patient: whether to extend the timeouts of the storage.
        report: whether a search writes its report and publishes to the dashboard at its end.
        hold_report: whether a process that writes a report never ends by itself.
        half_report: whether one has written half of the page by then.
        gate: gate that holds trainings.
        clock: clock for heartbeats and leases.
        decisions: gate that holds pruning decisions.
        calls: gate that holds processes after a call.
        statements: gate that holds processes before a statement of SQL.
    """

    patient: bool = True
    report: bool = True
    hold_report: bool = False
    half_report: bool = False
    gate: Gate | None = None
    clock: Clock | None = None
    decisions: DecisionGate | None = None
    calls: CallGate | None = None
    statements: StatementGate | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Environment variable that passes the hooks to a process."""
        settings = {
            "patient": self.patient,
            "report": self.report,
            "hold_report": self.hold_report,
            "half_report": self.half_report,
            "gate": self.gate and self.gate.hook,
            "clock": self.clock and self.clock.hook,
            "decisions": self.decisions and self.decisions.hook,
            "calls": self.calls and self.calls.hook,
            "statements": self.statements and self.statements.hook,
        }
        return {VARIABLE: json.dumps(settings)}


def install() -> None:
    """Apply the hooks of the environment to this process and the workers that it spawns."""
    settings = json.loads(os.environ.get(VARIABLE, "{}"))
    if not settings:
        return
    if settings["patient"]:
        make_patient()
    if not settings["report"]:
        _disable_reports()
    if settings["hold_report"]:
        _hold_reports()
    if settings["half_report"]:
        _hold_half_reports()
    if settings["gate"]:
        _hold_trainings(Path(settings["gate"]["folder"]), settings["gate"]["step"])
    if settings["clock"]:
        _replace_clock(Path(settings["clock"]))
    if settings["decisions"]:
        _hold_decisions(Path(settings["decisions"]))
    if settings["calls"]:
        _hold_calls(Path(settings["calls"]["folder"]), settings["calls"]["function"])
    if settings["statements"]:
        _hold_statements(
            Path(settings["statements"]["folder"]), settings["statements"]["statement"]
        )
    prepare = spawn.get_preparation_data

    def with_hooks(name):
        # Replaces the main program, which a worker process does not need.
        return prepare(name) | {"init_main_from_path": __file__}

    spawn.get_preparation_data = with_hooks


def _disable_reports() -> None:
    import reports.dashboard.launcher

    reports.dashboard.launcher.finalize_search = lambda *study: None


def _hold_reports() -> None:
    import reports.page.page

    reports.page.page.write_page = lambda *results: signal.pause()


def _hold_half_reports() -> None:
    import reports.page.page

    write = reports.page.page.atomic_write

    def write_half(path, content):
        def half():
            pieces = list(content)
            yield from pieces[: len(pieces) // 2]
            signal.pause()

        write(path, half())

    reports.page.page.atomic_write = write_half


def _hold_statements(folder: Path, beginning: str) -> None:
    import sqlalchemy as sa

    mark = folder / f"held-{os.getpid()}"

    def hold():
        mark.touch()
        while not (folder / "open").exists():
            time.sleep(0.02)

    def before_statement(connection, cursor, statement, *others):
        if statement.startswith(beginning):
            hold()

    if beginning == "COMMIT":
        # Not that of a reader: its transaction has inserted trials.
        sa.event.listen(sa.Engine, "before_cursor_execute", _note_insert)
        sa.event.listen(
            sa.Engine, "commit", lambda connection: connection.info.get("inserted") and hold()
        )
    else:
        sa.event.listen(sa.Engine, "before_cursor_execute", before_statement)


def _note_insert(connection, cursor, statement, *others) -> None:
    if statement.startswith("INSERT INTO trials"):
        connection.info["inserted"] = True


def _hold_trainings(folder: Path, step: int) -> None:
    from rnn.training.loop import TrainLoop

    train, mark = TrainLoop.train, folder / f"held-{os.getpid()}"

    def train_with_gate(run, on_step=lambda: None):
        def hold():
            on_step()
            if run.step != step or (folder / "open").exists():
                return
            mark.touch()
            # Without networks there is nothing left to hold.
            while run.configs and not (folder / "open").exists():
                time.sleep(0.02)
                on_step()
            mark.unlink()

        yield from train(run, hold)

    TrainLoop.train = train_with_gate


def _hold_decisions(folder: Path) -> None:
    module = importlib.import_module("search.worker.pruning_decisions")
    scheduler, decisions = module.PauseResumeScheduler, module.PruningDecisions
    decide, start, mark = scheduler.decide, decisions._start, folder / f"held-{os.getpid()}"
    module.DECISION_WAIT = 0.0

    def decide_with_gate(*args):
        mark.touch()
        while not (folder / "open").exists():
            time.sleep(0.02)
        module.DECISION_WAIT = HANG_TIMEOUT
        return decide(*args)

    def start_and_unmark(self, compute):
        answer = start(self, compute)
        answer.add_done_callback(lambda _: mark.unlink(missing_ok=True))
        return answer

    scheduler.decide, decisions._start = decide_with_gate, start_and_unmark


def _hold_calls(folder: Path, function: str) -> None:
    module_name, _, path = function.partition(":")
    owner: object = importlib.import_module(module_name)
    *owners, name = path.split(".")
    for each in owners:
        owner = getattr(owner, each)
    original = getattr(owner, name)

    def call_and_hold(*args, **kwargs):
        result = original(*args, **kwargs)
        (folder / f"held-{os.getpid()}").touch()
        while not (folder / "open").exists():
            time.sleep(0.02)
        return result

    setattr(owner, name, call_and_hold)


def _replace_clock(path: Path) -> None:
    def monotonic() -> float:
        return time.monotonic() + float(path.read_text())

    moved = SimpleNamespace(**vars(time) | {"monotonic": monotonic})
    for name in ("search.worker.claim", "search.worker.claims", "search.worker.storage_client"):
        importlib.import_module(name).time = moved


def main() -> None:
    """Run a program of the project with hooks."""
    sys.path.insert(0, str(ROOT))
    sys.argv = sys.argv[1:]
    install()
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")


if __name__ == "__mp_main__":  # in a spawned worker process
    install()
elif __name__ == "__main__":
    main()
