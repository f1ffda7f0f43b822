"""Differences between architectures, paired by run and by evaluation window.

Runs of two architectures with the same replicate number read the training text in the same order,
and the evaluation windows are the same for all. So the differences d (R, W) of R runs on W windows
are paired in both directions, :mod:`reports.stats.crossed_model`. The degrees of freedom of that
model are estimates, and too large where a few runs happen to agree. Therefore a difference must
also pass Student's t-test over the runs alone and over the windows alone. The mean squares of the
runs are shrunk towards their common value, :mod:`reports.stats.variance_shrinkage`. Holm's
correction (*A Simple Sequentially Rejective Multiple Test Procedure*, 1979) keeps the chance of any
false positive among all comparisons to the level.

Single runs have no p-value: a second run of either architecture would move the difference more than
other text would. The interval of such a difference covers the text alone.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reports.stats.crossed_model import (
    MeanSquares,
    adjust_by_holm,
    compute_mean_squares,
    compute_p_values,
    compute_widths,
    estimate_errors,
)
from reports.stats.paired_difference import CONFIDENCE, Floats

LossesByRun = Mapping[int, Sequence[float]]
"""An architecture's loss on each evaluation window (W,), by replicate; W is 1 for a mean loss."""

LEVEL = 0.05
"""Probability of any false positive among all comparisons of a study."""


@dataclass(frozen=True)
class Difference:
    """Difference between two architectures.

    Attributes:
        mean: mean loss of the first minus that of the second; NaN without a common run.
        errors: (standard error of the mean, degrees of freedom) in the crossed model, over the runs
            alone, and over the windows alone. All are equal for one run or one window, and NaN for
            a single number.
        runs: number R of common runs.
        windows: number W of common evaluation windows.
        p: two-sided p-value of a zero mean, the largest of the three tests; 1 with fewer than two
            runs.
        p_adjusted: p-value after Holm's correction for all comparisons of the study.
        level: p-value below which the difference is significant.
    """

    mean: float
    errors: tuple[tuple[float, float], ...]
    runs: int
    windows: int
    p: float = 1.0
    p_adjusted: float = 1.0
    level: float = LEVEL

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant after the correction for all comparisons."""
        return self.p_adjusted < self.level

    @property
    def half_width(self) -> float:
        """Half the width of Student's 95% interval of the mean, without a correction."""
        return self._width((1 - CONFIDENCE) / 2)

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half_width

    @property
    def negated(self) -> "Difference":
        """The difference of the second minus the first."""
        return replace(self, mean=-self.mean)

    def upper_bound(self, level: float) -> float:
        """Return the upper confidence bound of the mean; infinite with fewer than two runs."""
        return self.mean + self._width(level) if self.runs > 1 else math.inf

    def _width(self, tail: float) -> float:
        errors, freedom = np.array(self.errors)[None, :, 0], np.array(self.errors)[None, :, 1]
        return float(compute_widths(errors, freedom, tail)[0])


@dataclass(frozen=True)
class Comparison:
    """Pairwise differences between architectures.

    Attributes:
        names: names of the architectures, the best first.
        pairs: difference by (worse, better) name.
        level: probability of any false positive among them.
        count: number of architectures for which the tests are corrected.
    """

    names: list[str]
    pairs: dict[tuple[str, str], Difference]
    level: float
    count: int

    @property
    def best(self) -> str:
        """Name of the best architecture."""
        return self.names[0]

    @property
    def generalizes_over_runs(self) -> bool:
        """Whether the comparison covers the variation between training runs."""
        return any(each.runs > 1 for each in self.pairs.values())

    @property
    def generalizes_over_text(self) -> bool:
        """Whether the comparison covers the variation between texts."""
        return any(each.windows > 1 for each in self.pairs.values())

    @property
    def significant_count(self) -> int:
        """Number of pairs that differ significantly."""
        return sum(each.is_significant for each in self.pairs.values())

    def between(self, first: str, second: str) -> Difference | None:
        """Return the difference of the first minus the second; None if not compared."""
        if (first, second) in self.pairs:
            return self.pairs[first, second]
        reverse = self.pairs.get((second, first))
        return reverse.negated if reverse else None

    def is_significant(self, first: str, second: str) -> bool:
        """Return whether two architectures differ significantly."""
        difference = self.between(first, second)
        return difference is not None and difference.is_significant

    def is_better(self, first: str, second: str) -> bool:
        """Return whether the first architecture is significantly better than the second."""
        difference = self.between(first, second)
        return difference is not None and difference.is_significant and difference.mean < 0


