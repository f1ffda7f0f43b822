"""Cost of several replicates: the fast engines train the networks of one replicate together."""

import statistics
import time
from collections.abc import Iterator, Sequence

import torch

from benchmarks.training_step import SMALL
from rnn.config import NetworkConfig, OptimizerConfig, TrialConfig
from rnn.native.engine import NativeStack
from rnn.stacked.engine import NetworkStack
from rnn.tasks.corpus import ByteArray, load_corpus
from rnn.tasks.text import TextData
from rnn.training.loop import TrainConfig, TrainLoop

ROUNDS = 5

STEPS = 20

CASES = ((24, 3), (4, 3), (1, 8))
"""Number of networks of one shape, and of their replicates."""

ENGINES = (("library in C", NativeStack, 8), ("PyTorch", NetworkStack, 32))
"""Each fast engine, and how many networks of two layers and 32 states a worker trains together."""


def measure() -> Iterator[str]:
    """Yield a line for each engine, batch size and case."""
    torch.set_num_threads(1)
    text = load_corpus("stdlib").train
    yield (
        f"speed of replicates relative to as many networks of one replicate, 2×32, float32, 1 "
        f"thread, processor time, medians of {ROUNDS} (range)"
    )
    for name, engine, most in ENGINES:
        for batch_size in (32, 256):
            for count, replicates in CASES:
                ratios = _compare(engine, SMALL[:count], replicates, most, text, batch_size)
                speed = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                case = f"{count} × {replicates} replicates, batch {batch_size}"
                yield f"  {name:12} {case:32} {speed}"


def _compare(
    engine: type[NativeStack | NetworkStack],
    networks: Sequence[NetworkConfig],
    replicates: int,
    most: int,
    text: ByteArray,
    batch_size: int,
) -> list[float]:
    rates = [OptimizerConfig(learning_rate=0.001 * (i + 1)) for i in range(replicates)]
    of_one = [TrialConfig(network, optimizer=rate) for network in networks for rate in rates]
    together = _split(of_one, most)
    apart = []
    for number in range(replicates):
        apart += _split([TrialConfig(network, number) for network in networks], most)
    ratios = []
    for round_ in range(ROUNDS + 1):
        seconds = [
            sum(_time(engine(stack, 0), text, batch_size) for stack in stacks)
            for stacks in (together, apart)
        ]
        if round_:  # the first is a warm-up
            ratios.append(seconds[0] / seconds[1])
    return ratios


def _split(configs: Sequence[TrialConfig], most: int) -> list[Sequence[TrialConfig]]:
    return [configs[first : first + most] for first in range(0, len(configs), most)]


def _time(stack: NativeStack | NetworkStack, text: ByteArray, batch_size: int) -> float:
    loop = TrainLoop(stack, TextData(text), TrainConfig(STEPS, batch_size, 1000, STEPS, 0.95, 0))
    start = time.process_time()
    list(loop.train())
    return time.process_time() - start
