"""Differences between architectures, paired by run and by evaluation window.

Runs of two architectures with the same replicate number read the training text in the same order,
and the evaluation windows are the same for all. So the differences d (R, W) of R runs on W windows
are paired in both directions. They follow a two-way crossed random-effects model without
replication within cells (Cornfield & Tukey, *Average Values of Mean Squares in Factorials*, 1956),
with the degrees of freedom of Satterthwaite (*An Approximate Distribution of Estimates of Variance
Components*, 1946). These are estimates, and too large where a few runs happen to agree: with two or
three runs, most studies would show differences that do not exist. Therefore a difference must also
pass Student's t-test over the runs alone and over the windows alone. Holm's correction (*A Simple
Sequentially Rejective Multiple Test Procedure*, 1979) keeps the chance of any false positive among
all comparisons to 5%.

Single runs have no p-value: a second run of either architecture would move the difference more than
other text would. The interval of such a difference covers the text alone.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from reports.stats.paired_difference import CONFIDENCE, Floats

LossesByRun = Mapping[int, Sequence[float]]
"""An architecture's loss on each evaluation window (W,), by replicate; W is 1 for a mean loss."""


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
    """

    mean: float
    errors: tuple[tuple[float, float], ...]
    runs: int
    windows: int
    p: float = 1.0
    p_adjusted: float = 1.0

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant after the correction for all comparisons."""
        return self.p_adjusted < 1 - CONFIDENCE

    @property
    def half_width(self) -> float:
        """Half the width of Student's 95% interval of the mean, without a correction."""
        errors, freedom = np.array(self.errors).T
        return float((stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * errors).max())

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


@dataclass(frozen=True)
class Comparison:
    """Pairwise differences between architectures.

    Attributes:
        names: names of the architectures, the best first.
        pairs: difference by (worse, better) name.
    """

    names: list[str]
    pairs: dict[tuple[str, str], Difference]

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

    def find_smallest_not_worse(self, sizes: Mapping[str, float]) -> str:
        """Return the smallest architecture that is not significantly worse than the best.

        Args:
            sizes: number of parameters by name; of equal sizes the better one is returned.
        """
        candidates = (name for name in self.names if not self.is_significant(name, self.best))
        return min(candidates, key=sizes.__getitem__)  # min returns the first of equals


def compare_pairwise(losses: Mapping[str, LossesByRun]) -> Comparison:
    """Compare each two architectures.

    Args:
        losses: losses by architecture, the best first; as many windows in each of them.
    """
    names = list(losses)
    pairs = [(worse, better) for better, worse in itertools.combinations(names, 2)]
    differences = [compute_difference(losses[worse], losses[better]) for worse, better in pairs]
    return Comparison(names, dict(zip(pairs, add_p_values(differences), strict=True)))


def compute_difference(first: LossesByRun, second: LossesByRun) -> Difference:
    """Compute the difference of two architectures over their common runs.

    The variance of the mean is (MS_runs + MS_windows − MS_residual) / (R W), at least the larger
    of MS_runs and MS_windows over R W. For a single run it is the variance over the windows alone,
    for a single window that over the runs alone.
    """
    common = sorted(first.keys() & second.keys())
    d = np.array([[*first[run]] for run in common], dtype=float)
    d = d - np.array([[*second[run]] for run in common], dtype=float)
    if not common:
        return Difference(math.nan, ((math.nan, math.nan),) * 3, 0, 0)
    runs, windows = d.shape
    mean = float(d.mean())
    run_means, window_means = d.mean(axis=1) - mean, d.mean(axis=0) - mean
    if min(runs, windows) == 1:
        free = max(runs, windows) - 1
        square = float((d - mean).ravel() @ (d - mean).ravel()) / free if free else math.nan
        error = math.sqrt(square / (free + 1)), free or math.nan
        return Difference(mean, (error,) * 3, runs, windows)
    residual = (d - mean - run_means[:, None] - window_means).ravel()
    squares = np.array(
        [windows * run_means @ run_means, runs * window_means @ window_means, residual @ residual]
    )
    free_by_source = np.array([runs - 1, windows - 1, (runs - 1) * (windows - 1)])
    squares = squares / free_by_source
    scaled = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    freedom = (
        float(scaled**2 / (squares**2 / free_by_source).sum())
        if scaled > 0
        else float(free_by_source[2])
    )
    errors = np.sqrt(np.array([scaled, *squares[:2]]) / d.size).tolist()
    freedoms = freedom, runs - 1, windows - 1
    return Difference(mean, tuple(zip(errors, freedoms, strict=True)), runs, windows)


def add_p_values(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences with their p-values, uncorrected and corrected by Holm's method."""
    if not differences:
        return []
    means = np.array([[each.mean] for each in differences])
    errors, freedom = np.moveaxis(np.array([each.errors for each in differences]), 2, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.abs(means) / errors  # 0 / 0 for two identical architectures
    p = np.nan_to_num(2 * stats.t.sf(ratios, freedom), nan=1.0).max(axis=1)
    p[[each.runs < 2 for each in differences]] = 1.0
    adjusted = adjust_by_holm(p)
    return [
        replace(each, p=float(alone), p_adjusted=float(corrected))
        for each, alone, corrected in zip(differences, p, adjusted, strict=True)
    ]


def adjust_by_holm(p: Floats) -> Floats:
    """Correct p-values for their number by Holm's method.

    Args:
        p: (tests,)
    """
    # statsmodels.multipletests gives the same, but collects all garbage per call: 60 ms or more.
    order = np.argsort(p)
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted
