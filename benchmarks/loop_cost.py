"""Cost of a user's training loop: time that ``log`` and ``save`` take at 20 steps a second."""

import os
import tempfile
import time
from collections.abc import Iterator

import rnn_search
from rnn_search import Trial

STORED = 2000
"""Log points that the trial has before the measurement."""

RATE = 20
"""Steps a second; each logs two values and saves."""

SECONDS = 20


def measure() -> Iterator[str]:
    """Yield a line for each storage: SQLite, and that of ``RNN_SEARCH_STORAGE`` if it is set."""
    yield f"{RATE} calls of log and save a second after {STORED:,} log points, share of the time"
    with tempfile.TemporaryDirectory() as folder:
        urls = {f"sqlite:///{folder}/studies.db", os.environ.get("RNN_SEARCH_STORAGE", "")} - {""}
        for url in sorted(urls):
            calls, processor = _measure_study(url)
            name = url.partition(":")[0]
            yield f"  {name:20} in the calls {calls:.2%}, processor of all threads {processor:.2%}"


def _measure_study(url: str) -> tuple[float, float]:
    settings = {"loop": {"metric": "loss", "steps": 10**6}, "space": {"width": [1]}}
    study = rnn_search.create_study(settings, name="loop-cost", storage=url)
    for trial in study.claim():
        with trial:
            for step in range(1, STORED + 1):
                _log(trial, step)
            time.sleep(3)  # until they are written
            shares = _measure_steps(trial)
            trial.finish(1)
    rnn_search.delete_study("loop-cost", storage=url)
    return shares


def _log(trial: Trial, step: int) -> None:
    trial.log(step, loss=1 / step, accuracy=1 - 1 / step)
    trial.save(step, b"state")


def _measure_steps(trial: Trial) -> tuple[float, float]:
    """Return the share of the time in the calls, and that of the processor's time."""
    in_calls = 0.0
    started = time.perf_counter()
    used = time.process_time()
    for number in range(1, RATE * SECONDS + 1):
        before = time.perf_counter()
        _log(trial, STORED + number)
        after = time.perf_counter()
        in_calls += after - before
        time.sleep(max(0.0, started + number / RATE - after))
    elapsed = time.perf_counter() - started
    return in_calls / elapsed, (time.process_time() - used) / elapsed
