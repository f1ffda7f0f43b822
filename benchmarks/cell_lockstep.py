"""Speed of the autograd engine in lockstep by ``torch.vmap``, relative to one after another."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from rnn.config import (
    GatedOptions,
    NetworkConfig,
    OptimizerConfig,
    Precision,
    TrialConfig,
)
from rnn.engines import build_network
from rnn.own_code import CellSource, load_class, read_source
from rnn.tasks.corpus import ByteArray, TextData, load_corpus
from rnn.training.loop import TrainConfig, TrainLoop
from search.worker.lockstep import auto_lockstep

CELLS = {
    "MinGRU": "examples/cells/min_gru.py",
    "LayerNormGRU": "examples/cells/layer_norm_gru.py",
    "DiagonalLRU": "examples/cells/diagonal_lru.py",
}

BUILT_IN: dict[str, Callable[[int], NetworkConfig]] = {
    "gru": partial(NetworkConfig, "gru", 2),
    "lstm": partial(NetworkConfig, "lstm", 2),
    "gated, 4 steps": partial(GatedOptions(False, True, False, True, True, "new").network, 2),
}
BPTT_STEPS = {"gated, 4 steps": 4}

STATE_SIZES, BATCH_SIZES, COUNTS = (32, 256), (32, 256), (1, 4, 16)

ROUNDS = 3

BLOCK_SECONDS = 0.3
"""Time of the steps that are timed together, about."""


def measure() -> Iterator[str]:
    """Yield a table: time per network and step alone, and the speed of K networks in lockstep."""
    torch.set_num_threads(1)
    text = load_corpus("stdlib").train
    columns = "".join(f"   {count:2} in lockstep" for count in COUNTS[1:])
    columns += "   --lockstep auto"
    yield (
        "two layers, one thread: milliseconds per network and step, one after another; "
        f"then how many times faster in lockstep, minimum of {ROUNDS} each; last, how many "
        "--lockstep auto trains together"
    )
    for precision in ("fp32", "bf16"):
        yield f"  {precision}                              alone{columns}"
        for name in (*BUILT_IN, *CELLS):
            for state_size in STATE_SIZES:
                for batch_size in BATCH_SIZES:
                    config = _load_config(name, state_size)
                    auto = auto_lockstep(config, batch_size, precision, torch.device("cpu"))
                    alone, *stacked = _seconds_per_step(
                        config, (*COUNTS, auto), batch_size, text, precision
                    )
                    ratios = "".join(f"   {alone / each:12.2f}×" for each in stacked)
                    yield (
                        f"  {name:14} n {state_size:3}  batch {batch_size:3}  "
                        f"{1000 * alone:8.2f} ms{ratios} ({auto})"
                    )


def _load_config(name: str, state_size: int) -> TrialConfig:
    if name in BUILT_IN:
        return TrialConfig(BUILT_IN[name](state_size), bptt_steps=BPTT_STEPS.get(name, 1))
    source = read_source(f"{CELLS[name]}:{name}", Path(__file__).parents[1], CellSource)
    load_class(source)
    return TrialConfig(NetworkConfig(name, 2, state_size, (), source.sha256))


def _seconds_per_step(
    config: TrialConfig,
    counts: Sequence[int],
    batch_size: int,
    text: ByteArray,
    precision: Precision,
) -> list[float]:
    """Return the time per network and step for each number of networks in lockstep."""

    def run(count: int, steps: int) -> float:
        configs = [
            config._replace(optimizer=OptimizerConfig(learning_rate=0.001 + k / 1e6))
            for k in range(count)
        ]
        network = build_network(configs, 0, precision)
        settings = TrainConfig(steps, batch_size, 1000, steps, 0.95, 0)
        loop = TrainLoop(network, TextData(text), settings)
        start = time.perf_counter()
        list(loop.train())
        return (time.perf_counter() - start) / (steps * count)

    steps = {}
    for count in set(counts):
        run(count, 2)  # warms up
        steps[count] = min(200, max(2, int(BLOCK_SECONDS / (run(count, 3) * count))))
    # Rounds alternate between the numbers: what else the machine does then affects all of them.
    rounds = [[run(count, steps[count]) for count in counts] for _ in range(ROUNDS)]
    return [min(each) for each in zip(*rounds, strict=True)]
