"""The training step against the plain loop: alternately in one process, medians of the ratios."""

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.plain_loop import train_plainly
from rnn.architecture import Architecture, Member
from rnn.corpus import Bytes, open_corpus
from rnn.network import Population, Precision
from rnn.training import Run, Training

ROUNDS = 5

WORK = {
    "2×256, forget, state, residual, new": Architecture(
        False, True, False, True, True, "new", 2, 256
    ),
    "3×256, everything": Architecture(True, True, True, True, True, "both", 3, 256),
    "2×32, forget, state, residual, new": Architecture(
        False, True, False, True, True, "new", 2, 32
    ),
}


def measure() -> Iterator[str]:
    """Yield a line for each work and precision."""
    torch.set_num_threads(1)
    text = open_corpus("stdlib").train
    yield "training step, one thread, batch 256: times the plain loop's throughput, median (range)"
    for name, architecture in WORK.items():
        steps = 60 if architecture.state_size > 100 else 300
        settings = Training(steps, 256, 1000, steps, 0.001, 0.95, 0)
        for precision in ("fp32", "bf16"):
            ratios = [_ratio(architecture, text, settings, precision) for _ in range(ROUNDS + 1)]
            ratios = sorted(ratios[1:])  # the first warms up
            median = statistics.median(ratios)
            yield f"  {name:38} {precision}  {median:.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def _ratio(
    architecture: Architecture, text: Bytes, settings: Training, precision: Precision
) -> float:
    def ours() -> None:
        population = Population([Member(architecture)], 0, precision)
        for _ in Run(population, text, settings).train():
            pass

    plain = _seconds(lambda: train_plainly(architecture, text, settings))
    return plain / _seconds(ours)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
