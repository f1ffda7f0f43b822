"""Runs that solve a task or fail: shares of pairs, of one architecture, and of several.

A pair is two runs that differ in one option alone. It is rescued if only the run with the option is
solved, and ruined if only the one without it is. An option without an effect rescues and ruins
pairs equally often: the mid-p variant of McNemar's test (Fagerland, Lydersen & Laake, *The McNemar
Test for Binary Matched-Pairs Data: Mid-p and Asymptotic Are Better Than Exact Conditional*, BMC
Medical Research Methodology 13, 2013). The interval of the difference of the shares is that of
Bonett & Price (*Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on
Paired Data*, Journal of Educational and Behavioral Statistics 37, 2012). Losses of such a task are
mixtures, which a mean does not describe; they are compared by their ranks.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from reports.stats import Floats, Integers
from reports.stats.estimate import CONFIDENCE, adjust_by_holm

MAX_EXACT = 50
"""Pairs up to which a test of ranks is exact; with ties it is slightly cautious."""

MIN_RANKED = 5
"""Pairs with different losses from which they are tested: no fewer can be significant."""


# ------------------------------------------------------------------ pairs of runs


@dataclass(frozen=True)
class ShareChange:
    """Change of the share of runs that are solved, over pairs of runs.

    Attributes:
        pairs: number of pairs with two outcomes.
        rescued: number of those whose second run alone is solved.
        ruined: number of those whose first run alone is solved.
        error: standard error of the difference of the shares; NaN without pairs.
        center: difference of the shares with two pairs added, one rescued and one ruined.
        limit: largest difference there can be.
        options: number of changes that are tested together.
    """

    pairs: int
    rescued: int
    ruined: int
    error: float
    center: float
    limit: float = 1.0
    options: int = 1

    @classmethod
    def from_differences(cls, differences: Floats, limit: float = 1.0) -> Self:
        """Count pairs by the outcome of the second run less that of the first: 1, 0 or −1.

        Args:
            differences: (pairs,), or differences of the differences of two pairs each: an
                interaction, of which the test asks whether it is as often positive as negative.
            limit: largest difference there can be: 2 for these.
        """
        size = len(differences) + 2
        center = float(differences.sum()) / size
        variance = (float(differences @ differences) + 2) / size - center**2
        return cls(
            pairs=len(differences),
            rescued=int((differences > 0).sum()),
            ruined=int((differences < 0).sum()),
            error=math.sqrt(variance / size) if size > 2 else math.nan,
            center=center,
            limit=limit,
        )

    @property
    def mean(self) -> float:
        """Difference of the shares; NaN without pairs."""
        return self.center * (self.pairs + 2) / self.pairs if self.pairs else math.nan

    @property
    def needed(self) -> int:
        """Least number of pairs, all rescued or all ruined, that are significant."""
        return count_needed_pairs(self.options)

    @property
    def p(self) -> float:
        """Mid-p value of McNemar's test that pairs are rescued and ruined equally often."""
        from scipy import special

        changed = self.rescued + self.ruined
        fewer = min(self.rescued, self.ruined)
        as_few = float(special.bdtr(fewer, changed, 0.5))
        return as_few + (float(special.bdtr(fewer - 1, changed, 0.5)) if fewer else 0.0)

    @property
    def interval(self) -> tuple[float, float]:
        """Bonett and Price's 95% interval of the difference of the shares."""
        from scipy import special

        half_width = float(special.ndtri((1 + CONFIDENCE) / 2)) * self.error
        ends = np.array([self.center - half_width, self.center + half_width])
        low, high = ends.clip(-self.limit, self.limit).tolist()
        return low, high


def count_needed_pairs(options: int) -> int:
    """Return the least number of pairs, all rescued, that are significant among some options."""
    return math.floor(math.log2(options / (1 - CONFIDENCE))) + 1


class SignedRanks(NamedTuple):
    """Losses of pairs of runs, compared by Wilcoxon's signed-rank test.

    Attributes:
        lower: number of pairs in which the second loss is lower.
        pairs: number of pairs with two losses.
        p: p-value of losses that are lower as often as higher; 1 with too few pairs to test.
    """

    lower: int
    pairs: int
    p: float


def rank_pairs(before: Floats, after: Floats) -> SignedRanks:
    """Compare the losses (pairs,) of pairs of runs by their logarithms, if all are positive.

    The loss of a run that diverged is infinite: higher than that of any other run.
    """
    if (before > 0).all() and (after > 0).all():
        before, after = np.log(before), np.log(after)
    with np.errstate(invalid="ignore"):
        differences = np.where(before == after, 0.0, after - before)
    changed = differences[differences != 0]
    p = 1.0
    if len(changed) >= MIN_RANKED:
        from scipy import stats  # takes a second

        method = "exact" if len(changed) <= MAX_EXACT else "asymptotic"
        p = float(stats.wilcoxon(changed, method=method).pvalue)
    return SignedRanks(int((changed < 0).sum()), len(differences), p)


# ------------------------------------------------------------------ architectures


def place_groups(groups: Integers, outcomes: Floats, losses: Floats) -> Integers:
    """Return the place of the group of each run (runs,): most solved first, then lowest median.

    Args:
        groups: (runs,), index of the group of each run.
        outcomes: (runs,), 1 for a run that is solved, 0 for another, NaN if that is not known.
        losses: (runs,), infinite for one that diverged, NaN if it is not known.
    """
    import pandas as pd

    solved = pd.Series(outcomes).groupby(groups).sum()
    medians = pd.Series(losses).groupby(groups).median()
    order = np.lexsort((medians, -solved))  # NaN is last
    places = pd.Series(np.arange(len(order)), solved.index[order])
    return places[groups].to_numpy()


class SolvedRuns(NamedTuple):
    """How many runs of an architecture are solved.

    Attributes:
        solved: number of runs that are solved.
        runs: number of runs of which that is known.
    """

    solved: int
    runs: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the share (Wilson, *Probable Inference*, JASA 22, 1927)."""
        from scipy import stats

        interval = stats.binomtest(self.solved, self.runs).proportion_ci(CONFIDENCE, "wilson")
        return float(interval.low), float(interval.high)


def compare_architectures(solved: Mapping[str, SolvedRuns]) -> dict[tuple[str, str], float]:
    """Return the p-value of equal shares of each two architectures.

    By Fisher's exact test, corrected for their number by Holm's method. As replicates of one number
    read the same data, they are alike and not opposed, so that the test errs on the safe side.
    """
    from scipy import stats

    pairs = list(itertools.combinations(solved, 2))
    tables = [[[n, runs - n] for n, runs in (solved[name] for name in pair)] for pair in pairs]
    p = np.array([stats.fisher_exact(table).pvalue for table in tables])
    return dict(zip(pairs, adjust_by_holm(p).tolist(), strict=True))


def count_needed_runs(comparisons: int) -> int:
    """Return the least number of runs of each of two architectures that can differ.

    It is that of which all of one and none of the other are solved, and that are significant among
    some comparisons.
    """
    runs = 1
    while 2 / math.comb(2 * runs, runs) > (1 - CONFIDENCE) / comparisons:
        runs += 1
    return runs
