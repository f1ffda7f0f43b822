"""Speed of the training step, relative to the plain loop, the machine's limit and PyTorch."""

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.baseline_loop import PlainTraining
from benchmarks.matmul_limit import matmul_shapes, min_seconds
from rnn.config import STATE_SOURCES, GatedOptions, NetworkConfig, Precision, TrialConfig
from rnn.engines import Engine, build_network
from rnn.stacked.engine import NetworkStack
from rnn.tasks.corpus import ByteArray, load_corpus
from rnn.tasks.text import TextData
from rnn.training.devices import find_bf16_hardware
from rnn.training.loop import TrainConfig, TrainLoop
from search.worker.cpu_budget import cores

ROUNDS = 5

SEQUENCE = 1000
"""Sequence length of stage one."""

BEST = GatedOptions(False, True, False, True, True, "new").network(2, 256)
ALL_ON = GatedOptions(True, True, True, True, True, "both").network(3, 256)
SMALL = [
    GatedOptions(i, f, o, s, True, source).network(2, 32)
    for i, f, o, s in itertools.product((False, True), repeat=4)
    for source in STATE_SOURCES
]
"""All 48 networks of two layers and 32 states in stage one."""

NETWORKS: dict[str, Sequence[NetworkConfig]] = {
    "2×256, forget, state, residual, new": [BEST],
    "3×256, all options on": [ALL_ON],
    "48 of 2×32, mixed switches": SMALL,
}

CASES = [
    *((name, 256, 1) for name in NETWORKS),
    ("48 of 2×32, mixed switches", 32, 1),
    *((name, 256, 2) for name in NETWORKS),
]
"""Networks, batch size and number of threads of each comparison."""

PLAIN_SAMPLE = 6
"""Number of networks of a stack that the plain loop trains, others in each round."""


def measure() -> Iterator[str]:
    """Yield a line for each case and precision."""
    text = load_corpus("stdlib").train
    yield (
        f"training step, medians of {ROUNDS} (range): throughput relative to the plain loop; share "
        "of the limit, the time of the equations' products alone, each stream multiplied, over the "
        "time of the step; throughput relative to PyTorch's operations in lockstep"
    )
    for name, batch_size, threads in CASES:
        if threads > cores():
            continue
        torch.set_num_threads(threads)
        for precision in ("fp32", "bf16"):
            if precision == "bf16" and find_bf16_hardware(torch.device("cpu")) is None:
                continue
            compared = _compare(NETWORKS[name], text, precision, batch_size)
            yield f"  {name:36} batch {batch_size:3}, threads {threads}, {precision}  {compared}"


def _compare(
    configs: Sequence[NetworkConfig], text: ByteArray, precision: Precision, batch_size: int
) -> str:
    steps = 40 if configs[0].state_size > 100 else 100
    rng = random.Random(0)
    to_plain = []
    shares = []
    to_pytorch = []
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    separate = _pytorch_stack(configs, precision, static_graph=True)
    products = matmul_shapes(TrainLoop(separate, TextData(text), _settings(2, batch_size)))
    for round_ in range(ROUNDS + 1):
        sample = rng.sample(list(configs), min(PLAIN_SAMPLE, len(configs)))
        plain = statistics.mean(
            _plain_step_seconds(config, text, steps, batch_size) for config in sample
        )
        pytorch = _pytorch_stack(configs, precision)
        before = _step_seconds(pytorch, text, steps, batch_size)
        stack = build_network([TrialConfig(config) for config in configs], 0, precision)
        seconds = _step_seconds(stack, text, steps, batch_size)
        if round_:  # the first is a warm-up
            to_plain.append(plain * len(configs) / seconds)
            shares.append(min_seconds(products, dtype) / seconds)
            to_pytorch.append(before / seconds)
    return f"{_spread(to_plain)}×  {_spread(shares)} of the limit  {_spread(to_pytorch)}× PyTorch"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _settings(steps: int, batch_size: int) -> TrainConfig:
    return TrainConfig(steps, batch_size, SEQUENCE, steps, 0.95, 0)


def _pytorch_stack(
    configs: Sequence[NetworkConfig], precision: Precision, static_graph: bool | None = None
) -> NetworkStack:
    trial_configs = [TrialConfig(config) for config in configs]
    return NetworkStack(trial_configs, 0, precision, static_graph=static_graph)


def _step_seconds(stack: Engine, text: ByteArray, steps: int, batch_size: int) -> float:
    loop = TrainLoop(stack, TextData(text), _settings(steps, batch_size))
    return _seconds(lambda: list(loop.train())) / steps


def _plain_step_seconds(
    config: NetworkConfig, text: ByteArray, steps: int, batch_size: int
) -> float:
    training = PlainTraining(config, text, _settings(steps, batch_size))
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
