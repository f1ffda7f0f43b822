"""Which objective a single run is best judged by: what each scatters by from run to run.

Eight architectures, five replicates each, with other initial weights and another order of text. A
trial's value may be the least smoothed training loss or the loss on held-out text: of the last
weights, of their mean over the last part of the steps, or after the learning rate was let go to
zero over the last fifth. The text is the file that ``RNN_SEARCH_TEXT`` names, or the library's
sources.
"""

import itertools
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rnn.config import GatedConfig, TrialConfig
from rnn.data.corpus import Corpus, load_corpus
from rnn.stacked.network import NetworkStack
from rnn.training.checkpoint import TrainState
from rnn.training.evaluation import eval_losses, eval_windows
from rnn.training.loop import TrainConfig, TrainLoop
from search.worker.cpu_budget import cores

VARIABLE = "RNN_SEARCH_TEXT"
REPLICATES = 5
STEPS, DECAY, BRANCH = 3000, 600, 750
AVERAGES = (0.1, 0.25)

BASE: dict[str, Any] = {
    "input_gate": False,
    "forget_gate": True,
    "output_gate": False,
    "state_gate": True,
    "residual": True,
    "state_source": "new",
    "layers": 2,
    "state_size": 256,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"state_gate": False},
    {"state_source": "both"},
    {"input_gate": True},
    {"output_gate": True},
    {"forget_gate": False},
    {"layers": 1},
    {"layers": 3},
]

Floats = NDArray[np.float64]


def measure() -> Iterator[str]:
    """Yield what comes of it; it takes a quarter of an hour on two cores."""
    work = list(itertools.product(range(len(VARIANTS)), range(REPLICATES)))
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        found = list(pool.map(_losses, *zip(*work, strict=True)))
    name = os.path.basename(os.environ.get(VARIABLE, "stdlib"))  # noqa: PTH119
    yield (
        f"objectives: {len(VARIANTS)} architectures, {REPLICATES} replicates, {STEPS:,} steps in "
        f"bf16, on {name}; nats a byte"
    )
    for objective in found[0]:
        losses = np.array([each[objective] for each in found])
        yield f"  {objective}: {_in_words(losses.reshape(len(VARIANTS), REPLICATES))}"


def _in_words(losses: Floats) -> str:
    """Say how much replicates scatter, and how often single runs rank a pair as the others do.

    Args:
        losses: (architectures, replicates)
    """
    own = losses - losses.mean(1, keepdims=True)
    common = losses - losses.mean(0)  # without what the order of the text is to all
    rest = common - common.mean(1, keepdims=True)
    freedom = (losses.shape[0] - 1) * (losses.shape[1] - 1)
    alone = float(np.sqrt((rest**2).sum() / freedom))
    in_all = float(np.sqrt((own**2).sum() / (losses.shape[0] * (losses.shape[1] - 1))))
    between = float(losses.mean(1).std(ddof=1))
    return (
        f"standard deviation between replicates {in_all:.4f}, of the same text's order "
        f"{alone:.4f}, between architectures {between:.4f}; two single runs rank a pair right in "
        f"{_right(losses, True):.0%} with the same order, in {_right(losses, False):.0%} with "
        "another"
    )


def _right(losses: Floats, same_order: bool) -> float:
    """Return how often two single runs rank a pair as the mean of the other replicates does."""
    architectures, replicates = map(range, losses.shape)
    right = [
        (losses[a, r] < losses[b, s])
        == (np.delete(losses[a], [r, s]).mean() < np.delete(losses[b], [r, s]).mean())
        for a, b in itertools.combinations(architectures, 2)
        for r, s in itertools.product(replicates, replicates)
        if (r == s) is same_order
    ]
    return float(np.mean(right))


def _losses(variant: int, replicate: int) -> Mapping[str, float]:
    torch.set_num_threads(1)
    corpus = load_corpus(os.environ.get(VARIABLE, "stdlib"))
    config = TrialConfig(GatedConfig.of(BASE | VARIANTS[variant], "state"), replicate)
    plain = TrainConfig(STEPS, 256, 1000, 50, 0.001, 0.95, 0)
    middle = _train(config, corpus, replace(plain, steps=STEPS - BRANCH))[1]
    found = {}
    run, _ = _train(config, corpus, plain, middle)
    found["training"] = min(run.curves[0].values())
    found["validation, the last weights"] = _held_out(run, corpus)
    for average in AVERAGES:
        run, _ = _train(config, corpus, replace(plain, average=average), middle)
        run.swap_in_averaged_weights()
        found[f"validation, the mean of the last {average:.0%}"] = _held_out(run, corpus)
    run, _ = _train(config, corpus, plain, middle, decay=True)
    found["training, with the decay"] = min(run.curves[0].values())
    found["validation, with the decay"] = _held_out(run, corpus)
    return found


def _train(
    config: TrialConfig,
    corpus: Corpus,
    settings: TrainConfig,
    begun: TrainState | None = None,
    decay: bool = False,
) -> tuple[TrainLoop, TrainState]:
    weights = {config: begun.weights} if begun else None
    known = {config: begun} if begun else None
    run = TrainLoop(
        NetworkStack([config], 0, "bf16", weights=weights), corpus.train, settings, known
    )

    def let_go() -> None:
        left = (STEPS - run.step) / DECAY
        run._program.optimizer.learning_rate = settings.learning_rate * min(1, max(left, 1e-3))

    for _ in run.train(let_go if decay else lambda: None):
        pass
    return run, run.progress(config)


def _held_out(run: TrainLoop, corpus: Corpus) -> float:
    held_out = eval_windows(corpus.validation, 256, 1000)
    return float(eval_losses(run.stack, held_out).mean())
