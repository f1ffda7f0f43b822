"""Networks told apart: their differences lane by lane on the same text, over the same runs.

Runs of two architectures with the same number read their text in the same order, and the lanes of
held-out text are the same for all: the differences d (R, L) of R runs on L lanes are paired in both
directions. They are taken as a two-way crossed random-effects model without replication within
cells (Cornfield & Tukey, *Average Values of Mean Squares in Factorials*, 1956): other runs, and
other text, would have given others. The degrees of freedom are Satterthwaite's (*An Approximate
Distribution of Estimates of Variance Components*, 1946). They are estimates too: where a few runs
happen to lie close together, they come out many, and of two or three runs most studies would show
differences that there are not. So a difference must stand up to Student's test over the runs alone
and to that over the lanes alone as well. Of many comparisons, the chance that any of them is said
to be a difference without being one is kept to 5% by Holm's correction (*A Simple Sequentially
Rejective Multiple Test Procedure*, 1979).

Single runs have no p-value: a second run of either architecture would move the difference by more
than other text would. The interval of such a difference covers the text alone.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from reports.stats.effects import CONFIDENCE

Floats = NDArray[np.float64]

LossesByRun = Mapping[int, Sequence[float]]
"""Of an architecture: by the run's number, the loss on each lane (L,), or one number for all."""


@dataclass(frozen=True)
class Difference:
    """How far two architectures are apart.

    Attributes:
        mean: of the one less the other; negative if the one is better. NaN without a common run.
        errors: (standard error of the mean, its degrees of freedom) in the crossed model, over the
            runs alone, and over the lanes alone; all the same where there is one run or one lane,
            and NaN where there is a single number.
        runs: R, that both have.
        windows: L, that both have.
        p: two-sided, that the mean is zero, the largest by these errors; 1 where nothing is known,
            and with fewer than two runs.
        adjusted: the same by Holm's correction over the comparisons that it is one of.
    """

    mean: float
    errors: tuple[tuple[float, float], ...]
    runs: int
    windows: int
    p: float = 1.0
    adjusted: float = 1.0

    @property
    def is_significant(self) -> bool:
        """Whether there is a difference, all comparisons considered."""
        return self.adjusted < 1 - CONFIDENCE

    @property
    def margin(self) -> float:
        """Half the width of Student's 95% interval of the mean, of this comparison alone."""
        errors, freedom = np.array(self.errors).T
        return float((stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * errors).max())

    @property
    def low(self) -> float:
        """The lower end of that interval."""
        return self.mean - self.margin

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.margin

    @property
    def turned(self) -> "Difference":
        """The same of the other less the one."""
        return replace(self, mean=-self.mean)


@dataclass(frozen=True)
class Comparison:
    """Architectures and what tells them apart.

    Attributes:
        names: of the architectures, the best first.
        pairs: what a worse one has more than a better one, by both their names.
    """

    names: list[str]
    pairs: dict[tuple[str, str], Difference]

    @property
    def best(self) -> str:
        """The first of the names."""
        return self.names[0]

    @property
    def generalizes_over_runs(self) -> bool:
        """Whether it says something of training again."""
        return any(each.runs > 1 for each in self.pairs.values())

    @property
    def generalizes_over_text(self) -> bool:
        """Whether it says something of other text."""
        return any(each.windows > 1 for each in self.pairs.values())

    def between(self, one: str, other: str) -> Difference | None:
        """Return what one has more than the other; None if that was not compared."""
        if (one, other) in self.pairs:
            return self.pairs[one, other]
        found = self.pairs.get((other, one))
        return found.turned if found else None

    def is_significant(self, one: str, other: str) -> bool:
        """Tell whether two architectures are known to differ."""
        found = self.between(one, other)
        return found is not None and found.is_significant

    def smallest(self, sizes: Mapping[str, float]) -> str:
        """Return the smallest that is not told apart from the best; of equals the better one.

        Args:
            sizes: the parameters of each.
        """
        equal = (name for name in self.names if not self.is_significant(name, self.best))
        return min(equal, key=sizes.__getitem__)  # of equals the first


def compare(runs: Mapping[str, LossesByRun]) -> Comparison:
    """Compare each two architectures.

    Args:
        runs: of each architecture, the best first; as many lanes in all of them.
    """
    names = list(runs)
    pairs = [(worse, better) for better, worse in itertools.combinations(names, 2)]
    found = [paired_difference(runs[worse], runs[better]) for worse, better in pairs]
    return Comparison(names, dict(zip(pairs, judged(found), strict=True)))


def paired_difference(one: LossesByRun, other: LossesByRun) -> Difference:
    """Return what one architecture has more than another over the runs that both have.

    The variance of the mean is (MS_runs + MS_lanes − MS_residual) / (R L), and not less than the
    larger of MS_runs and MS_lanes over R L. Of a single run it is that over the lanes alone, and
    of a single lane that over the runs alone: the result then says nothing of other runs, or of
    other text.
    """
    common = sorted(one.keys() & other.keys())
    d = np.array([[*one[run]] for run in common], dtype=float)
    d = d - np.array([[*other[run]] for run in common], dtype=float)
    if not common:
        return Difference(math.nan, ((math.nan, math.nan),) * 3, 0, 0)
    runs, windows = d.shape
    mean = float(d.mean())
    of_runs, of_lanes = d.mean(axis=1) - mean, d.mean(axis=0) - mean
    if min(runs, windows) == 1:
        free = max(runs, windows) - 1
        square = float((d - mean).ravel() @ (d - mean).ravel()) / free if free else math.nan
        alone = math.sqrt(square / (free + 1)), free or math.nan
        return Difference(mean, (alone,) * 3, runs, windows)
    residual = (d - mean - of_runs[:, None] - of_lanes).ravel()
    squares = np.array(
        [windows * of_runs @ of_runs, runs * of_lanes @ of_lanes, residual @ residual]
    )
    free_of = np.array([runs - 1, windows - 1, (runs - 1) * (windows - 1)])
    squares = squares / free_of
    scaled = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    freedom = float(scaled**2 / (squares**2 / free_of).sum()) if scaled > 0 else float(free_of[2])
    errors = np.sqrt(np.array([scaled, *squares[:2]]) / d.size).tolist()
    freedoms = freedom, runs - 1, windows - 1
    return Difference(mean, tuple(zip(errors, freedoms, strict=True)), runs, windows)


def judged(differences: Sequence[Difference]) -> list[Difference]:
    """Return differences with their p-values, each alone and all considered (Holm)."""
    if not differences:
        return []
    means = np.array([[each.mean] for each in differences])
    errors, freedom = np.moveaxis(np.array([each.errors for each in differences]), 2, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.abs(means) / errors  # of two that are one, 0 / 0
    p = np.nan_to_num(2 * stats.t.sf(ratios, freedom), nan=1.0).max(axis=1)
    p[[each.runs < 2 for each in differences]] = 1.0
    order = np.argsort(p)
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return [
        replace(each, p=float(alone), adjusted=float(all_considered))
        for each, alone, all_considered in zip(differences, p, adjusted, strict=True)
    ]
