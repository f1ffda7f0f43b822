"""Linear model of a design with the interactions of up to three or two parameters.

The model of order k has a column for each combination of values of each k or fewer parameters. With
the switches of a study alone these are hundreds of columns that depend on each other, so the same
space is spanned by fewer: orthonormal contrasts of each parameter's values, and their products. In
a balanced design these columns are orthogonal.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_COLUMNS = 600
"""Maximum number of columns of the model; interactions that would exceed it are left out."""

_MARKS = 2**36
"""Number of random marks of a trial: sums of 100,000 of them are exact in double precision."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class InteractionModel:
    """Linear model of the values with the interactions of up to three or two parameters.

    Attributes:
        codes: (trials, parameters), index of each parameter's value; -1 where a trial lacks it.
        values: (trials,), NaN where there is none.
    """

    codes: Integers
    values: Floats
    orders: tuple[int, ...] = (3, 2)

    def fit(self, trials: Integers, order: int) -> tuple[float, float]:
        """Fit by least squares; zeros if the model has too many columns or fits exactly."""
        known = trials[~np.isnan(self.values[trials])]
        if not known.size:
            return 0.0, 0.0
        columns = [np.unique(column, return_inverse=True)[1] for column in self.codes[known].T]
        varied = [column for column in columns if column.max(initial=0) > 0]
        distinct = _list_columns(varied, len(known), order)
        if distinct is None:
            return 0.0, 0.0
        contrasts = _count_contrasts([int(column.max()) for column in varied], order)
        if contrasts <= len(distinct):
            design = _build_contrasts(varied, len(known), order)
        else:  # parameters that only some trials have give equal columns
            design = np.array([places == code for places, code in distinct], dtype=float).T
        return fit_columns(design, self.values[known])


def fit_columns(columns: Floats, values: Floats) -> tuple[float, float]:
    """Fit values by least squares; return the residual sum of squares and degrees of freedom."""
    centered = values - values.mean() if len(values) else values
    if columns.shape[1] > len(columns):  # the smaller of both products has the same rank
        scales, basis = np.linalg.eigh(columns @ columns.T)
        kept = scales > 1e-9 * scales.max(initial=0)
        residuals = centered - basis[:, kept] @ (basis[:, kept].T @ centered)
    else:
        scales, basis = np.linalg.eigh(columns.T @ columns)
        kept = scales > 1e-9 * scales.max(initial=0)
        coefficients = basis[:, kept] @ ((basis[:, kept].T @ (columns.T @ centered)) / scales[kept])
        residuals = centered - columns @ coefficients
    return float(residuals @ residuals), float(len(values) - kept.sum())


def _list_columns(
    parameters: list[Integers], count: int, order: int
) -> list[tuple[Integers, int]] | None:
    """List the combinations of values that different trials have, each as (codes, code).

    Two combinations are equal if the same trials have them, which the sums of random marks tell.

    Args:
        parameters: (trials,) each, index of each parameter's value.
        count: number of trials.
        order: largest number of parameters of a combination.

    Returns:
        The combinations; None if they are more than :data:`MAX_COLUMNS`, or as many as trials.
    """
    marks = np.random.default_rng(0).integers(_MARKS, size=(2, count)).astype(float)
    found: dict[tuple[float, ...], tuple[Integers, int]] = {}
    for codes in _combine(parameters, count, order):
        sizes = np.bincount(codes)
        if len(sizes) >= min(count, MAX_COLUMNS + 1) and codes.any():
            return None  # the columns of one combination are independent
        sums = (np.bincount(codes, row) for row in marks)
        for code, key in enumerate(zip(*sums, strict=True)):
            found.setdefault(key, (codes, code))
        if len(found) > MAX_COLUMNS:
            return None
    return list(found.values())


def _combine(parameters: list[Integers], count: int, order: int) -> Iterator[Integers]:
    """Yield the codes (trials,) of the values of each combination of parameters, without gaps."""
    combined: dict[tuple[int, ...], Integers] = {(): np.zeros(count, dtype=np.int64)}
    yield combined[()]
    for size in range(1, order + 1):
        for chosen in itertools.combinations(range(len(parameters)), size):
            last = parameters[chosen[-1]]
            keys = combined[chosen[:-1]] * (int(last.max()) + 1) + last
            is_used = np.bincount(keys) > 0
            combined[chosen] = (np.cumsum(is_used) - 1)[keys]
            yield combined[chosen]


def _count_contrasts(sizes: list[int], order: int) -> int:
    """Return the number of products of contrasts, given the number of contrasts of each one."""
    return sum(
        math.prod(chosen)
        for size in range(order + 1)
        for chosen in itertools.combinations(sizes, size)
    )


def _build_contrasts(parameters: list[Integers], count: int, order: int) -> Floats:
    """Return the products (trials, columns) of the contrasts of up to some parameters."""
    single = [_contrast(int(codes.max()) + 1)[codes] for codes in parameters]
    products: dict[tuple[int, ...], Floats] = {(): np.ones((count, 1))}
    for size in range(1, order + 1):
        for chosen in itertools.combinations(range(len(single)), size):
            pair = products[chosen[:-1]][:, :, None] * single[chosen[-1]][:, None, :]
            products[chosen] = pair.reshape(count, -1)
    return np.hstack(list(products.values()))


def _contrast(levels: int) -> Floats:
    """Return orthonormal contrasts (levels, levels - 1), scaled to a mean square of 1."""
    basis = np.linalg.qr(np.hstack([np.ones((levels, 1)), np.eye(levels)[:, 1:]]))[0]
    return np.asarray(basis[:, 1:] * math.sqrt(levels))
