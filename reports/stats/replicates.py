"""Replicated architectures: the differences between them, and verdicts.

*Differences.* Two architectures are compared over the R replicates and W evaluation windows that
both have. The variance of their mean difference has two parts: that of the runs, and that of the
windows beyond the noise of single runs, (mean square of windows - mean square of the rest) / (R W).
The variance of the runs of one pair has R - 1 degrees of freedom, too few with three runs. It is
moderated as in limma (Smyth, *Linear Models and Empirical Bayes Methods for Assessing Differential
Expression in Microarray Experiments*, 2004): the architectures' own variances say how far the
variance of one of them tells about that of another. The interval of the mean difference is that of
Banerjee (*Approximate Confidence Interval for Linear Functions of Means of k Populations When the
Population Variances Are Not Equal*, Sankhya 22, 1960),

    mean +- sqrt(t_runs^2 var_runs + t_windows^2 var_windows),

each part with Student's quantile for its own degrees of freedom. It holds its level for any ratio
of the parts; Satterthwaite's degrees of freedom do not where a few runs happen to agree. Single
runs have no p-value, and their interval covers the text alone.

*Verdicts.* Which architecture is the best is unknown: the best mean may be luck.

- *Worse*: another architecture is significantly better. All pairs are tested, with a probability of
  at most 5% of any false difference (Holm, *A Simple Sequentially Rejective Multiple Test
  Procedure*, 1979).
- *As good*: it is at most a margin worse than the best, whichever that is: Hsu's multiple
  comparison with the best (*Simultaneous Confidence Intervals for All Distances from the "Best"*,
  Annals of Statistics 9, 1981; *Constrained Simultaneous Confidence Intervals for Multiple
  Comparisons with the Best*, Annals of Statistics 12, 1984). Let b be the best of K, and let the
  K - 1 upper confidence bounds U(i, b) of the differences between i and b hold together with a
  probability of 95%, by Bonferroni's inequality each with 1 - 5% / (K - 1). While they hold, b is
  among the architectures C that none is better than by these bounds, and the distance of i from b
  is at most the largest U(i, j) over j in C. So these distances hold together for all i, without
  knowing b. An architecture may be significantly worse by less than the margin; it is as good.

Functions that take arrays have many studies as leading axes; P counts the pairs of a study.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from reports.stats import Floats, Integers
from reports.stats.estimate import Estimate, adjust_by_holm

LossesByRun = Mapping[int, Sequence[float]]
"""An architecture's loss on each evaluation window (W,), by replicate; W is 1 for a mean loss."""

LEVEL = 0.05
"""Probability of any false positive among all comparisons of a study."""

CAUTION = 0.5
"""Standard errors by which the scatter of the variances is raised before they are moderated.

Pooled variances, or single ones moderated before they are summed, have up to 14% false differences
where one architecture varies more than the others.

Chosen by simulations: where half of ten architectures have four times the variance of the others,
studies of five runs have 5% false differences without it, 4% with it."""

MIN_ARCHITECTURES = 6
"""Architectures needed to moderate variances: in simulations, five have 5 to 7% false differences,
six 3 to 5%."""


# ------------------------------------------------------------------ differences


class PairMoments(NamedTuple):
    """Differences between the architectures of P pairs, each an array (..., P).

    Attributes:
        of_runs: variance of a run's difference; 0 for one run, of which it is unknown.
        of_windows: variance of the mean over the windows, beyond that of the runs.
    """

    mean: Floats
    of_runs: Floats
    of_windows: Floats


def compute_moments(d: Floats) -> PairMoments:
    """Compute the moments (..., P) of differences (..., P, R, W) in R runs on W windows."""
    runs, windows = d.shape[-2:]
    by_run, by_window = d.mean(axis=-1), d.mean(axis=-2)
    mean = by_run.mean(axis=-1)
    of_runs, of_windows = np.zeros_like(mean), np.zeros_like(mean)
    if runs > 1:
        of_runs = by_run.var(axis=-1, ddof=1)
    if windows > 1:
        of_windows = by_window.var(axis=-1, ddof=1) / windows
    if runs > 1 and windows > 1:
        rest = d - by_run[..., None] - by_window[..., None, :] + mean[..., None, None]
        of_rest = (rest**2).sum(axis=(-2, -1)) / ((runs - 1) * (windows - 1) * runs * windows)
        of_windows = np.maximum(of_windows - of_rest, 0)
    return PairMoments(mean, of_runs, of_windows)


