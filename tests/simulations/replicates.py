"""Error rates and power of verdicts on architectures, in simulated studies.

A simulated study has the effects of a real one: of the run, common to all architectures of a
replicate number; of the evaluation window; of each architecture with each run and each window; and
noise. Only what differs between architectures matters, because all comparisons are paired. Studies
are simulated many at a time.
"""

import itertools
from collections.abc import Sequence
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

TEXT_NOISES = (0.0, TEXT_NOISE, 0.01)
"""Standard errors over the windows of which tables are printed: none, as measured, and large."""

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

    means: Floats  # (S, K)
    is_worse: Booleans  # (S, K, K), whether the row is significantly worse than the column
    bounds: Floats  # (S, K), upper confidence bounds of the distances from the best

    @property
    def is_as_good(self) -> Booleans:
        """Whether each architecture (S, K) is as good as the best."""
        return np.asarray(self.bounds < MARGIN)


def simulate_losses(
    generator: np.random.Generator,
    noise: Floats,
    runs: int,
    studies: int,
    windows: int = 64,
    text_noise: float = TEXT_NOISE,
) -> Floats:
    """Simulate the losses (S, K, R, W) of equal architectures, without what all have in common.

    ``noise`` (K,) are relative deviations of runs.
    """
    draw, size = generator.normal, len(noise)
    losses = draw(scale=REST, size=(studies, size, runs, windows))
    losses += draw(size=(studies, size, runs, 1)) * RUN_NOISE * noise[:, None, None]
    losses += draw(scale=text_noise * windows**0.5, size=(studies, size, 1, windows))
    return losses


def compare(losses: Floats, designs: Sequence[Floats]) -> list[Verdicts]:
    """Compare the architectures of many studies by their losses (S, K, R, W).

    Args:
        losses: losses of equal architectures.
        designs: true distances from the best (K,) that are added, for each of the results.
    """
    studies, size, runs, windows = losses.shape
    pairs = np.array(list(itertools.combinations(range(size), 2))).T
    first, second = pairs
    moments = compute_moments(losses[:, first] - losses[:, second])
    parts = estimate_variances(moments, np.full(len(first), runs), windows, pairs)
    alone, widths = (compute_widths(*parts, tail) for tail in (LEVEL / 2, LEVEL / (size - 1)))
    results = []
    for gaps in designs:
        mean, p = moments.mean + gaps[first] - gaps[second], np.ones(moments.mean.shape)
        found = np.abs(mean) > alone  # the others are not significant after a correction either
        p[found] = compute_p_values(mean[found], *(part[found] for part in parts))
        is_different = adjust_by_holm(p) < LEVEL
        is_worse, upper = (
            np.zeros((studies, size, size), dtype=bool),
            np.zeros((studies, size, size)),
        )
        is_worse[:, first, second] = is_different & (mean > 0)
        is_worse[:, second, first] = is_different & (mean < 0)
        upper[:, first, second], upper[:, second, first] = widths + mean, widths - mean
        means = losses.mean(axis=(2, 3)) + gaps
        results.append(Verdicts(means, is_worse, bound_distances(upper)))
    return results


def simulate_verdicts(
    designs: Sequence[Floats],
    noise: Floats,
    runs: int,
    studies: int,
    text_noise: float = TEXT_NOISE,
) -> list[Verdicts]:
    """Compare all runs of many studies, for each design; see :func:`compare`."""
    generator = np.random.default_rng(1)
    chunks = [
        compare(
            simulate_losses(generator, noise, runs, min(CHUNK, studies - i), text_noise=text_noise),
            designs,
        )
        for i in range(0, studies, CHUNK)
    ]
    return [
        Verdicts(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0]))
        )
        for parts in zip(*chunks, strict=True)
    ]


def count_false_worse(verdicts: Verdicts, gaps: Floats) -> float:
    """Return the share of studies in which an architecture is called worse than one it equals."""
    is_false = verdicts.is_worse & (gaps[:, None] <= gaps)
    return float(is_false.any(axis=(1, 2)).mean())


def count_false_as_good(verdicts: Verdicts, gaps: Floats) -> float:
    """Return the share of studies in which a distance of the margin or more is called as good."""
    return float((verdicts.is_as_good & (gaps >= MARGIN)).any(axis=1).mean())
