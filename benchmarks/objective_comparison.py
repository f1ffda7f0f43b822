"""Noise of candidate objectives between runs of one architecture.

Eight architectures in several replicates, with other initial weights and another text order, at the
size of the study ``quick`` or with 256 states. The
candidates are the minimum of the smoothed training loss, its mean over the last quarter of the
steps, and the loss on held-out text: of the last weights, of their mean over the last part of the
steps, or after the learning rate has decayed to zero over the last fifth. The text is the file that
``RNN_SEARCH_TEXT`` names, or the source code of Python's library.
"""

import itertools
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rnn.config import GatedConfig, OptimizerConfig, TrialConfig
from rnn.data.corpus import Corpus, load_corpus
from rnn.stacked.network import NetworkStack
from rnn.training.checkpoint import TrainState
from rnn.training.evaluation import compute_eval_losses, select_eval_windows
from rnn.training.loop import TrainConfig, TrainLoop
from search.worker.cpu_budget import cores
from search.worker.model_evaluation import mean_training_loss

VARIABLE = "RNN_SEARCH_TEXT"
AVERAGES = (0.1, 0.25)


@dataclass(frozen=True)
class Size:
    """Size of the networks and their training.

    Attributes:
        layers: layers of most architectures.
        state_size: states of each layer.
        batch_size: number of streams.
        sequence_length: tokens of a sequence, and of an evaluation window.
        steps: steps of the training.
        windows: number of evaluation windows.
        learning_rate: learning rate of Adam.
        replicates: runs of each architecture.
    """

    layers: int
    state_size: int
    batch_size: int
    sequence_length: int
    steps: int
    windows: int
    learning_rate: float
    replicates: int


SMALL = Size(1, 32, 32, 200, 2000, 64, 0.003, 10)
LARGE = Size(2, 256, 256, 1000, 3000, 256, 0.001, 5)

BASE: dict[str, Any] = {
    "input_gate": False,
    "forget_gate": True,
    "output_gate": False,
    "state_gate": True,
    "residual": True,
    "state_source": "new",
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"state_gate": False},
    {"state_source": "both"},
    {"input_gate": True},
    {"output_gate": True},
    {"forget_gate": False},
    {"layers": -1},  # one layer less than the others, or two more if they have one
    {"layers": +1},
]

Floats = NDArray[np.float64]


def measure_small() -> Iterator[str]:
    """Yield a line for each objective at the size of ``quick``; takes two minutes on two cores."""
    return _measure(SMALL)


def measure() -> Iterator[str]:
    """Yield a line for each objective at 256 states; takes a quarter of an hour on two cores."""
    return _measure(LARGE)


def _measure(size: Size) -> Iterator[str]:
    work = list(itertools.product([size], range(len(VARIANTS)), range(size.replicates)))
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        runs = list(pool.map(_train_run, *zip(*work, strict=True)))
    name = os.path.basename(os.environ.get(VARIABLE, "stdlib"))  # noqa: PTH119
    yield (
        f"objectives: {len(VARIANTS)} architectures, {size.replicates} replicates, "
        f"{size.state_size} states, {size.steps:,} steps in bf16, on {name}; nats per byte"
    )
    for objective in runs[0]:
        losses = np.array([run[objective] for run in runs])
        yield f"  {objective}: {_describe(losses.reshape(len(VARIANTS), size.replicates))}"


def _describe(losses: Floats) -> str:
    """Describe the scatter of replicates, and how often single runs rank a pair correctly.

    Args:
        losses: (architectures, replicates)
    """
    within = losses - losses.mean(1, keepdims=True)
    same_order = losses - losses.mean(0)  # without the common effect of the text order
    residual = same_order - same_order.mean(1, keepdims=True)
    degrees_of_freedom = (losses.shape[0] - 1) * (losses.shape[1] - 1)
    std_same_order = float(np.sqrt((residual**2).sum() / degrees_of_freedom))
    std = float(np.sqrt((within**2).sum() / (losses.shape[0] * (losses.shape[1] - 1))))
    between = float(losses.mean(1).std(ddof=1))
    return (
        f"standard deviation between replicates {std:.4f}, with the same text order "
        f"{std_same_order:.4f}, between architectures {between:.4f}; two single runs rank a pair "
        f"correctly in {_rank_accuracy(losses, True):.0%} with the same order, in "
        f"{_rank_accuracy(losses, False):.0%} with another"
    )


def _rank_accuracy(losses: Floats, same_order: bool) -> float:
    """Return the share of pairs that two single runs rank like the mean of the other replicates."""
    architectures, replicates = map(range, losses.shape)
    correct = [
        (losses[a, r] < losses[b, s])
        == (np.delete(losses[a], [r, s]).mean() < np.delete(losses[b], [r, s]).mean())
        for a, b in itertools.combinations(architectures, 2)
        for r, s in itertools.product(replicates, replicates)
        if (r == s) is same_order
    ]
    return float(np.mean(correct))


def _train_run(size: Size, variant: int, replicate: int) -> Mapping[str, float]:
    torch.set_num_threads(1)
    corpus = load_corpus(os.environ.get(VARIABLE, "stdlib"))
    changed = VARIANTS[variant]
    more = changed.get("layers", 0)
    layers = size.layers + (more if size.layers + more else 2)
    params = BASE | changed | {"layers": layers, "state_size": size.state_size}
    optimizer = OptimizerConfig("adam", size.learning_rate)
    config = TrialConfig(GatedConfig.from_params(params, "state"), replicate, 1, optimizer)
    steps = size.steps
    settings = TrainConfig(steps, size.batch_size, size.sequence_length, 50, 0.95, 0)
    branch = _train(config, corpus, replace(settings, steps=steps - steps // 4))[1]
    losses = {}
    loop, _ = _train(config, corpus, settings, branch)
    losses["training"] = min(loop.curves[0].values())
    losses["training-mean"] = mean_training_loss(loop.curves[0], steps)
    losses["validation, the last weights"] = _evaluate(loop, corpus, size)
    for average in AVERAGES:
        loop, _ = _train(config, corpus, replace(settings, average_fraction=average), branch)
        loop.swap_in_averaged_weights()
        losses[f"validation, the mean of the last {average:.0%}"] = _evaluate(loop, corpus, size)
    loop, _ = _train(config, corpus, settings, branch, decay=True)
    losses["training, with the decay"] = min(loop.curves[0].values())
    losses["validation, with the decay"] = _evaluate(loop, corpus, size)
    return losses


def _train(
    config: TrialConfig,
    corpus: Corpus,
    settings: TrainConfig,
    start: TrainState | None = None,
    decay: bool = False,
) -> tuple[TrainLoop, TrainState]:
    weights = {config: start.weights} if start else None
    states = {config: start} if start else None
    loop = TrainLoop(
        NetworkStack([config], 0, "bf16", weights=weights), corpus.train, settings, states
    )

    def decay_learning_rate() -> None:
        remaining = 5 * (settings.steps - loop.step) / settings.steps  # over the last fifth
        loop._train_step.optimizer.learning_rate_factor = min(1, max(remaining, 1e-3))

    for _ in loop.train(decay_learning_rate if decay else lambda: None):
        pass
    return loop, loop.train_state(config)


def _evaluate(loop: TrainLoop, corpus: Corpus, size: Size) -> float:
    windows = select_eval_windows(corpus.validation, size.windows, size.sequence_length)
    return float(compute_eval_losses(loop.stack, windows).mean())
