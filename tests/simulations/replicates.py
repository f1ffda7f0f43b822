"""Simulated replicates: error rates of verdicts on architectures.

A simulated study has the effects of a real one: of the run, common to all architectures of a
replicate number; of the evaluation window; of each architecture with each run and each window; and
noise. Only what differs between architectures matters, because all comparisons are paired.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from reports.stats import Booleans, Floats
from reports.stats.estimate import adjust_by_holm
from reports.stats.replicates import (
    LEVEL,
    bound_distances,
    compute_moments,
    compute_p_values,
    compute_widths,
    estimate_variances,
)

RUN_NOISE, TEXT_NOISE, REST = 0.02, 0.002, 0.05
"""Bits per byte: standard deviation of a run; standard error of an architecture's mean over the
windows; standard deviation of one window of one run."""

MARGIN = 0.02
ARCHITECTURES = 10
CHUNK = 50
"""Studies in memory at a time."""

NOISES = {
    "equal": np.ones(ARCHITECTURES),
    "half fourfold": np.repeat([1.0, 2.0], ARCHITECTURES // 2),
    "best fourfold": np.where(np.arange(ARCHITECTURES) == 0, 2.0, 1.0),
}
"""Standard deviations of the runs of each architecture, relative to :data:`RUN_NOISE`; "fourfold"
is said of the variance."""


@dataclass(frozen=True)
class Verdicts:
    """Verdicts on the architectures of many studies after one comparison of all runs."""

    gaps: Floats  # (K,), true distances from the best
    is_worse: Booleans  # (S, K, K), whether the row is significantly worse than the column
    bounds: Floats  # (S, K), upper confidence bounds of the distances from the best

    def count_false_worse(self) -> float:
        """Return the share of studies that call an architecture worse than one it equals."""
        is_false = self.is_worse & (self.gaps[:, None] <= self.gaps)
        return float(is_false.any(axis=(1, 2)).mean())

    def count_false_as_good(self) -> float:
        """Return the share of studies that call a distance of the margin or more as good."""
        return float(((self.bounds < MARGIN) & (self.gaps >= MARGIN)).any(axis=1).mean())

    def count_exceeded_bounds(self) -> float:
        """Return the share of studies in which any distance is larger than its bound."""
        return float((self.bounds < self.gaps).any(axis=1).mean())


def _simulate_losses(
    generator: np.random.Generator, noise: Floats, runs: int, studies: int, windows: int = 64
) -> Floats:
    """Simulate the losses (S, K, R, W) of equal architectures, without what all have in common.

    ``noise`` (K,) are relative deviations of runs.
    """
    draw, size = generator.normal, len(noise)
    losses = draw(scale=REST, size=(studies, size, runs, windows))
    losses += draw(size=(studies, size, runs, 1)) * RUN_NOISE * noise[:, None, None]
    losses += draw(scale=TEXT_NOISE * windows**0.5, size=(studies, size, 1, windows))
    return losses


def _compare(losses: Floats, gaps: Floats) -> Verdicts:
    """Compare architectures with losses (S, K, R, W) to which true distances (K,) are added."""
    studies, size, runs, windows = losses.shape
    pairs = np.array(list(itertools.combinations(range(size), 2))).T
    first, second = pairs
    moments = compute_moments(losses[:, first] - losses[:, second])
    parts = estimate_variances(moments, np.full(len(first), runs), windows, pairs)
    alone, widths = (compute_widths(*parts, tail) for tail in (LEVEL / 2, LEVEL / (size - 1)))
    mean = moments.mean + gaps[first] - gaps[second]
    p = np.ones(mean.shape)
    found = np.abs(mean) > alone  # the others are not significant after a correction either
    p[found] = compute_p_values(mean[found], *(part[found] for part in parts))
    is_different = adjust_by_holm(p) < LEVEL
    is_worse = np.zeros((studies, size, size), dtype=bool)
    is_worse[:, first, second] = is_different & (mean > 0)
    is_worse[:, second, first] = is_different & (mean < 0)
    upper = np.zeros((studies, size, size))
    upper[:, first, second] = widths + mean
    upper[:, second, first] = widths - mean
    return Verdicts(gaps, is_worse, bound_distances(upper))


def simulate_verdicts(gaps: Floats, noise: str, runs: int) -> Verdicts:
    """Compare all runs of 200 studies with one of :data:`NOISES`, some at a time."""
    generator = np.random.default_rng(1)
    chunks = [
        _compare(_simulate_losses(generator, NOISES[noise], runs, CHUNK), gaps)
        for _ in range(0, 200, CHUNK)
    ]
    is_worse = np.concatenate([chunk.is_worse for chunk in chunks])
    return Verdicts(gaps, is_worse, np.concatenate([chunk.bounds for chunk in chunks]))
