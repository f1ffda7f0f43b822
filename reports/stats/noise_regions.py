"""Regions of a design whose trials vary differently between runs.

The variance is estimated from residuals: of a linear model of the trials, or of the means of
replicates. A region is split by the parameter between whose values the residual variances differ
most, if they differ significantly; the parts are split further.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from reports.stats.interaction_model import Floats, Integers, fit_columns

MIN_DEGREES = 5
"""Degrees of freedom needed to estimate a variance."""

SPLIT_LEVEL = 0.01
"""Significance level at which regions have different variances, corrected for all tests."""

EXCESS_LEVEL = 0.05
"""Level at which values with fewer degrees of freedom vary more than others, corrected likewise.

It is higher because the only consequence is that no variance is assumed for them.
"""

MIN_ADDED = 3
"""Degrees of freedom needed to notice that the trials of a rare value vary more than others."""


@dataclass(frozen=True)
class Runs:
    """Further runs of a table's architectures.

    Attributes:
        codes: (runs, parameters), their parameters, in the codes of the table.
        replicates: (runs,), number of the replicate; equal numbers read the text in one order.
        values: (runs,), their values.
    """

    codes: Integers
    replicates: Integers
    values: Floats


class ResidualModel(Protocol):
    """A model whose residuals are noise."""

    @property
    def orders(self) -> tuple[int, ...]:
        """Forms of the model, the one with the most terms first."""
        ...

    def fit(self, trials: Integers, order: int) -> tuple[float, float]:
        """Fit some trials; return the residual sum of squares and its degrees of freedom."""
        ...


@dataclass(frozen=True)
class ReplicateModel:
    """Architectures and replicates as additive factors: what a text order changes is no noise.

    Attributes:
        codes: (trials, parameters), index of each parameter's value.
        runs: runs of these architectures and of others.
    """

    codes: Integers
    runs: Runs
    orders: tuple[int, ...] = (1,)

    def fit(self, trials: Integers, order: int) -> tuple[float, float]:
        """Fit the runs of the architectures that some trials have."""
        known = set(map(tuple, self.codes[trials].tolist()))
        is_known = np.array([tuple(row) in known for row in self.runs.codes.tolist()], dtype=bool)
        if not is_known.any():
            return 0.0, 0.0
        architecture = np.unique(self.runs.codes[is_known], axis=0, return_inverse=True)[1].ravel()
        replicate = np.unique(self.runs.replicates[is_known], return_inverse=True)[1]
        factors = [each[:, None] == np.arange(each.max() + 1) for each in (architecture, replicate)]
        return fit_columns(np.hstack(factors).astype(float), self.runs.values[is_known])


def fit(model: ResidualModel, trials: Integers) -> tuple[float, float]:
    """Fit the first form of a model that leaves enough degrees of freedom.

    Returns:
        The residual sum of squares and its degrees of freedom; zeros if no form leaves enough.
    """
    for order in model.orders:
        squares, degrees = model.fit(trials, order)
        if degrees >= MIN_DEGREES:
            return squares, degrees
    return 0.0, 0.0


def split(model: ResidualModel, codes: Integers, region: Integers) -> Iterator[Integers]:
    """Yield the parts of a region that have different variances, or the region.

    Values with enough degrees of freedom are compared by Bartlett's test. Each other value is
    tested for more noise than the rest of the region, and set apart alone. Rare values, of which
    more noise would not be noticed, are always set apart.

    Args:
        model: model whose residuals are compared.
        codes: (trials, parameters), index of each parameter's value.
        region: (trials of the region,), their indices.
    """
    candidates = []
    for i in range(codes.shape[1]):
        found = np.unique(codes[region, i])
        parts = [region[codes[region, i] == code] for code in found]
        if 1 < len(parts) < len(region):  # not names, of which each trial has another one
            most = max(len(part) for code, part in zip(found, parts, strict=True) if code >= 0)
            candidates += list(_list_candidates(model, region, parts, most))
    if candidates:
        corrected = [p * len(candidates) / level for p, level, _ in candidates]
        best = int(np.argmin(corrected))
        if corrected[best] < 1:
            for part in candidates[best][2]:
                yield from split(model, codes, part)
            return
    yield region


def _list_candidates(
    model: ResidualModel, region: Integers, parts: list[Integers], most: int
) -> Iterator[tuple[float, float, list[Integers]]]:
    """Yield the p-value of each test, its level, and the parts that it would make.

    Args:
        model: model whose residuals are compared.
        region: the region.
        parts: its trials by their values of one parameter.
        most: largest number of trials with one value of the parameter.
    """
    fits = [fit(model, part) for part in parts]
    is_known = [degrees >= MIN_DEGREES and squares > 0 for squares, degrees in fits]
    known = [part for part, found in zip(parts, is_known, strict=True) if found]
    others = [part for part, found in zip(parts, is_known, strict=True) if not found]
    if len(known) > 1:
        squares, degrees = np.array(list(itertools.compress(fits, is_known))).T
        unknown = [np.concatenate(others)] if others else []
        yield compare_variances(squares, degrees), SPLIT_LEVEL, [*known, *unknown]
    whole = [model.fit(region, order) for order in model.orders] if others else []
    for part in others:
        rest = np.setdiff1d(region, part)
        p, added = _test_excess(model, rest, whole)
        if added < MIN_ADDED and 2 * len(part) <= most and fit(model, rest)[1]:
            p = 0.0  # more noise would hardly be noticed
        if not math.isnan(p):
            yield p, EXCESS_LEVEL, [rest, part]


def compare_variances(squares: Floats, degrees: Floats) -> float:
    """Return the p-value of Bartlett's test that variances are equal.

    Args:
        squares: (parts,), residual sum of squares of each part.
        degrees: (parts,), its degrees of freedom.

    Bartlett, *Properties of Sufficiency and Statistical Tests*, 1937. ``scipy.stats.bartlett``
    takes samples; these are sums of squares of residuals, each with its degrees of freedom.
    """
    from scipy import stats

    total, k = degrees.sum(), len(degrees)
    statistic = total * math.log(squares.sum() / total) - degrees @ np.log(squares / degrees)
    correction = 1 + ((1 / degrees).sum() - 1 / total) / (3 * (k - 1))
    return float(stats.chi2.sf(statistic / correction, k - 1))


def _test_excess(
    model: ResidualModel, rest: Integers, whole: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Test whether the trials outside the rest vary more, by an F-test.

    What they add to the residual sum of squares has as many degrees of freedom as they add to those
    of the residuals, fewer than there are trials: the model spends some on their own mean and
    interactions. All forms of the model are tested (Bonferroni).

    Args:
        model: model whose residuals are compared.
        rest: the rest.
        whole: residual sum of squares and degrees of freedom of all trials, by form of the model.

    Returns:
        The p-value, NaN if the rest has too few degrees of freedom or none are added; and the
        largest number added.
    """
    from scipy import stats

    found, most = [], 0.0
    for order, (all_squares, all_degrees) in zip(model.orders, whole, strict=True):
        squares, degrees = model.fit(rest, order)
        added = all_degrees - degrees
        if degrees >= MIN_DEGREES and squares > 0 and added >= 1:
            ratio = (all_squares - squares) / added / (squares / degrees)
            found.append(float(stats.f.sf(ratio, added, degrees)))
            most = max(most, added)
    return min(found) * len(found) if found else math.nan, most
