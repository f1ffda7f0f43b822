"""What a claim costs, and how that grows with the grid; what a worker's other writes cost."""

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
from studies.storage.create import PlannedTrial, create_study
from studies.storage.open import load_study, open_storage
from studies.storage.storage import LeasedRDBStorage

SIZES = (432, 4320)
"""Points: of stage one, and ten times as many."""

CLAIMS = 100
ASKS = 5


def measure() -> Iterator[str]:
    """Yield a line for each operation, on SQLite and on the server of the environment, if any."""
    yield f"claiming: milliseconds, median of {CLAIMS} (study.ask: of {ASKS}) taken in turn"
    with tempfile.TemporaryDirectory() as folder:
        yield from _measure("SQLite", f"sqlite:///{folder}/studies.db")
    url = os.environ.get(STORAGE_VARIABLE, "")
    if url.startswith("postgresql"):
        yield from _measure("PostgreSQL", url)
    else:
        yield f"  PostgreSQL: not measured; name an empty database in {STORAGE_VARIABLE}"


def _measure(database: str, url: str) -> Iterator[str]:
    storage = open_storage(url)
    names = {size: f"benchmark-{size}-{uuid4().hex}" for size in SIZES}
    studies = {size: _create(storage, names[size], size) for size in SIZES}
    try:
        claims: dict[int, list[float]] = {size: [] for size in SIZES}
        others: dict[str, list[float]] = {}
        for count in range(CLAIMS):
            for size, study in studies.items():
                began = time.perf_counter()
                trial_id = storage.claim(study._study_id, "me")
                claims[size].append(time.perf_counter() - began)
                assert trial_id is not None
                for name, write in _writes(storage, trial_id, count).items():
                    began = time.perf_counter()
                    write()
                    others.setdefault(name, []).append(time.perf_counter() - began)
        asks = {size: [_seconds(studies[size].ask) for _ in range(ASKS)] for size in SIZES}
        for size in SIZES:
            yield f"  {database}: claim, {size:,} points  {_median(claims[size]):8.2f}"
        ratios = [b / a for a, b in zip(claims[SIZES[0]], claims[SIZES[1]], strict=True)]
        yield f"  {database}: ratio of the two  {statistics.median(ratios):8.2f}"
        for size in SIZES:
            yield f"  {database}: study.ask, {size:,} points  {_median(asks[size]):8.2f}"
        for name, seconds in others.items():
            yield f"  {database}: {name}  {_median(seconds):8.2f}"
    finally:
        for name in names.values():
            optuna.delete_study(study_name=name, storage=storage)


def _create(storage: LeasedRDBStorage, name: str, size: int) -> optuna.Study:
    digits = CategoricalDistribution(tuple(range(10)))
    distributions = dict.fromkeys(("thousands", "hundreds", "tens", "ones"), digits)
    points = [
        PlannedTrial(dict(zip(distributions, map(int, f"{number:04}"), strict=True)))
        for number in range(size)
    ]
    create_study(storage, name, "loss", {}, distributions, points)
    return load_study(storage, name)


def _writes(storage: LeasedRDBStorage, trial_id: int, step: int) -> dict[str, Callable[[], None]]:
    return {
        "report": lambda: storage.report(trial_id, "me", {step: 1.0}),
        "renew": lambda: storage.heartbeat(trial_id, "me"),
        "finish": lambda: storage.finish(trial_id, "me", TrialState.COMPLETE, 1.0, {"host": "h"}),
    }


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _median(seconds: list[float]) -> float:
    return 1000 * statistics.median(seconds)