def estimate_variances(
    moments: PairMoments, runs: Integers, windows: int, pairs: Integers
) -> tuple[Floats, Floats]:
    """Estimate the parts (..., P, 2) of the variances of mean differences, of runs and of windows.

    Args:
        moments: moments of the pairs.
        runs: number R of runs of each pair (P,).
        windows: number W of windows.
        pairs: indices of the architectures of each pair (2, P).

    Returns:
        The parts, and their degrees of freedom. A part of zero has the degrees of the other one.
    """
    of_runs = moments.of_runs.copy()
    degrees = np.broadcast_to(np.maximum(runs - 1.0, 0), of_runs.shape).copy()
    is_repeated = runs > 1
    of_runs[..., is_repeated], degrees[..., is_repeated] = moderate_variances(
        of_runs[..., is_repeated], runs.astype(float)[is_repeated] - 1, pairs[:, is_repeated]
    )
    variances = np.stack([of_runs / np.maximum(runs, 1), moments.of_windows], axis=-1)
    both = np.stack([degrees, np.full(of_runs.shape, max(0.0, windows - 1.0))], axis=-1)
    is_zero = ~variances.any(axis=-1, keepdims=True)
    other = np.where(is_zero, both.max(axis=-1, keepdims=True), both[..., ::-1])
    return variances, np.where(variances > 0, both, other)


def compute_widths(variances: Floats, degrees: Floats, tail: float | Floats) -> Floats:
    """Return the distance (..., P) of a confidence bound from the mean; NaN if it is unknown.

    Args:
        variances: parts of the variance of the mean (..., P, 2).
        degrees: their degrees of freedom (..., P, 2).
        tail: probability that the true mean lies beyond the bound; one, or one for each (..., P).
    """
    from scipy import special

    degrees = np.where(degrees > 0, degrees, np.nan)
    parts = np.sqrt(variances) * special.stdtrit(degrees, np.asarray(tail)[..., None])
    return np.asarray(np.hypot(parts[..., 0], parts[..., 1]))


def compute_p_values(mean: Floats, variances: Floats, degrees: Floats) -> Floats:
    """Return the two-sided p-value (..., P) of each mean: that at which its interval ends at zero.

    Args:
        mean: mean differences (..., P).
        variances: parts of their variances (..., P, 2).
        degrees: degrees of freedom of the parts (..., P, 2).
    """
    from scipy import special

    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.abs(mean) / np.sqrt(variances.sum(axis=-1))  # 0 / 0 for identical losses
    # It lies between those of Student's test with the fewer and with the more degrees of freedom.
    ends = (2 * special.stdtr(pick(degrees, axis=-1), -ratios) for pick in (np.max, np.min))
    low, high = (np.log(np.maximum(end, 1e-100)) for end in ends)
    for _ in range(40):
        middle = (low + high) / 2
        is_above = compute_widths(variances, degrees, np.exp(middle) / 2) > np.abs(mean)
        low, high = np.where(is_above, middle, low), np.where(is_above, high, middle)
    return np.where(np.isnan(ratios), 1.0, np.where(np.isinf(ratios), 0.0, np.exp(low)))


