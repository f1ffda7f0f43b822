"""Whether products in bfloat16 change the answer: the same points trained both ways."""

import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from scipy.stats import spearmanr

from benchmarks.sampling import strata
from rnn.config import GatedConfig, TrialConfig
from rnn.data.corpus import load_corpus
from rnn.stacked.network import NetworkStack
from rnn.training.loop import TrainConfig, TrainLoop
from rnn.training.precision import Precision
from search.worker.cpu_budget import cores

POINTS = 48
STEPS = 1000

WAYS: dict[str, tuple[Precision, int]] = {
    "fp32": ("fp32", 0),
    "bf16": ("bf16", 0),
    "fp32, other initial weights": ("fp32", 1),
}
"""A way's precision, and the replicate that is trained."""


def measure() -> Iterator[str]:
    """Yield what comes of it; it takes a quarter of an hour on two cores."""
    architectures = [GatedConfig.of(point, "state") for point in strata(POINTS)]
    work = [(a, *way) for a in architectures for way in WAYS.values()]
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        losses = list(pool.map(_loss, *zip(*work, strict=True)))
    full, low, again = (losses[first :: len(WAYS)] for first in range(len(WAYS)))
    yield f"precision: {POINTS} stratified points of stage one, {STEPS} steps each"
    for name, other in (("bf16", low), ("fp32 from other initial weights", again)):
        differences = [b - a for a, b in zip(full, other, strict=True)]
        mean, spread = statistics.mean(differences), statistics.stdev(differences)
        rank = spearmanr(full, other).statistic
        yield (
            f"  {name} less fp32: mean {mean:+.4f} nats, standard deviation {spread:.4f}, "
            f"Spearman of the final losses {rank:.4f}"
        )


def _loss(architecture: GatedConfig, precision: Precision, replicate: int) -> float:
    torch.set_num_threads(1)
    settings = TrainConfig(STEPS, 256, 1000, 50, 0.001, 0.95, 0)
    lockstep = NetworkStack([TrialConfig(architecture, replicate)], 0, precision)
    run = TrainLoop(lockstep, load_corpus("stdlib").train, settings)
    return min(point.smoothed_losses[0] for point in run.train())
