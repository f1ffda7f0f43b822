"""Error rates and power of verdicts on architectures, in simulated studies.

A simulated study has the effects of a real one: of the run, common to all architectures of a
replicate number; of the evaluation window; of each architecture with each run and each window; and
noise. Only what differs between architectures matters, because all comparisons are paired. Studies
are simulated many at a time.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reports.stats import Booleans, Floats
from reports.stats.looks import PlannedLook, take_look
from reports.stats.replicates import (
    LEVEL,
    adjust_by_holm,
    bound_distances,
    compute_moments,
    compute_p_values,
    compute_widths,
    estimate_variances,
)
from studies.settings import DEFAULT_LOOKS

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
class Look:
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


def compare(losses: Floats, designs: Sequence[Floats]) -> list[Look]:
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
    looks = []
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
        looks.append(Look(means, is_worse, bound_distances(upper)[0]))
    return looks


def simulate_looks(
    designs: Sequence[Floats],
    noise: Floats,
    runs: int,
    studies: int,
    text_noise: float = TEXT_NOISE,
) -> list[Look]:
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
        Look(*(np.concatenate([getattr(each, name) for each in looks]) for name in vars(looks[0])))
        for looks in zip(*chunks, strict=True)
    ]


def count_false_worse(look: Look, gaps: Floats) -> float:
    """Return the share of studies in which an architecture is called worse than one it equals."""
    is_false = look.is_worse & (gaps[:, None] <= gaps)
    return float(is_false.any(axis=(1, 2)).mean())


def count_false_as_good(look: Look, gaps: Floats) -> float:
    """Return the share of studies in which a distance of the margin or more is called as good."""
    return float((look.is_as_good & (gaps >= MARGIN)).any(axis=1).mean())


@dataclass(frozen=True)
class SequentialRun:
    """One study that added runs until it was decided."""

    verdicts: list[str]
    runs: int  # of all architectures
    looks: int


def run_until_decided(losses: Floats, looks: Sequence[int] = DEFAULT_LOOKS) -> SequentialRun:
    """Add the runs of one study until it is decided, with the code that real studies use."""
    numbers = {str(i): i for i in range(len(losses))}
    compared, total, records = set(numbers.values()), 0, list[PlannedLook]()
    for previous, runs in itertools.pairwise((0, *looks)):
        total += (runs - previous) * len(compared)
        known: Mapping[str, Mapping[int, Sequence[float]]] = {
            name: dict(enumerate(losses[i, :runs])) for name, i in numbers.items() if i in compared
        }
        _, record = take_look(known, numbers, looks, MARGIN, records)
        records.append(record)
        compared = set(record.continued)
        if not compared:
            break
    return SequentialRun([*records[-1].verdicts.values()], total, len(records))


def has_false_verdict(run: SequentialRun, gaps: Floats) -> bool:
    """Return whether one of the best is called worse, or one beyond the margin as good."""
    return any(
        (verdict == "worse" and gap <= 0) or (verdict == "as good" and gap >= MARGIN)
        for verdict, gap in zip(run.verdicts, gaps, strict=True)
    )