def moderate_variances(
    variances: Floats, degrees: Floats, pairs: Integers
) -> tuple[Floats, Floats]:
    """Moderate the variances of pairs of architectures by what all of them have in common.

    The variance of a pair is that of one architecture plus that of the other. Smyth's prior, scaled
    inverse chi-squared with d0 degrees of freedom and scale s0², is that of single architectures,
    so that of a pair has twice the scale. With d degrees of freedom, the variance s² of a pair
    becomes

        (d0 2 s0² + d s²) / (d0 + d),  with d0 + d degrees of freedom.

    Args:
        variances: variances (..., P) of the differences of the runs of each pair.
        degrees: their degrees of freedom (P,): runs less one, at least 1.
        pairs: indices of the architectures of each pair (2, P).

    Returns:
        The moderated variances (..., P) and their degrees of freedom (..., P). Returned as they
        are: those of fewer than :data:`MIN_ARCHITECTURES`, of a study in which most are zero, and
        of pairs with fewer runs than most. An architecture that lost runs is often an unstable one.
    """
    free = np.broadcast_to(degrees, variances.shape).astype(float)
    is_chosen = degrees >= np.median(degrees) if len(degrees) else np.zeros(0, dtype=bool)
    names, places = np.unique(pairs[:, is_chosen], return_inverse=True)
    size = len(names)
    if size < MIN_ARCHITECTURES:
        return variances, free
    chosen = variances[..., is_chosen]
    given = degrees[is_chosen]
    rows, columns = places.reshape(2, -1)
    between = np.broadcast_to(
        chosen.mean(axis=-1)[..., None, None], (*chosen.shape[:-1], size, size)
    ).copy()
    between[..., rows, columns] = between[..., columns, rows] = chosen
    between[..., range(size), range(size)] = 0
    most = np.zeros(size)
    for ends in (rows, columns):
        np.maximum.at(most, ends, given)
    prior, scale = _estimate_prior(_separate_variances(between), most)
    with np.errstate(invalid="ignore"):  # an infinite prior
        weight = np.where(np.isinf(prior), 1.0, prior / (prior + given))
    results = variances.copy(), free
    results[0][..., is_chosen] = weight * 2 * scale + (1 - weight) * chosen
    results[1][..., is_chosen] = np.minimum(prior + given, (size - 1) * float(given.mean()))
    return results


def _separate_variances(between: Floats) -> Floats:
    """Return the variances (..., K) of single architectures, given those of pairs (..., K, K).

    They are the residual variances in the additive model of architecture and replicate. The effect
    of a replicate is a mean over the architectures in which noisy ones have less weight: they would
    hide that the others agree. No weight is more than twice that of the median.
    """
    weights = np.full(between.shape[:-1], 1 / between.shape[-1])
    for _ in range(4):
        around = (between @ weights[..., None])[..., 0]
        spread = (weights * around).sum(axis=-1, keepdims=True) / 2
        own = np.maximum(around - spread, 0) / (1 - weights)
        middle = np.median(own, axis=-1, keepdims=True)
        weights = 1 / np.where(middle > 0, own + middle, 1.0)
        weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(own)


def _estimate_prior(variances: Floats, degrees: Floats) -> tuple[Floats, Floats]:
    """Estimate Smyth's prior (section 6.2) from the variances (..., K) of K architectures.

    The scatter of the variances is that of K values, too few to trust when it is small by chance.
    It is raised by :data:`CAUTION` of its standard error.

    Returns:
        Degrees of freedom d0 (..., 1), and scale s0² (..., 1); 0 if most variances are zero.
    """
    from scipy import special

    size = variances.shape[-1]
    middle = np.median(variances, axis=-1, keepdims=True)
    is_usable = middle > 0
    floored = np.maximum(variances, np.where(is_usable, 1e-5 * middle, 1.0))
    logs = np.log(floored) - special.digamma(degrees / 2) + np.log(degrees / 2)
    sampling, error = _sampling_error(degrees, size)
    # Residuals of K architectures from their common mean have a correlation of -1 / (K - 1), and
    # their variances have its square.
    observed = logs.var(axis=-1, ddof=1, keepdims=True) / (1 - 1 / (size - 1) ** 2)
    scatter = observed - sampling + CAUTION * error
    is_scattered = scatter > 0
    prior = 2 * _invert_trigamma(np.where(is_scattered, scatter, 1.0))
    shift = special.digamma(prior / 2) - np.log(prior / 2)
    center = logs.mean(axis=-1, keepdims=True)
    scale = np.where(is_scattered, np.exp(center + shift), floored.mean(axis=-1, keepdims=True))
    prior = np.where(is_scattered, prior, np.inf)
    return np.where(is_usable, prior, 0.0), np.where(is_usable, scale, 0.0)


def _sampling_error(degrees: Floats, size: int) -> tuple[float, float]:
    """Return the mean sampling variance of log s², and the standard error of an estimate of it."""
    from scipy import special

    sampling = special.polygamma(1, degrees / 2)
    kurtosis = np.mean(special.polygamma(3, degrees / 2) / sampling**2)
    mean = float(np.mean(sampling))
    return mean, mean * float(np.sqrt((2 + kurtosis) / (size - 1)))


def _invert_trigamma(values: Floats) -> Floats:
    """Solve trigamma(x) = value for positive values, by Newton's method (Smyth 2004, appendix)."""
    from scipy import special

    x = 0.5 + 1 / values
    for _ in range(20):  # convex and monotone from this start; 5 are enough
        trigamma = special.polygamma(1, x)
        x = x + trigamma * (1 - trigamma / values) / special.polygamma(2, x)
    return np.asarray(x)


@dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """Difference between two architectures: the loss of the first minus that of the second.

    Attributes:
        variances: parts of the variance of the mean, of the runs and of the windows.
        degrees: their degrees of freedom.
        runs: number R of common runs.
        windows: number W of common evaluation windows.
        p: two-sided p-value of a zero mean; 1 with fewer than two runs.
    """

    variances: tuple[float, float]
    degrees: tuple[float, float]
    runs: int
    windows: int
    p: float = 1.0
    p_adjusted: float = 1.0

    @property
    def half_width(self) -> float:
        """Half the width of the 95% interval of the mean; NaN if unknown."""
        return float(compute_widths(np.array(self.variances), np.array(self.degrees), LEVEL / 2))

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half_width


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
        return any(difference.runs > 1 for difference in self.pairs.values())

    def between(self, first: str, second: str) -> Difference | None:
        """Return the difference of the first minus the second; None if not compared."""
        if (first, second) in self.pairs:
            return self.pairs[first, second]
        reverse = self.pairs.get((second, first))
        return replace(reverse, mean=-reverse.mean) if reverse else None


def compare_pairwise(losses: Mapping[str, LossesByRun]) -> Comparison:
    """Compare each two architectures.

    Args:
        losses: losses by architecture, the best first; as many windows in each of them.
    """
    names = list(losses)
    arrays = [
        (np.array([*runs], dtype=np.int64), np.array([*runs.values()], dtype=float))
        for runs in losses.values()
    ]
    indices = [(j, i) for i, j in itertools.combinations(range(len(names)), 2)]
    pairs = [(names[i], names[j]) for i, j in indices]
    differences = [_subtract(*arrays[i], *arrays[j]) for i, j in indices]
    found = _estimate(differences, np.array(indices, dtype=np.int64).reshape(-1, 2).T)
    if found:
        p = compute_p_values(*_stack(found))
        p[[difference.runs < 2 for difference in found]] = 1.0
        adjusted = adjust_by_holm(p)
        found = [
            replace(difference, p=float(alone), p_adjusted=float(corrected))
            for difference, alone, corrected in zip(found, p, adjusted, strict=True)
        ]
    return Comparison(names, dict(zip(pairs, found, strict=True)))


def compare_single_runs(
    windows: Iterable[Sequence[float]], other: Sequence[float]
) -> list[Difference]:
    """Return the difference of each single run to another one, over the same windows (W,)."""
    differences = [np.subtract(losses, other)[None] for losses in windows]
    return _estimate(differences, np.zeros((2, len(differences)), dtype=np.int64))


def _subtract(runs: Integers, losses: Floats, other_runs: Integers, others: Floats) -> Floats:
    common, first, second = np.intersect1d(runs, other_runs, return_indices=True)
    return np.asarray(losses[first] - others[second]) if len(common) else np.empty((0, 0))


def _estimate(differences: Sequence[Floats], pairs: Integers) -> list[Difference]:
    """Estimate the mean and variance of each pair's differences (R, W), without a test."""
    places: dict[tuple[int, ...], list[int]] = {}
    for i, difference in enumerate(differences):
        places.setdefault(difference.shape, []).append(i)
    moments = PairMoments(*np.zeros((3, len(differences))))
    moments.mean[:] = np.nan
    for shape, chosen in places.items():
        if shape[0]:
            found = compute_moments(np.stack([differences[i] for i in chosen]))
            for all_pairs, some in zip(moments, found, strict=True):
                all_pairs[chosen] = some
    shapes = np.array([difference.shape for difference in differences], dtype=np.int64).reshape(
        -1, 2
    )
    windows = int(shapes[:, 1].max(initial=0))
    variances, degrees = estimate_variances(moments, shapes[:, 0], windows, pairs)
    columns = (moments.mean, variances, degrees, *shapes.T)
    rows = [column.tolist() for column in columns]
    return [
        Difference(
            mean=mean,
            variances=tuple(parts),
            degrees=tuple(free),
            runs=runs,
            windows=count,
        )
        for mean, parts, free, runs, count in zip(*rows, strict=True)
    ]


