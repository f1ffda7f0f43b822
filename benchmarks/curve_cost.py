"""Cost of the held-out curves: processor time of trainings with them, divided by that without."""

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch

from rnn.config import WHOLE_SEQUENCE, GatedOptions, NetworkConfig, OptimizerConfig, TrialConfig
from rnn.engines import build_network
from rnn.tasks.corpus import Corpus
from rnn.tasks.task import Task
from rnn.tasks.text import Text
from rnn.tasks.tokenizer import Tokenizer
from rnn.training.loop import TrainConfig, TrainLoop
from search.cells_tasks import load_task_of
from search.worker.trainer import CURVE_INPUTS

ROUNDS = 5

_GATED = GatedOptions(False, True, False, True, True, "new")


def measure() -> Iterator[str]:
    """Yield a line for each training."""
    yield "held-out curves: processor time with them / without, one thread, fp32, and their points"
    torch.set_num_threads(1)
    words = np.frombuffer(b"It was a bright cold day in April. " * 4000, dtype=np.uint8)
    text = Text(Corpus("made", words), Tokenizer())
    for state_size, count in ((32, 8), (256, 1)):
        networks = _list_configs(_GATED.network(2, state_size), count, 1)
        settings = TrainConfig(500, 256, 1000, 50, 0.95, 0, 0.1, eval_every=500)
        label = f"text, {count} of 2×{state_size}, 500 of 10,000 steps"
        yield f"  {label:38} {_compare(networks, text, settings, 10_000 * 256)}"
    settings = TrainConfig(2000, 64, 1000, 50, 0.95, 0, 0.1)
    networks = _list_configs(_GATED.network(2, 32), 8, 1)
    yield f"  {'text, 8 of 2×32, 2,000 steps of 64':38} {_compare(networks, text, settings)}"
    for source in ("copy:10", "digits", "mqar"):
        task = load_task_of(source, {}, Path()).build_sequences()
        for count, updates in ((1, 200), (8, 200), (1, 600)):
            networks = _list_configs(NetworkConfig("gru", 1, 32), count, WHOLE_SEQUENCE)
            steps = updates * task.steps
            settings = TrainConfig(steps, 64, 0, steps // 20, 0.95, 0, 0.1)
            label = f"{source}, {count} GRU of 32, {updates} updates of 64"
            yield f"  {label:38} {_compare(networks, task, settings)}"


def _list_configs(network: NetworkConfig, count: int, window: int) -> list[TrialConfig]:
    rates = [0.001 * (number + 1) for number in range(count)]
    return [
        TrialConfig(network, 0, window, OptimizerConfig(learning_rate=rate), (), window)
        for rate in rates
    ]


def _compare(
    configs: list[TrialConfig], task: Task, settings: TrainConfig, inputs: int | None = None
) -> str:
    """Train with and without curves in turns; ``inputs`` is what a whole training would read."""
    inputs = inputs or settings.steps * settings.batch_size
    data = task.select_curve_data(256, 1000, inputs // CURVE_INPUTS)
    ratios = []
    for _ in range(ROUNDS):
        seconds = []
        for curve_data in (None, data):
            network = build_network(configs, 0, "fp32", task.spec)
            loop = TrainLoop(network, task, settings, None, curve_data)
            started = time.process_time()
            for _ in loop.train():
                pass
            seconds.append(time.process_time() - started)
        ratios.append(seconds[1] / seconds[0])
    return f"{median(ratios):.3f}  {len(loop.metrics[0]['validation_loss']):2} points"
