"""What tests change in the processes that they start, so that no outcome depends on speed.

A test that needs a training to be under way does not hope for one that lasts long enough: a
:class:`Gate` holds it at a step. A test that needs a lease to expire while others must not gives
them leases of different lengths, or moves a :class:`Clock`. A worker that a test does not want to
see run out of patience with a slow machine waits for :data:`HANG_TIMEOUT` wherever it would
give up earlier.

The hooks are passed in one environment variable. :func:`install` reads it in the process of a
command; worker processes that this command spawns import this module first and install them too.
``python tests/hooks.py run_search.py`` runs a program so in an interpreter of its own.
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
"""Bounds a hang; no test is decided by it."""

PATIENCE = {
    "search.worker.claims": ("QUERY_TIMEOUT",),
    "search.status": ("READ_TIMEOUT",),
    "search.worker.storage_client": ("SHUTDOWN_GRACE", "NO_RESPONSE_TIMEOUT"),
    "search.worker.worker": ("SHUTDOWN_GRACE",),
}
"""How long a worker waits for an answer, by module."""


def make_patient(patch=setattr):
    """Have workers of this process wait for answers, however slow the machine is."""
    for module, names in PATIENCE.items():
        for name in names:
            patch(importlib.import_module(module), name, HANG_TIMEOUT)


class Gate:
    """Holds the trainings of commands at a step until it is opened.

    A held training looks at its claims and at signals, and writes checkpoints, as between two
    steps. One that resumes after the step is not held.

    Args:
        folder: an empty one, for the gate alone.
        step: at which to hold; the log point of this step is reported before.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True)
        self.hook = {"folder": str(folder), "step": step}
        self._folder = folder

    @property
    def held(self) -> set[int]:
        """The processes whose training is held now, or was when they were killed."""
        return {int(path.name.removeprefix("held-")) for path in self._folder.glob("held-*")}

    def open(self) -> None:
        """Let all trainings continue."""
        (self._folder / "open").touch()


class Clock:
    """Moves the clock by which commands renew and judge leases.

    Args:
        path: of a file that is not there yet.
    """

    def __init__(self, path: Path) -> None:
        self.hook = str(path)
        self._path = path
        self._seconds = 0.0
        self.advance(0)

    def advance(self, seconds: float) -> None:
        """Let so many seconds have passed."""
        self._seconds += seconds
        part = self._path.with_suffix(".part")
        part.write_text(str(self._seconds))
        part.replace(self._path)


@dataclass(frozen=True)
class Hooks:
    """What is changed in a command's processes.

    Attributes:
        patient: wait for the storage instead of giving up after a few seconds.
        report: write the report when the search ends, and keep the dashboard's note up to date.
        gate: holds trainings.
        clock: by which leases are renewed and judged.
    """

    patient: bool = True
    report: bool = True
    gate: Gate | None = None
    clock: Clock | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The environment variable that passes them on."""
        stated = {
            "patient": self.patient,
            "report": self.report,
            "gate": self.gate and self.gate.hook,
            "clock": self.clock and self.clock.hook,
        }
        return {VARIABLE: json.dumps(stated)}


def install() -> None:
    """Change this process as the environment says, and the workers that it will spawn."""
    stated = json.loads(os.environ.get(VARIABLE, "{}"))
    if not stated:
        return
    if stated["patient"]:
        make_patient()
    if not stated["report"]:
        _leave_reports_out()
    if stated["gate"]:
        _hold_trainings(Path(stated["gate"]["folder"]), stated["gate"]["step"])
    if stated["clock"]:
        _move_clock(Path(stated["clock"]))
    prepare = spawn.get_preparation_data

    def with_hooks(name):
        # In place of the program, of which a worker process needs nothing.
        return prepare(name) | {"init_main_from_path": __file__}

    spawn.get_preparation_data = with_hooks


def _leave_reports_out() -> None:
    import reports.dashboard.view

    reports.dashboard.view.DashboardView.finalize = lambda self, *study: None


def _hold_trainings(folder: Path, step: int) -> None:
    from rnn.training.loop import TrainLoop

    train, mark = TrainLoop.train, folder / f"held-{os.getpid()}"

    def train_with_gate(run, on_step=lambda: None):
        def hold():
            on_step()
            if run.step != step or (folder / "open").exists():
                return
            mark.touch()
            # Dropped trainings leave: nothing is left to hold.
            while run.configs and not (folder / "open").exists():
                time.sleep(0.02)
                on_step()
            mark.unlink()

        yield from train(run, hold)

    TrainLoop.train = train_with_gate


def _move_clock(path: Path) -> None:
    def monotonic() -> float:
        return time.monotonic() + float(path.read_text())

    moved = SimpleNamespace(**vars(time) | {"monotonic": monotonic})
    for name in ("search.worker.claims", "search.worker.storage_client"):
        importlib.import_module(name).time = moved


def main() -> None:
    """Run a program of the project, as ``python tests/hooks.py run_search.py quick``."""
    sys.path.insert(0, str(ROOT))
    sys.argv = sys.argv[1:]
    install()
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")


if __name__ == "__mp_main__":  # in a worker process, before it works
    install()
elif __name__ == "__main__":
    main()