def _stack(differences: Iterable[Difference]) -> tuple[Floats, Floats, Floats]:
    """Return means (P,), parts of the variances (P, 2) and their degrees of freedom (P, 2)."""
    known = list(differences)
    mean = np.array([difference.mean for difference in known])
    variances = np.array([difference.variances for difference in known])
    degrees = np.array([difference.degrees for difference in known])
    return mean, variances, degrees


# ------------------------------------------------------------------ verdicts


class Verdict(StrEnum):
    """What the runs show of an architecture."""

    WORSE = "worse"
    AS_GOOD = "as good"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Judgement:
    """Verdicts on the architectures of a study.

    Attributes:
        comparison: pairwise comparison that they follow from.
        margin: largest difference to the best that makes no difference, in the unit of the losses.
        verdicts: verdict of each architecture.
        bounds: upper confidence bound of the difference of each compared architecture to the best;
            infinite where there are too few runs.
        without_run: number of architectures of the study without a complete run, which have no
            verdict.
    """

    comparison: Comparison
    margin: float
    verdicts: dict[str, Verdict]
    bounds: dict[str, float]
    without_run: int = 0

    def count(self, verdict: str) -> int:
        """Return the number of architectures with a verdict, the best mean left out."""
        return sum(
            other == verdict
            for name, other in self.verdicts.items()
            if name != self.comparison.best
        )


def judge(comparison: Comparison, margin: float) -> Judgement:
    """Compare each architecture with the best, whichever that is.

    Args:
        comparison: pairwise comparison of the architectures.
        margin: largest difference to the best that makes no difference, in the unit of the losses.
    """
    names = comparison.names
    # An architecture with too few runs has no bounds, and must not withhold those of the others.
    tested = {pair: found for pair, found in comparison.pairs.items() if found.runs > 1}
    compared = [name for name in names if any(name in pair for pair in tested)]
    places = {name: i for i, name in enumerate(compared)}
    upper = np.full((len(compared), len(compared)), np.inf)
    np.fill_diagonal(upper, 0)
    is_worse = np.zeros(upper.shape, dtype=bool)
    if tested:
        mean, variances, degrees = _stack(tested.values())
        tail = LEVEL / max(1, len(names) - 1)
        widths = compute_widths(variances, degrees, tail)
        rows, columns = np.array([[places[name] for name in pair] for pair in tested]).T
        upper[rows, columns], upper[columns, rows] = widths + mean, widths - mean
        is_significant = np.array([difference.is_significant for difference in tested.values()])
        is_worse[rows, columns] = is_significant & (mean > 0)
        is_worse[columns, rows] = is_significant & (mean < 0)
    bounds = bound_distances(upper)
    verdicts, found = dict.fromkeys(names, Verdict.UNDECIDED), dict.fromkeys(names, math.inf)
    for i, name in enumerate(compared):
        found[name] = float(bounds[i])
        if bounds[i] < margin:
            verdicts[name] = Verdict.AS_GOOD
        elif is_worse[i].any():
            verdicts[name] = Verdict.WORSE
    return Judgement(comparison, margin, verdicts, found)


def bound_distances(upper: Floats) -> Floats:
    """Return upper bounds (..., K) of the distance of each architecture from the best.

    Args:
        upper: upper confidence bounds (..., K, K) of the row's loss minus the column's; 0 on the
            diagonal.
    """
    # The lower bound of i minus j is that below the difference j minus i.
    may_be_best = np.asarray(~(upper < 0).any(axis=-2))
    candidates = np.where(may_be_best[..., None, :], upper, -np.inf)
    return np.asarray(np.maximum(candidates.max(axis=-1, initial=0.0), 0))
