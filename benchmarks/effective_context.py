"""Simulated error of the effective context: by position in a window, and on the same text.

The loss of a target is the difficulty of the text, common to both of its evaluations, plus an
excess that falls exponentially with the context, with scatter. The simple rule compares the loss
at each position of a window with that of its last half; positions read different text. The rule of
:mod:`rnn.training.context` compares two evaluations of one target.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from reports.data.context import THRESHOLD, ContextProfile
from rnn.training.context import list_context_bins

STUDIES = 200
WINDOWS, LENGTH = 256, 1000
DIFFICULTY = 2.0
"""Standard deviation of the loss between targets, in bits."""
EXCESS = 1.5
"""Excess loss without context, in bits."""
DECAYS = (0.1, 1, 3, 10, 30, 100)

Floats = NDArray[np.float64]


def measure() -> Iterator[str]:
    """Yield a line for each length of the memory; takes half a minute."""
    yield (
        f"effective context: {STUDIES} simulated networks each, {WINDOWS} windows of {LENGTH} "
        "bytes; estimate over truth, median and 5% to 95%; intervals that cover the truth to 10%; "
        "networks reported to use more than half a window"
    )
    bins = list_context_bins((LENGTH - 1) // 2)
    for decay in DECAYS:
        truth = max(1.0, decay * math.log(EXCESS / THRESHOLD))
        rng = np.random.default_rng(0)
        rules: dict[str, list[ContextProfile]] = {"by position": [], "same text": []}
        for _ in range(STUDIES):
            excess = _draw_excess(rng, decay, bins[-1])  # (windows, positions)
            difficulty = rng.normal(2, DIFFICULTY, (WINDOWS, 2 * bins[-1]))
            by_position = difficulty.copy()
            by_position[:, : bins[-1]] += excess
            last = by_position[:, bins[-1] :].mean(1, keepdims=True)
            rules["by position"].append(_summarize(by_position[:, : bins[-1]] - last, bins))
            rules["same text"].append(_summarize(excess, bins))
        for rule, profiles in rules.items():
            yield f"  true {truth:5.1f}, {rule:11}: {_describe(profiles, truth)}"


def _draw_excess(rng: np.random.Generator, decay: float, longest: int) -> Floats:
    expected = EXCESS * np.exp(-np.arange(1, longest + 1) / decay)
    scatter = 2 * expected + 0.05
    return np.asarray(expected + scatter * rng.normal(size=(WINDOWS, longest)))


def _summarize(excess: Floats, bins: list[int]) -> ContextProfile:
    """Average the excess of targets (windows, positions) in bins."""
    edges = [0, *bins[:-1]]
    means = np.add.reduceat(excess, edges, axis=1) / np.diff([0, *bins])  # (windows, bins)
    stderr = means.std(0, ddof=1) / math.sqrt(len(means))
    return ContextProfile(tuple(bins), means.mean(0), stderr, 2.0)


def _describe(profiles: list[ContextProfile], truth: float) -> str:
    estimates = [profile.estimate() for profile in profiles]
    ratios = np.array([each.size for each in estimates]) / truth
    low, middle, high = np.quantile(ratios, [0.05, 0.5, 0.95], method="nearest")
    covered = np.mean([each.low / 1.1 <= truth <= each.high * 1.1 for each in estimates])
    return (
        f"{middle:.2f} ({low:.2f} to {high:.2f}), covered {covered:.0%}, "
        f"beyond half a window {np.mean(np.isinf(ratios)):.0%}"
    )