def compare_pairwise(
    losses: Mapping[str, LossesByRun], level: float = LEVEL, count: int | None = None
) -> Comparison:
    """Compare each two architectures.

    Args:
        losses: losses by architecture, the best first; as many windows in each of them.
        level: probability of any false positive.
        count: number of architectures to correct for; None for that of the losses. A later look at
            some of a study's architectures corrects for all of them.
    """
    names = list(losses)
    count = count or len(names)
    pairs = [(worse, better) for better, worse in itertools.combinations(names, 2)]
    differences = [_subtract(losses[worse], losses[better]) for worse, better in pairs]
    tested = _add_p_values(_estimate(differences, len(names)), level, math.comb(count, 2))
    return Comparison(names, dict(zip(pairs, tested, strict=True)), level, count)


def find_difference(
    comparisons: Iterable[Comparison], first: str, second: str
) -> Difference | None:
    """Return the difference of two architectures in the first comparison that has both."""
    found = (each.between(first, second) for each in comparisons)
    return next((each for each in found if each is not None), None)


def compute_difference(first: LossesByRun, second: LossesByRun) -> Difference:
    """Compute the difference of two architectures over their common runs, without a test."""
    (difference,) = compute_differences([first], second)
    return difference


def compute_differences(each: Iterable[LossesByRun], other: LossesByRun) -> list[Difference]:
    """Compute the difference of each architecture to another one, without a test.

    Their losses have the same number of windows.
    """
    return _estimate([_subtract(losses, other) for losses in each], 2)


def _subtract(first: LossesByRun, second: LossesByRun) -> Floats:
    """Return the differences (R, W) of two architectures over their common runs."""
    common = sorted(first.keys() & second.keys())
    if not common:
        return np.empty((0, 0))
    d = np.array([[*first[run]] for run in common], dtype=float)
    return np.asarray(d - np.array([[*second[run]] for run in common], dtype=float))


def _estimate(differences: Sequence[Floats], architectures: int) -> list[Difference]:
    """Estimate the mean of each pair's differences (R, W), and its standard errors."""
    counted = [each for each in differences if each.size]
    if not counted:
        return [_nothing() for _ in differences]
    squares = _compute_squares(counted)
    runs = np.array([len(each) for each in counted])
    windows = counted[0].shape[1]
    errors, freedom = estimate_errors(squares, runs, windows, architectures)
    found = iter(zip(squares.mean, errors, freedom, runs, strict=True))
    result = []
    for each in differences:
        if not each.size:
            result.append(_nothing())
            continue
        mean, error, free, count = next(found)
        pair = tuple(zip(error.tolist(), free.tolist(), strict=True))
        result.append(Difference(float(mean), pair, int(count), windows))
    return result


def _compute_squares(differences: Sequence[Floats]) -> MeanSquares:
    """Compute the mean squares (P,) of each pair's differences (R, W), at once for each shape."""
    places: dict[tuple[int, ...], list[int]] = {}
    for i, each in enumerate(differences):
        places.setdefault(each.shape, []).append(i)
    squares = np.empty((len(MeanSquares._fields), len(differences)))
    for chosen in places.values():
        squares[:, chosen] = compute_mean_squares(np.stack([differences[i] for i in chosen]))
    return MeanSquares(*squares)


def _nothing() -> Difference:
    return Difference(math.nan, ((math.nan, math.nan),) * 3, 0, 0)


def _add_p_values(differences: Sequence[Difference], level: float, total: int) -> list[Difference]:
    """Return the differences with their p-values, uncorrected and corrected."""
    if not differences:
        return []
    mean = np.array([each.mean for each in differences])
    errors, freedom = np.moveaxis(np.array([each.errors for each in differences]), 2, 0)
    p = compute_p_values(mean, errors, freedom)
    p[[each.runs < 2 for each in differences]] = 1.0
    return [
        replace(each, p=float(alone), p_adjusted=float(corrected), level=level)
        for each, alone, corrected in zip(differences, p, adjust_by_holm(p, total), strict=True)
    ]
