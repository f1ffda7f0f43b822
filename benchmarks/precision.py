"""Effect of bfloat16 products on the ranking: the same networks trained both ways."""

import random
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from scipy.stats import spearmanr

from rnn.config import NetworkConfig, Precision, TrialConfig, gated_network
from rnn.engines import build_network
from rnn.tasks.corpus import TextData, load_corpus
from rnn.training.loop import TrainConfig, TrainLoop
from search.worker.cpu_budget import cores
from studies.loader import load_config_file
from studies.space import Params

TRIALS = 48
STEPS = 1000

VARIANTS: dict[str, tuple[Precision, int]] = {
    "fp32": ("fp32", 0),
    "bf16": ("bf16", 0),
    "fp32, other initial weights": ("fp32", 1),
}
"""Precision and replicate of each variant."""


def measure() -> Iterator[str]:
    """Yield the differences between the variants; takes a quarter of an hour on two cores."""
    configs = [gated_network(params, "state") for params in sample_stratified(TRIALS)]
    work = [(config, *variant) for config in configs for variant in VARIANTS.values()]
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        losses = list(pool.map(_train, *zip(*work, strict=True)))
    fp32, bf16, reseeded = (losses[first :: len(VARIANTS)] for first in range(len(VARIANTS)))
    yield f"precision: {TRIALS} stratified trials of stage one, {STEPS} steps each"
    for name, other in (("bf16", bf16), ("fp32 from other initial weights", reseeded)):
        differences = [b - a for a, b in zip(fp32, other, strict=True)]
        mean, spread = statistics.mean(differences), statistics.stdev(differences)
        rank = spearmanr(fp32, other).statistic
        yield (
            f"  {name} minus fp32: mean {mean:+.4f} nats, standard deviation {spread:.4f}, "
            f"Spearman of the final losses {rank:.4f}"
        )


def sample_stratified(count: int) -> list[Params]:
    """Sample parameter sets of stage one, proportionally by number of layers and state size.

    Args:
        count: number of parameter sets; must be divisible among the shapes.

    Returns:
        Parameter sets in random order.
    """
    grid = load_config_file("stage-one", []).resolve().grid
    assert grid is not None
    shapes: dict[tuple[object, object], list[Params]] = {}
    for params in grid.combinations():
        shapes.setdefault((params["layers"], params["state_size"]), []).append(params)
    total = sum(map(len, shapes.values()))
    rng = random.Random(0)
    chosen: list[Params] = []
    for stratum in shapes.values():
        chosen += rng.sample(stratum, round(count * len(stratum) / total))
    rng.shuffle(chosen)
    assert len(chosen) == count, f"cannot divide {count} among the shapes"
    return chosen


def _train(config: NetworkConfig, precision: Precision, replicate: int) -> float:
    torch.set_num_threads(1)
    settings = TrainConfig(STEPS, 256, 1000, 50, 0.95, 0)
    network = build_network([TrialConfig(config, replicate)], 0, precision)
    run = TrainLoop(network, TextData(load_corpus("stdlib").train), settings)
    return min(point.ema_losses[0] for point in run.train())
