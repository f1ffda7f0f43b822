"""Table of the GPU's benchmark, and its progress on stderr."""

import sys
import threading
import time
from typing import Self

from benchmarks.gpu_training import Measurement

LIMIT_SECONDS = 440
"""Time after which nothing more is begun: the rest of the eight minutes is for what has begun."""

COLUMNS = (
    f"{'networks':26} {'':5} {'K':>3} {'steps/s':>8} {'K·steps/s':>9} {'× plain':>8} {'limit':>6} "
    f"{'launches':>12} {'MiB':>7} {'record':>7} {'remove':>7}  check"
)

EXPLANATION = """\
  steps/s: steps a second of all K networks together; K·steps/s: of each, added; × plain: K·steps/s
  over the steps a second of the plain loop (fp32, one network after another); limit: time of the
  step's matrix products alone over the time of the step; launches: of a step that is run, and
  recorded as a graph; MiB: largest memory in use; record: seconds to record a step; remove: seconds
  to remove half of the networks from a recorded stack and to record the rest; check: whether two
  trainings are equal bit for bit, recorded and run steps too, and the networks that remain after a
  removal train as if nothing had happened"""


class Progress:
    """Says on stderr once a second what is measured."""

    def __init__(self) -> None:
        self.what = "starting"
        self.started = time.perf_counter()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._report, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def is_over(self) -> bool:
        """Whether no time is left to begin anything."""
        return time.perf_counter() - self.started > LIMIT_SECONDS

    def _report(self) -> None:
        while not self._end.wait(1):
            elapsed = time.perf_counter() - self.started
            print(f"{elapsed:4.0f} s of at most 480: {self.what}", file=sys.stderr, flush=True)


def format_row(measured: Measurement, count: int, plain: float | None, limit: float) -> str:
    """Format what was measured of a training."""

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    speed = measured.steps_per_second
    relative = None if plain is None else count * speed / plain
    mebibytes = None if measured.peak_bytes is None else measured.peak_bytes / 2**20
    launches = number(measured.run_launches, ",")
    if measured.launches is not None:
        launches += f" → {measured.launches}"
    check = "differs: " + ", ".join(measured.differences) if measured.differences else "ok"
    return (
        f"{speed:8,.0f} {count * speed:9,.0f} {number(relative, '8.2f'):>8} {limit:6.2f} "
        f"{launches:>12} {number(mebibytes, '7,.0f'):>7} "
        f"{number(measured.record_seconds, '7.2f'):>7} "
        f"{number(measured.removal_seconds, '7.2f'):>7}  {check}"
    )
