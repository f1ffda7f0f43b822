"""Duration and size of a report about 432 trials of 200 log points each."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import optuna

from benchmarks.published_runs import VARIABLE, load_published, published_file
from reports.formatting import label_change
from reports.page.page import write_page
from reports.stats.effects import FactorialTable
from reports.study_reader import read_results
from reports.trial_table import find_traits
from studies.storage.open import read_storage
from tests.simulations.large_study import LOG_POINTS, create_large_study

_T = TypeVar("_T")


def measure() -> Iterator[str]:
    """Yield a line for each part of the work, then the effects in the published results."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/studies.db"
        create_large_study(url, 432, progress=1, name="stage-one").storage.close()
        storage = read_storage(url)
        results, reading = _timed(lambda: read_results(storage, "stage-one"))
        report, writing = _timed(lambda: write_page([results], Path(folder) / "report.html"))
        # By the address: with our storage, Optuna's study would read as fast as we do.
        study = optuna.load_study(study_name="stage-one", storage=url)
        optuna_trials, optuna_reading = _timed(lambda: study.get_trials(deepcopy=False))
        size = report.path.stat().st_size / 1e6
        yield f"report of {len(optuna_trials)} trials × {LOG_POINTS} log points, SQLite"
        ratio = optuna_reading / reading
        yield f"  reading {reading:.2f} s; through Optuna's objects {ratio:.1f} times as long"
        yield f"  computing and writing {writing:.1f} s"
        yield f"  total {reading + writing:.1f} s (limit 10), {size:.1f} MB (limit 3.5)"
    yield from _measure_published()


def _measure_published() -> Iterator[str]:
    path = published_file()
    if path is None:
        yield f"  published results: not measured: set {VARIABLE} to their file"
        return
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/studies.db"
        load_published(path, url)
        results = read_results(read_storage(url), "published", with_curves=False)
    yield "effects in the published results: mean in nats, 95% interval, lower in, pairs"
    axes = results.axes
    table = FactorialTable.from_frame(results.table, axes, traits=find_traits(axes))
    for effect in table.compute_effects():
        yield (
            f"  {label_change(effect.contrast):20} {effect.mean:+.3f}  [{effect.low:+.3f}, "
            f"{effect.high:+.3f}]  {effect.improved_count / effect.pairs:4.0%}  {effect.pairs}"
        )


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start
