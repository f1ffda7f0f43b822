"""Small studies, and functions that run in several processes at the same time."""

import multiprocessing
import queue
import random
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import alembic.util
import numpy as np
import sqlalchemy as sa
from hooks import HANG_TIMEOUT
from optuna.distributions import CategoricalDistribution
from scipy.io import savemat

from search.create_or_join import StudyHandle, create_or_join
from search.run_options import RunOptions
from studies.attributes import StudyRecord
from studies.config import StudyConfig
from studies.records import TEXT as TEXT_TASK
from studies.records import TaskRecord, TextRecord
from studies.space import Params
from studies.storage.edits import create_study
from studies.storage.open import load_study, open_storage
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import StoredStudy, StoredTrial

# Alembic would load all of Optuna's migrations again, four times for each new storage.
alembic.util.load_python_file = cache(alembic.util.load_python_file)

ROOT = Path(__file__).parents[1]

QUICK = str(ROOT / "tests" / "quick.toml")
"""A study file for the tests: the 96 combinations of the switches at one learning rate."""

TINY_OVERRIDES = (
    "training.steps=4",
    "training.batch_size=4",
    "training.sequence_length=8",
    "training.log_every=2",
    "evaluation.windows=2",
    "evaluation.window_length=8",
    "keep_weights=1",
)
"""Overrides that make a trial take milliseconds."""

ONE_TRIAL_OVERRIDES = (
    *TINY_OVERRIDES,
    "space.state_source=['new']",
    *(f"space.{gate}_gate=[false]" for gate in ("input", "forget", "output", "state")),
    "space.residual=[true]",
    "space.state_size=[3]",
    "space.exclude=[]",  # of what the others leave out
)
"""Overrides of a study of one such trial; of several overrides of a key, the last one counts."""

TINY = tuple(f"--set={override}" for override in TINY_OVERRIDES)
ONE_TRIAL = tuple(f"--set={override}" for override in ONE_TRIAL_OVERRIDES)

NO_SYNC = "-c fsync=off"
"""Options of a PostgreSQL server that need not survive a power failure."""

# Random, so that reading from a wrong position changes results.
TEXT = bytes(random.Random(0).choices(b"abcdefgh \n", k=1800))
"""Corpus that is long enough for a tiny study."""


def copy_checkout(folder: Path) -> None:
    """Copy the project's tracked and untracked files to a folder, which may not exist yet."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


@dataclass(frozen=True)
class Together:
    """Plan to claim so many trials together, which share some parameters."""

    count: int
    names: Sequence[str] = ()
    min_keep_probability: float = 0.5

    def size(self, params: Params) -> int:
        return self.count

    def common_params(self, params: Params) -> Sequence[str]:
        return self.names


def create_small_study(storage: LeasedRDBStorage, count: int, name: str = "small") -> int:
    """Store a study of ``count`` grid trials with x = 0, 1, …; return its id."""
    trials = [StoredTrial({"x": number}) for number in range(count)]
    distributions = {"x": CategoricalDistribution(tuple(range(count)))}
    create_study(storage, StoredStudy(name, "loss", {}, distributions, trials))
    return load_study(storage, name)._study_id


def join_study(
    study: str | Path,
    url: str,
    overrides: Iterable[str] = (),
    corpus: str | Path | None = None,
    **options: Any,
) -> StudyHandle:
    """Create or join the study of a file, as ``rnn-search run`` and ``refine`` do."""
    corpus = corpus and str(corpus)
    given = {"study": str(study), "storage": url, "overrides": tuple(overrides), "corpus": corpus}
    return create_or_join(RunOptions(**given | options))


def study_attributes(config: StudyConfig, sha256: str = "ab", **others: Any) -> dict[str, Any]:
    """The attributes of a study that is stored without a search."""
    record = StudyRecord(config=with_text(config, sha256), artifact_folder="made-1", **others)
    return record.attributes()


def with_text(
    config: StudyConfig, sha256: str = "ab", size: int = 256, **learned: Any
) -> StudyConfig:
    """A config whose text is read, if it has one that is not."""
    task = config.task_record
    if task is None or task.source != TEXT_TASK or task.text is not None:
        return config
    text = TextRecord(corpus="text", sha256=sha256, length=100, split=(90, 95), **learned)
    record = TaskRecord.of_text(config.task.tokenizer, text, size)
    return config.model_copy(update={"task_record": record})


class DatabaseUse:
    """Counts the statements of a storage in an SQLite file, and the rows that they return."""

    def __init__(self, storage: LeasedRDBStorage) -> None:
        self.statements = self.rows = 0
        storage.engine.dispose()  # connections that are not observed
        sa.event.listen(storage.engine, "before_cursor_execute", self._count_statement)
        sa.event.listen(storage.engine, "connect", self._observe)

    def measure(self, operation: Callable[[], object]) -> tuple[int, int]:
        """Run an operation; return the numbers of its statements and rows."""
        before = self.statements, self.rows
        operation()
        return self.statements - before[0], self.rows - before[1]

    def _count_statement(self, *statement: object) -> None:
        self.statements += 1

    def _observe(self, connection: Any, _: object) -> None:
        def count_row(cursor: object, row: object) -> object:
            self.rows += 1
            return row

        connection.row_factory = count_row


_barrier: Any = None
"""Barrier of :func:`run_simultaneously`, set in each of its processes."""


def wait_for_others() -> None:
    """Wait until every process of :func:`run_simultaneously` has called this as often."""
    _barrier.wait(HANG_TIMEOUT)


def run_simultaneously(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
) -> list[Any]:
    """Call a function in one process per tuple of arguments, all at the same time.

    The function may call :func:`wait_for_others`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hypothesis", "psycopg", "pytest", "search.run"])
    outcomes: Any = context.Queue()
    shared = context.Barrier(len(arguments)), outcomes
    processes = [context.Process(target=_call, args=(function, a, *shared)) for a in arguments]
    for process in processes:
        process.start()
    results, deadline = [], time.monotonic() + HANG_TIMEOUT
    try:
        while len(results) < len(processes):
            try:
                failed, result = outcomes.get(timeout=1)
            except queue.Empty:
                assert time.monotonic() < deadline, "a process did not answer"
                continue
            assert not failed, result
            results.append(result)
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return results


def _call(function: Any, arguments: Any, barrier: Any, outcomes: Any) -> None:
    global _barrier
    _barrier = barrier
    try:
        wait_for_others()
        outcomes.put((False, function(*arguments)))
    except BaseException:
        outcomes.put((True, traceback.format_exc()))


def open_and_count(url: str) -> int:
    """Open a storage that may not exist yet; return the number of its studies."""
    return len(open_storage(url).get_all_studies())


def write_chorales(path: Path) -> dict[str, Any]:
    """Write piano rolls of a few steps in the form of the published file; return them by split."""
    rng = np.random.default_rng(0)
    rolls = {}
    for name, lengths in {"traindata": [5, 9, 40], "validdata": [4, 7], "testdata": [6]}.items():
        rolls[name] = np.empty((1, len(lengths)), object)
        for place, length in enumerate(lengths):
            rolls[name][0, place] = rng.integers(2, size=(length, 88), dtype=np.uint8)
    savemat(path, rolls)
    return rolls
