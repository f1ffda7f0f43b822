"""Variances of pairs of architectures, shrunk towards their common value (empirical Bayes).

With three runs, the variance of one pair has two degrees of freedom, and a test with them detects
almost nothing. All pairs together tell how much variances differ from pair to pair. Smyth (*Linear
Models and Empirical Bayes Methods for Assessing Differential Expression in Microarray Experiments*,
2004, section 6.2) assumes a scaled inverse chi-squared prior with d0 degrees of freedom and scale
s0², estimates both from the mean and the variance of log s², and replaces each variance by

    (d0 s0² + d s²) / (d0 + d),  with d0 + d degrees of freedom.

Smyth's variances are independent; pairs of K architectures share runs. This changes three things:

- Pairs with a common architecture have correlated variances, so that their scatter is smaller than
  that of independent ones. It is divided by one minus the mean correlation.
- All pairs together have (K − 1)(R − 1) degrees of freedom of runs, and no test has more.
- The scatter is that of about K − 1 independent values, too few to trust when it is small by
  chance. It is raised by :data:`CAUTION` of its standard error before d0 is estimated from it.
"""

import numpy as np

from reports.stats.paired_difference import Floats

CAUTION = 0.5
"""Standard errors by which the scatter of the variances is raised.

Without it, variances that differ sixteenfold cause twice as many false positives as intended."""

MIN_ARCHITECTURES = 5
"""Architectures needed: with fewer, shrinking causes more than 5% false positives."""

MIN_FREEDOM = 2
"""Degrees of freedom of a variance that is shrunk: one of two runs says too little of its pair."""

_PAIR_CORRELATION = 0.25
"""Correlation of the variances of two pairs that share one architecture, all noise being equal:
their differences have a correlation of one half, and variances have its square."""


def shrink_variances(
    variances: Floats, freedom: Floats, architectures: int
) -> tuple[Floats, Floats]:
    """Shrink the variances of all pairs of architectures towards their common value.

    Args:
        variances: variances of the runs (..., P) of each pair; the last axis is one study.
        freedom: their degrees of freedom (P,): runs less one, at least 1.
        architectures: number K of the architectures.

    Returns:
        The shrunk variances (..., P) and their degrees of freedom (..., P). Returned as they are:
        those of fewer than :data:`MIN_ARCHITECTURES` architectures, of a study in which most of
        them are zero, and of pairs with less than :data:`MIN_FREEDOM` degrees of freedom or with
        fewer than most pairs have. An architecture that lost runs is often an unstable one.
    """
    variances = np.asarray(variances, dtype=float)
    unchanged = np.broadcast_to(freedom, variances.shape).astype(float)
    is_shrunk = freedom >= max(MIN_FREEDOM, float(np.median(freedom))) if len(freedom) else freedom
    if architectures < MIN_ARCHITECTURES or np.count_nonzero(is_shrunk) < 2:
        return variances, unchanged
    results = variances.copy(), unchanged
    parts = _shrink(variances[..., is_shrunk], freedom[is_shrunk], architectures)
    for result, part in zip(results, parts, strict=True):
        result[..., is_shrunk] = part
    return results


def _shrink(variances: Floats, freedom: Floats, architectures: int) -> tuple[Floats, Floats]:
    """Shrink all of some variances; see :func:`shrink_variances`."""
    from scipy import special

    unchanged = np.broadcast_to(freedom, variances.shape).astype(float)
    middle = np.median(variances, axis=-1, keepdims=True)
    is_usable = middle > 0
    floored = np.maximum(variances, np.where(is_usable, 1e-5 * middle, 1.0))
    # Smyth's e: logarithms with the bias of each removed.
    logs = np.log(floored) - special.digamma(freedom / 2) + np.log(freedom / 2)
    center = logs.mean(axis=-1, keepdims=True)
    scatter = _estimate_scatter(logs, freedom, architectures)
    is_scattered = scatter > 0
    prior = np.where(is_scattered, 2 * _invert_trigamma(np.where(is_scattered, scatter, 1.0)), 0.0)
    half = np.where(is_scattered, prior, 2.0) / 2
    scale = np.where(
        is_scattered,
        np.exp(center + special.digamma(half) - np.log(half)),
        floored.mean(axis=-1, keepdims=True),
    )
    weight = np.where(is_scattered, prior / (prior + freedom), 1.0)
    total = np.where(is_scattered, prior + freedom, np.inf)
    total = np.minimum(total, (architectures - 1) * np.mean(freedom))
    shrunk = weight * scale + (1 - weight) * variances
    return np.where(is_usable, shrunk, variances), np.where(is_usable, total, unchanged)


def expect_freedom(runs: int, architectures: int) -> float:
    """Return the degrees of freedom that shrunk variances have if all variances are equal."""
    if architectures < MIN_ARCHITECTURES or runs - 1 < MIN_FREEDOM:
        return runs - 1
    error = CAUTION * _sampling_error(np.array([runs - 1.0]), architectures)[1]
    prior = float(2 * _invert_trigamma(np.array([error]))[0])
    return min(prior + runs - 1, (architectures - 1.0) * (runs - 1))


def _estimate_scatter(logs: Floats, freedom: Floats, architectures: int) -> Floats:
    """Estimate the variance (..., 1) of the logarithms of the true variances, cautiously."""
    pairs = logs.shape[-1]
    # Of the pairs other than a given one, 2 (K - 2) share an architecture with it.
    shared = min(1.0, 2 * (architectures - 2) / (pairs - 1))
    observed = logs.var(axis=-1, ddof=1, keepdims=True) / (1 - _PAIR_CORRELATION * shared)
    sampling, error = _sampling_error(freedom, architectures)
    return np.asarray(observed - sampling + CAUTION * error)


def _sampling_error(freedom: Floats, architectures: int) -> tuple[float, float]:
    """Return the mean sampling variance of log s², and the standard error of an estimate of it."""
    from scipy import special

    sampling = special.polygamma(1, freedom / 2)
    kurtosis = np.mean(special.polygamma(3, freedom / 2) / sampling**2)
    mean = float(np.mean(sampling))
    return mean, mean * float(np.sqrt((2 + kurtosis) / (architectures - 1)))


def _invert_trigamma(values: Floats) -> Floats:
    """Solve trigamma(x) = value for positive values, by Newton's method (Smyth 2004, appendix)."""
    from scipy import special

    x = 0.5 + 1 / values
    for _ in range(20):  # convex and monotone from this start; 5 are enough
        trigamma = special.polygamma(1, x)
        x = x + trigamma * (1 - trigamma / values) / special.polygamma(2, x)
    return np.asarray(x)
