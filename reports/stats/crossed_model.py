"""Mean differences of replicated architectures in the crossed model of runs and windows.

The differences d (R, W) of two architectures over R runs and W windows follow a two-way crossed
random-effects model without replication within cells (Cornfield & Tukey, *Average Values of Mean
Squares in Factorials*, 1956), with the degrees of freedom of Satterthwaite (*An Approximate
Distribution of Estimates of Variance Components*, 1946). All functions take many pairs, and many
studies, at once: leading axes are studies, and P counts the pairs of a study.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reports.stats.paired_difference import Floats
from reports.stats.variance_shrinkage import shrink_variances


class MeanSquares(NamedTuple):
    """Differences of P pairs of architectures in the crossed model, each an array (..., P).

    Attributes:
        mean: mean difference.
        of_runs: mean square of the runs; NaN for one run.
        of_windows: mean square of the windows; NaN for one window.
        of_rest: mean square of the rest; NaN for one run or one window.
    """

    mean: Floats
    of_runs: Floats
    of_windows: Floats
    of_rest: Floats


def compute_mean_squares(d: Floats) -> MeanSquares:
    """Compute the mean squares of differences (..., R, W) in the crossed model."""
    runs, windows = d.shape[-2:]
    mean = d.mean(axis=(-2, -1))
    run_means = d.mean(axis=-1) - mean[..., None]
    window_means = d.mean(axis=-2) - mean[..., None]
    of_runs, of_windows = (run_means**2).sum(axis=-1), (window_means**2).sum(axis=-1)
    total = ((d - mean[..., None, None]) ** 2).sum(axis=(-2, -1))
    of_rest = np.maximum(total - windows * of_runs - runs * of_windows, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return MeanSquares(
            mean,
            windows * of_runs / np.float64(runs - 1),
            runs * of_windows / np.float64(windows - 1),
            of_rest / np.float64((runs - 1) * (windows - 1)),
        )


def estimate_errors(
    squares: MeanSquares, runs: NDArray[np.int64], windows: int, architectures: int
) -> tuple[Floats, Floats]:
    """Estimate standard errors (..., P, 3) of mean differences, and their degrees of freedom.

    They are those in the crossed model, over the runs alone and over the windows alone. The
    variance of the mean in the crossed model is (MS_runs + MS_windows − MS_rest) / (R W), at least
    the largest of the three over R W. For a single run it is the variance over the
    windows alone, for a single window that over the runs alone.

    Args:
        squares: mean squares of the pairs.
        runs: number R of runs of each pair (P,).
        windows: number W of windows.
        architectures: number of architectures that have these pairs.
    """
    shape = squares.mean.shape
    of_runs = squares.of_runs.copy()
    free_runs = np.broadcast_to(np.asarray(runs - 1, dtype=float), shape).copy()
    is_repeated = runs > 1
    if is_repeated.any():
        free = np.asarray(runs[is_repeated] - 1, dtype=np.float64)
        of_runs[..., is_repeated], free_runs[..., is_repeated] = shrink_variances(
            of_runs[..., is_repeated], free, architectures
        )
    free_windows = np.full(shape, windows - 1.0)
    free_rest = (runs - 1) * (windows - 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.stack([of_runs, squares.of_windows, squares.of_rest], axis=-1)
        frees = np.stack([free_runs, free_windows, np.broadcast_to(free_rest, shape)], axis=-1)
        total = parts @ np.array([1.0, 1.0, -1.0])
        # None of the mean squares is expected to be larger than the variance. Where one is, it is
        # used instead, with its degrees of freedom.
        largest = parts.argmax(axis=-1)[..., None]
        floor = np.take_along_axis(parts, largest, axis=-1)[..., 0]
        free_floor = np.take_along_axis(frees, largest, axis=-1)[..., 0]
        free_total = total**2 / (parts**2 / frees).sum(axis=-1)
        crossed = np.maximum(total, floor)
        free_crossed = np.where(total > floor, free_total, free_floor)
    scaled = np.stack([crossed, of_runs, squares.of_windows], axis=-1)
    freedom = np.stack([free_crossed, free_runs, free_windows], axis=-1)
    single = np.broadcast_to(~is_repeated, shape)
    scaled[single], freedom[single] = scaled[single][:, [2]], freedom[single][:, [2]]
    if windows == 1:
        scaled, freedom = scaled[..., [1, 1, 1]], freedom[..., [1, 1, 1]]
    size = np.asarray(runs * windows, dtype=float)[:, None]
    return np.sqrt(scaled / size), np.where(freedom > 0, freedom, np.nan)


def compute_p_values(mean: Floats, errors: Floats, freedom: Floats) -> Floats:
    """Return the two-sided p-value (..., P) of each mean: the largest of its tests (..., P, 3)."""
    from scipy import stats

    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.abs(mean)[..., None] / errors  # 0 / 0 for two identical architectures
    p: Floats = np.nan_to_num(2 * stats.t.sf(ratios, freedom), nan=1.0).max(axis=-1)
    return p


def compute_widths(errors: Floats, freedom: Floats, tail: float) -> Floats:
    """Return the distance (..., P) of a confidence bound from the mean: the largest of three.

    Args:
        errors: standard errors (..., P, 3).
        freedom: their degrees of freedom (..., P, 3).
        tail: probability that the mean lies beyond the bound.
    """
    from scipy import stats

    widths: Floats = (stats.t.isf(tail, freedom) * errors).max(axis=-1)
    return widths


def adjust_by_holm(p: Floats, total: int | None = None) -> Floats:
    """Correct p-values (..., P) for their number by Holm's method.

    Args:
        p: p-values; the last axis is one family of tests.
        total: number of tests to correct for, if it is more than P.
    """
    total = p.shape[-1] if total is None else total
    # statsmodels.multipletests gives the same for one family, but collects all garbage per call:
    # 60 ms or more, and there are dozens of calls per report.
    order = np.argsort(p, axis=-1)
    factors = np.arange(total, total - p.shape[-1], -1)
    steps = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(1, steps), axis=-1)
    return adjusted
