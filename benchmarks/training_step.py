"""The training step against the plain loop, and against the machine's limit."""

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.baseline_loop import PlainTraining
from benchmarks.matmul_limit import least_seconds, param_shapes
from rnn.config import STATE_SOURCES, GatedConfig, TrialConfig
from rnn.data.corpus import Bytes, load_corpus
from rnn.stacked.network import NetworkStack
from rnn.training.loop import TrainConfig, TrainLoop
from rnn.training.precision import Precision

ROUNDS = 5

SEQUENCE = 1000
"""Symbols of a lane, as in stage one."""

BEST = GatedConfig(False, True, False, True, True, "new", 2, 256)
EVERYTHING = GatedConfig(True, True, True, True, True, "both", 3, 256)
SMALL = [
    GatedConfig(i, f, o, s, True, source, 2, 32)
    for i, f, o, s in itertools.product((False, True), repeat=4)
    for source in STATE_SOURCES
]
"""All 48 networks of two layers and 32 states in stage one."""

WORK: dict[str, Sequence[GatedConfig]] = {
    "2×256, forget, state, residual, new": [BEST],
    "3×256, everything on": [EVERYTHING],
    "48 of 2×32, mixed switches": SMALL,
}

PLAINLY = 6
"""So many of a population's networks are trained plainly, others in each round."""


def measure() -> Iterator[str]:
    """Yield a line for each work and precision."""
    torch.set_num_threads(1)
    text = load_corpus("stdlib").train
    yield (
        "training step, one thread, batch 256: a network's throughput in times the plain loop's, "
        f"median of {ROUNDS} (range); share of the limit: what the products of the equations, each "
        "lane multiplied, would take alone, over what the step takes; in brackets of the products "
        "that are taken"
    )
    for name, architectures in WORK.items():
        for precision in ("fp32", "bf16"):
            yield f"  {name:38} {precision}  {_compared(architectures, text, precision)}"


def stacks() -> Iterator[str]:
    """Yield a line for each number of small networks trained together."""
    torch.set_num_threads(1)
    text = load_corpus("stdlib").train
    yield f"milliseconds a network's step, by how many are trained together, least of {ROUNDS}"
    large = [
        GatedConfig(i, f, o, s, r, "new", 2, 256)
        for i, f, o, s, r in itertools.product((False, True), repeat=5)
    ]
    for name, architectures in (("2×32", SMALL), ("2×256", large)):
        mixed = random.Random(0).sample(architectures, 32)
        for precision in ("fp32", "bf16"):
            found = {}
            for size in (1, 2, 4, 8, 16, 32):
                groups = [mixed[first : first + size] for first in range(0, 32, size)]
                steps = 30 if architectures is SMALL else 4
                seconds = min(
                    sum(_step_seconds(group, text, precision, steps) for group in groups)
                    for _ in range(ROUNDS if architectures is SMALL else 2)
                )
                found[size] = f"{size}: {1000 * seconds / 32:.2f}"
            yield f"  {name:6} {precision}  {', '.join(found.values())}"


def _compared(architectures: Sequence[GatedConfig], text: Bytes, precision: Precision) -> str:
    steps = 40 if architectures[0].state_size > 100 else 100
    chosen = random.Random(0)
    ratios, shares, taken_shares = [], [], []
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    asked = param_shapes(_run(architectures, text, precision, 2, static_graph=True))
    taken = param_shapes(_run(architectures, text, precision, 2))
    for round_ in range(ROUNDS + 1):
        some = chosen.sample(list(architectures), min(PLAINLY, len(architectures)))
        plain = statistics.mean(_plain_step_seconds(a, text, steps) for a in some)
        ours = _step_seconds(architectures, text, precision, steps)
        if round_:  # the first warms up
            ratios.append(plain * len(architectures) / ours)
            shares.append(least_seconds(asked, dtype, 1) / ours)
            taken_shares.append(least_seconds(taken, dtype, 1) / ours)
    return (
        f"{statistics.median(ratios):.2f}×  ({min(ratios):.2f} to {max(ratios):.2f})  "
        f"{statistics.median(shares):.2f} [{statistics.median(taken_shares):.2f}] of the limit"
    )


def _settings(steps: int) -> TrainConfig:
    return TrainConfig(steps, 256, SEQUENCE, steps, 0.001, 0.95, 0)


def _run(
    architectures: Sequence[GatedConfig],
    text: Bytes,
    precision: Precision,
    steps: int,
    static_graph: bool | None = None,
) -> TrainLoop:
    lockstep = NetworkStack(
        [TrialConfig(a) for a in architectures], 0, precision, static_graph=static_graph
    )
    return TrainLoop(lockstep, text, _settings(steps))


def _step_seconds(
    architectures: Sequence[GatedConfig], text: Bytes, precision: Precision, steps: int
) -> float:
    run = _run(architectures, text, precision, steps)
    return _seconds(lambda: list(run.train())) / steps


def _plain_step_seconds(architecture: GatedConfig, text: Bytes, steps: int) -> float:
    training = PlainTraining(architecture, text, _settings(steps))
    # All one-hot inputs of a sequence are made at once: a step is charged with its share alone.
    drawing = _seconds(lambda: training.begin_sequence(0)) / (SEQUENCE - 1)

    def train() -> None:
        for t in range(steps):
            training.step(t)

    return drawing + _seconds(train) / steps


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
