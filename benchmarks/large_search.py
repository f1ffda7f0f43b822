"""Processor time of what a worker does in studies of 432 and of 10,080 trials of 200 log points."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import TypeVar

from optuna.trial import TrialState

from benchmarks.large_study import LOG_POINTS, NAME, create_large_study, grid_overrides
from benchmarks.simulated_search import LOG_EVERY
from search.new_study import StudyOptions
from search.pruning.pause_resume import PauseResumeScheduler
from search.session import RunOptions, open_session
from search.status import read_running_trials
from search.study import StudyHandle, create_or_join
from search.worker.shutdown import ShutdownSignal
from studies.loader import load_config_file
from studies.storage.counts import top_trials

SIZES = (432, 10_080)

REPEATS = 5

Seconds = dict[str, list[float]]
"""Processor seconds by operation."""

_T = TypeVar("_T")


def measure(sizes: tuple[int, ...] = SIZES) -> Iterator[str]:
    """Yield a line for each operation, with a column for each size."""
    yield f"processor seconds in studies of N trials × {LOG_POINTS} log points, SQLite, median"
    found: list[Seconds] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            seconds = measure_search(f"sqlite:///{folder}/whole.db", size)
            found.append(seconds | measure_pruning(f"sqlite:///{folder}/pruned.db", size))
    yield f"  {'N':40}" + "".join(f"{size:>10,}" for size in sizes)
    for name in found[0]:
        medians = [statistics.median(seconds[name]) for seconds in found]
        yield f"  {name:40}" + "".join(f"{median:10.4f}" for median in medians)


def measure_search(url: str, trials: int) -> Seconds:
    """Measure a worker of a search without pruning, three quarters of which are done."""
    seconds: Seconds = {}
    with closing(create_large_study(url, trials).storage) as storage:
        handle = _join(url)
        study_id = handle.study_id
        _time(seconds, "join the study", lambda: _join(url).storage.close(), 3)
        claim = partial(storage.claim, study_id, "me/1")
        curve = dict.fromkeys(range(LOG_EVERY, 11 * LOG_EVERY, LOG_EVERY), 2.0)
        for _ in range(REPEATS):
            trial_id = _time(seconds, "claim", claim)
            assert trial_id is not None
            _time(seconds, "report", partial(storage.report, trial_id, "me/1", curve))
            end = trial_id, "me/1", TrialState.COMPLETE, 2.0, {"seconds": 60.0}
            _time(seconds, "finish", partial(storage.finish, *end))
        _time(seconds, "rank the best ten", lambda: top_trials(storage, study_id, 10), REPEATS)
        read = handle.study, storage, handle.config
        _time(seconds, "read the running trials", lambda: read_running_trials(*read), REPEATS)
        handle.storage.close()
        file = load_config_file("stage-one", grid_overrides(trials))
        options = StudyOptions("new", confirmed=True)
        create = partial(create_or_join, file, url, options)
        _time(seconds, "create the study", create).storage.close()
    return seconds


def measure_pruning(url: str, trials: int) -> Seconds:
    """Measure the decisions of a worker in the middle of a search with pruning."""
    seconds: Seconds = {}
    with closing(create_large_study(url, trials, pruning=True).storage) as storage:
        handle = _join(url)
        study_id, end = handle.study_id, LOG_POINTS * LOG_EVERY
        scheduler = PauseResumeScheduler(storage, study_id, handle.config)

        def decide(trial_id: int) -> None:
            scheduler.decide(scheduler.read(), [trial_id])

        def choose() -> None:
            scheduler.select_to_resume(scheduler.read(), 0.5)

        _time(seconds, "first choice of a paused trial", choose)
        for _ in range(REPEATS):
            trial_id = next(
                trial.trial_id
                for trial in scheduler.read().trials
                if trial.is_paused and math.isnan(trial.losses[2])
            )
            storage.claim(study_id, "me/1", paused_ids=[trial_id])
            curve = dict.fromkeys(range(LOG_EVERY, end + 1, LOG_EVERY), 2.2)
            storage.report(trial_id, "me/1", {step: curve[step] for step in curve if step <= 1600})
            _time(seconds, "decide about a trial at a rung", partial(decide, trial_id))
            storage.pause(trial_id, "me/1", {})
            _time(seconds, "choose the next, nothing else new", choose)
            storage.claim(study_id, "me/2", paused_ids=[trial_id])
            storage.finish(trial_id, "me/2", TrialState.COMPLETE, 2.2, {}, curve)
            _time(seconds, "choose the next after one is complete", choose)
        handle.storage.close()
    return seconds


def _join(url: str) -> StudyHandle:
    """Open a study as a worker does that joins it."""
    return open_session(RunOptions(NAME, url), ShutdownSignal(), print).handle


def _time(seconds: Seconds, name: str, operation: Callable[[], _T], times: int = 1) -> _T:
    """Run an operation some times; note its processor time and return its last result."""
    for _ in range(times):
        start = time.process_time()
        result = operation()
        seconds.setdefault(name, []).append(time.process_time() - start)
    return result
