"""Cost of working on, watching and reporting a study of 10,080 trials, against one of 432.

Each measurement is a process of its own, so that its peak memory is its own. Seconds are those of
the processor, without imports; they depend little on what else the machine does.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.trial import TrialState

from search.create_or_join import create_or_join
from search.pruning.scheduler import PauseResumeScheduler
from search.run_options import RunOptions
from search.status import read_status
from studies.storage.leases import PendingWrite
from studies.storage.open import load_study, open_storage, read_storage, read_study_record
from tests.simulations.large_study import LOG_POINTS, NAME, create_large_study, grid_overrides

SIZES = (432, 10_080)
"""Numbers of grid trials."""

OPERATIONS = 100
"""Claims, reports and finished trials, of which the mean is measured."""

DECISIONS = 5
"""Pruning decisions, of which the mean is measured, after the first one."""


class Database(NamedTuple):
    """A database with one study.

    Attributes:
        trials: number of grid trials.
        kind: ``finished``, ``running``, ``pruned``, or ``new`` without a study.
    """

    folder: Path
    trials: int
    kind: str

    @property
    def url(self) -> str:
        """URL of the storage."""
        return f"sqlite:///{self.folder}/{self.kind}-{self.trials}.db"

    @property
    def corpus(self) -> str:
        """Path of the corpus of all studies."""
        return str(self.folder / "corpus.txt")


def measure() -> Iterator[str]:
    """Yield a line for each operation: its cost at both sizes, and their ratio."""
    yield (
        f"studies of {SIZES[0]:,} and {SIZES[1]:,} trials of {LOG_POINTS} log points, SQLite: "
        "processor seconds, peak MB of the process, ratio of the seconds"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus.txt").write_text("It was a bright cold day in April. " * 60_000)
        for trials in SIZES:
            for kind in ("finished", "running", "pruned"):
                _run("create-study", Database(folder, trials, kind))
        for label, (kind, _) in MEASUREMENTS.items():
            small, large = (_run(label, Database(folder, trials, kind)) for trials in SIZES)
            ratio = large["seconds"] / max(small["seconds"], 1e-9)
            figures = "  ".join(
                f"{e['seconds']:9.4f} s {e['peak']:5.0f} MB" for e in (small, large)
            )
            sizes = ", ".join(f"{cost['size']:.1f}" for cost in (small, large) if cost["size"])
            yield f"  {label:38} {figures} {ratio:7.1f}{f'  {sizes} MB of HTML' if sizes else ''}"


def _run(label: str, database: Database) -> dict[str, float]:
    """Measure in another process; return ``seconds``, ``peak`` and ``size``."""
    command = [sys.executable, "-m", "benchmarks.scale", label, *map(str, database)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _create_study(database: Database) -> Iterator[None]:
    progress = 1 if database.kind == "finished" else 0.75
    is_pruned = database.kind == "pruned"
    yield
    create_large_study(
        database.url,
        database.trials,
        pruning=is_pruned,
        progress=progress,
        corpus=database.corpus,
    ).storage.close()


def _create(database: Database) -> Iterator[None]:
    overrides = grid_overrides(database.trials)
    yield
    _open_study("stage-one", overrides, database, NAME)


def _derive(study: str, name: str, database: Database) -> Iterator[None]:
    yield
    _open_study(study, [f'refinement.source="{NAME}"'], database, name)


def _open_study(study: str, overrides: Sequence[str], database: Database, name: str) -> None:
    options = RunOptions(
        study=study,
        storage=database.url,
        name=name,
        corpus=database.corpus,
        overrides=tuple(overrides),
        yes=True,
    )
    create_or_join(options).storage.close()


def _claim(database: Database) -> Iterator[None]:
    storage = open_storage(database.url)
    study_id = load_study(storage, NAME)._study_id
    yield
    for _ in range(OPERATIONS):
        assert storage.claim(study_id, "benchmark") is not None


def _report(database: Database) -> Iterator[None]:
    storage = open_storage(database.url)
    trial_id = storage.claim(load_study(storage, NAME)._study_id, "benchmark")
    assert trial_id is not None
    yield
    for step in range(OPERATIONS):
        storage.flush([PendingWrite(trial_id, "benchmark", {step: 2.0})])


def _finish(database: Database) -> Iterator[None]:
    storage = open_storage(database.url)
    study_id = load_study(storage, NAME)._study_id
    # A few of the smaller study's are left waiting for the other measurements.
    claimed = [storage.claim(study_id, "benchmark") for _ in range(OPERATIONS // 10)]
    yield
    for trial_id in claimed:
        assert trial_id is not None
        storage.finish(trial_id, "benchmark", TrialState.COMPLETE, 2.0, {"host": "host"})


def _show_status(database: Database) -> Iterator[None]:
    storage = read_storage(database.url)
    study = load_study(storage, NAME)
    yield
    read_status(study, storage, read_study_record(study).config)


def _decide_first(database: Database) -> Iterator[None]:
    decide = _prepare_decision(database)
    yield
    decide()


def _decide(database: Database) -> Iterator[None]:
    decide = _prepare_decision(database)
    decide()
    yield
    for _ in range(DECISIONS):
        decide()


def _prepare_decision(database: Database) -> Callable[[], None]:
    storage = open_storage(database.url)
    study = load_study(storage, NAME)
    config = read_study_record(study).config
    scheduler = PauseResumeScheduler(storage, study._study_id, config)

    def decide() -> None:
        progress = scheduler.read()
        running = [trial.trial_id for trial in progress.trials if trial.state is TrialState.RUNNING]
        scheduler.decide(progress, running[:1])

    return decide


def _write_report(database: Database) -> Iterator[None]:
    from reports.page.page import write_report

    yield
    write_report(database.url, [NAME], database.folder / f"{database.trials}.html")


MEASUREMENTS: dict[str, tuple[str, Callable[[Database], Iterator[None]]]] = {
    "create": ("new", _create),
    "join": ("running", _create),
    f"{OPERATIONS} claims": ("new", _claim),
    f"{OPERATIONS} reports": ("running", _report),
    f"{OPERATIONS // 10} finished trials": ("running", _finish),
    "status": ("running", _show_status),
    "status of a pruned study": ("pruned", _show_status),
    "first pruning decision": ("pruned", _decide_first),
    f"{DECISIONS} pruning decisions": ("pruned", _decide),
    "derive the next study": ("finished", partial(_derive, "stage-two", "derived")),
    "derive replicates": ("finished", partial(_derive, "replicates", "replicated")),
    "report": ("running", _write_report),
}
"""Kind of database, and what is measured in it: a generator that yields once, where to begin."""


def main() -> None:
    """Measure once, as the arguments say, and print the figures."""
    label, folder, trials, kind = sys.argv[1:]
    database = Database(Path(folder), int(trials), kind)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    work = _create_study if label == "create-study" else MEASUREMENTS[label][1]
    prepared = work(database)
    next(prepared)
    start = time.process_time()
    next(prepared, None)
    seconds = time.process_time() - start
    page = database.folder / f"{database.trials}.html"
    size = page.stat().st_size / 1e6 if label == "report" else 0.0
    print(json.dumps({"seconds": seconds, "peak": _read_peak(), "size": size}))


def _read_peak() -> float:
    """Return the peak memory of this process in MB."""
    # getrusage gives that of the process which started this one, if it is larger.
    status = Path("/proc/self/status").read_text()
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak) / 1024


if __name__ == "__main__":
    main()
