"""Duration of claims, by the size of the grid, and of a worker's other writes."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from studies.cli import STORAGE_VARIABLE
from studies.storage.changes import create_study
from studies.storage.leases import PendingWrite
from studies.storage.open import load_study, open_storage
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import StoredTrial

SIZES = (432, 4320)
"""Numbers of grid trials: stage one, and ten times as many."""

CLAIMS = 100
ASKS = 5


def measure() -> Iterator[str]:
    """Yield a line for each operation, on SQLite and on the server that the environment names."""
    yield f"claiming: milliseconds, median of {CLAIMS} (study.ask: of {ASKS}), alternating"
    with tempfile.TemporaryDirectory() as folder:
        yield from _measure("SQLite", f"sqlite:///{folder}/studies.db")
    url = os.environ.get(STORAGE_VARIABLE, "")
    if url.startswith("postgresql"):
        yield from _measure("PostgreSQL", url)
    else:
        yield f"  PostgreSQL: not measured: set {STORAGE_VARIABLE} to an empty database"


def _measure(database: str, url: str) -> Iterator[str]:
    storage = open_storage(url)
    names = {size: f"benchmark-{size}-{uuid4().hex}" for size in SIZES}
    studies = {size: _create(storage, names[size], size) for size in SIZES}
    try:
        claims: dict[int, list[float]] = {size: [] for size in SIZES}
        others: dict[str, list[float]] = {}
        for count in range(CLAIMS):
            for size, study in studies.items():
                start = time.perf_counter()
                trial_id = storage.claim(study._study_id, "me")
                claims[size].append(time.perf_counter() - start)
                assert trial_id is not None
                for name, write in _writes(storage, trial_id, count).items():
                    start = time.perf_counter()
                    write()
                    others.setdefault(name, []).append(time.perf_counter() - start)
        asks = {size: [_time(studies[size].ask) for _ in range(ASKS)] for size in SIZES}
        for size in SIZES:
            yield f"  {database}: claim, {size:,} trials  {_median(claims[size]):8.2f}"
        ratios = [b / a for a, b in zip(claims[SIZES[0]], claims[SIZES[1]], strict=True)]
        yield f"  {database}: ratio of the two  {statistics.median(ratios):8.2f}"
        for size in SIZES:
            yield f"  {database}: study.ask, {size:,} trials  {_median(asks[size]):8.2f}"
        for name, durations in others.items():
            yield f"  {database}: {name}  {_median(durations):8.2f}"
    finally:
        for name in names.values():
            optuna.delete_study(study_name=name, storage=storage)


def _create(storage: LeasedRDBStorage, name: str, size: int) -> optuna.Study:
    digits = CategoricalDistribution(tuple(range(10)))
    distributions = dict.fromkeys(("thousands", "hundreds", "tens", "ones"), digits)
    trials = [
        StoredTrial(dict(zip(distributions, map(int, f"{number:04}"), strict=True)))
        for number in range(size)
    ]
    create_study(storage, name, "loss", {}, distributions, trials)
    return load_study(storage, name)


def _writes(storage: LeasedRDBStorage, trial_id: int, step: int) -> dict[str, Callable[[], object]]:
    return {
        "report": lambda: storage.flush([PendingWrite(trial_id, "me", {step: 1.0})]),
        "heartbeat": lambda: storage.flush([PendingWrite(trial_id, "me", heartbeat=True)]),
        "finish": lambda: storage.finish(trial_id, "me", TrialState.COMPLETE, 1.0, {"host": "h"}),
    }


def _time(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _median(seconds: list[float]) -> float:
    return 1000 * statistics.median(seconds)
