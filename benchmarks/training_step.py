"""Speed of the training step, relative to the plain loop and to the machine's limit."""

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.baseline_loop import PlainTraining
from benchmarks.matmul_limit import matmul_shapes, min_seconds
from rnn.config import STATE_SOURCES, GatedConfig, Precision, TrialConfig
from rnn.data.corpus import ByteArray, load_corpus
from rnn.stacked.network import NetworkStack
from rnn.training.loop import TrainConfig, TrainLoop

ROUNDS = 5

SEQUENCE = 1000
"""Sequence length of stage one."""

BEST = GatedConfig(False, True, False, True, True, "new", 2, 256)
ALL_ON = GatedConfig(True, True, True, True, True, "both", 3, 256)
SMALL = [
    GatedConfig(i, f, o, s, True, source, 2, 32)
    for i, f, o, s in itertools.product((False, True), repeat=4)
    for source in STATE_SOURCES
]
"""All 48 networks of two layers and 32 states in stage one."""

NETWORKS: dict[str, Sequence[GatedConfig]] = {
    "2×256, forget, state, residual, new": [BEST],
    "3×256, all options on": [ALL_ON],
    "48 of 2×32, mixed switches": SMALL,
}

PLAIN_SAMPLE = 6
"""Number of networks of a stack that the plain loop trains, others in each round."""


def measure() -> Iterator[str]:
    """Yield a line for each set of networks and precision."""
    torch.set_num_threads(1)
    text = load_corpus("stdlib").train
    yield (
        "training step, one thread, batch 256: throughput relative to the plain loop, "
        f"median of {ROUNDS} (range); share of the limit: time of the equations' products alone, "
        "each stream multiplied, over the time of the step; in brackets for the products that are "
        "computed"
    )
    for name, configs in NETWORKS.items():
        for precision in ("fp32", "bf16"):
            yield f"  {name:38} {precision}  {_compare(configs, text, precision)}"


def stacks() -> Iterator[str]:
    """Yield a line for each shape and precision, by the number of networks in lockstep."""
    torch.set_num_threads(1)
    text = load_corpus("stdlib").train
    yield f"milliseconds per network and step, by the number in lockstep, minimum of {ROUNDS}"
    large = [
        GatedConfig(i, f, o, s, r, "new", 2, 256)
        for i, f, o, s, r in itertools.product((False, True), repeat=5)
    ]
    for name, configs in (("2×32", SMALL), ("2×256", large)):
        mixed = random.Random(0).sample(configs, 32)
        for precision in ("fp32", "bf16"):
            timings = {}
            for size in (1, 2, 4, 8, 16, 32):
                groups = [mixed[first : first + size] for first in range(0, 32, size)]
                steps = 30 if configs is SMALL else 4
                seconds = min(
                    sum(_step_seconds(group, text, precision, steps) for group in groups)
                    for _ in range(ROUNDS if configs is SMALL else 2)
                )
                timings[size] = f"{size}: {1000 * seconds / 32:.2f}"
            yield f"  {name:6} {precision}  {', '.join(timings.values())}"


def _compare(configs: Sequence[GatedConfig], text: ByteArray, precision: Precision) -> str:
    steps = 40 if configs[0].state_size > 100 else 100
    rng = random.Random(0)
    ratios, required_shares, computed_shares = [], [], []
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    required = matmul_shapes(_start(configs, text, precision, 2, static_graph=True))
    computed = matmul_shapes(_start(configs, text, precision, 2))
    for round_ in range(ROUNDS + 1):
        sample = rng.sample(list(configs), min(PLAIN_SAMPLE, len(configs)))
        plain = statistics.mean(_plain_step_seconds(config, text, steps) for config in sample)
        stacked = _step_seconds(configs, text, precision, steps)
        if round_:  # the first is a warm-up
            ratios.append(plain * len(configs) / stacked)
            required_shares.append(min_seconds(required, dtype, 1) / stacked)
            computed_shares.append(min_seconds(computed, dtype, 1) / stacked)
    return (
        f"{statistics.median(ratios):.2f}×  ({min(ratios):.2f} to {max(ratios):.2f})  "
        f"{statistics.median(required_shares):.2f} "
        f"[{statistics.median(computed_shares):.2f}] of the limit"
    )


def _settings(steps: int) -> TrainConfig:
    return TrainConfig(steps, 256, SEQUENCE, steps, 0.95, 0)


def _start(
    configs: Sequence[GatedConfig],
    text: ByteArray,
    precision: Precision,
    steps: int,
    static_graph: bool | None = None,
) -> TrainLoop:
    stack = NetworkStack(
        [TrialConfig(config) for config in configs], 0, precision, static_graph=static_graph
    )
    return TrainLoop(stack, text, _settings(steps))


def _step_seconds(
    configs: Sequence[GatedConfig], text: ByteArray, precision: Precision, steps: int
) -> float:
    loop = _start(configs, text, precision, steps)
    return _seconds(lambda: list(loop.train())) / steps


def _plain_step_seconds(config: GatedConfig, text: ByteArray, steps: int) -> float:
    training = PlainTraining(config, text, _settings(steps))
    # All one-hot inputs of a sequence are made at once: charge a step with its share.
    sampling = _seconds(lambda: training.begin_sequence(0)) / (SEQUENCE - 1)

    def train() -> None:
        for t in range(steps):
            training.step(t)

    return sampling + _seconds(train) / steps


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
