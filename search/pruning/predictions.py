"""What unfinished points will come to, foretold from their curves and from points like them.

The final value of a point that has come to a rung, less its loss there, is regressed on its curve,
on its parameters and on all pairs of them, by Bayesian linear regression. How much each kind of
term matters is not chosen: the posteriors for all scales of a small grid are averaged, each by its
evidence (MacKay, *Bayesian Interpolation*, 1992). Points stop early because of what was seen of
them, which may be left out of account if all that was seen enters (Rubin, *Inference and Missing
Data*, 1976); therefore the furthest rung comes first, and what it foretells is data, with its own
variance, for the rung before (the factored likelihood of Anderson, *Maximum Likelihood Estimates
for a Multivariate Normal Distribution when Some Observations Are Missing*, 1957).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_VALUES = 4
"""Final values from which anything is foretold; with fewer, a point is as good as its curve is."""

CAUTION = 1.25
"""By what a deviation is widened: who stops at the first moment at which forecasts permit it stops
when they happen to err on that side."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_NOISE = (0.1, 0.2, 0.35, 0.6, 1.0)
"""Standard deviations of what no term explains, in those of what is regressed."""

_MAIN = (0.1, 0.3, 1.0)
"""Of a parameter's own coefficient."""

_PAIR = (0.1, 0.4)
"""Of a pair's, in those of a parameter's own."""

_CURVE = 0.3
"""Of the curve's coefficients: by how much a point's lead at a rung may grow or shrink."""

_SCALES = np.array(list(itertools.product(_NOISE, _MAIN, _PAIR)))  # (S, 3)
_NEGLIGIBLE = 1e-3
"""A weight below which a scale is left out of the average."""

_LEVELS = 8
"""Values of a numeric parameter up to which each is a level of its own."""

_MOST_PAIRS = 500
"""Columns of pairs beyond which they are left out: a regression on more takes too long."""

_CONSTANT, _OF_CURVE, _OF_PARAMETER, _OF_PAIR = range(4)


@dataclass(frozen=True)
class DesignMatrix:
    """Points by their parameters, as columns of mean zero.

    Attributes:
        main: (N, p) a column for each level of a parameter but the first.
        pairs: (N, q) the products of columns of different parameters.
    """

    main: Floats
    pairs: Floats

    @classmethod
    def of(cls, points: Sequence[Mapping[str, Any]]) -> "DesignMatrix":
        """Code points; what a point lacks is a level of its own."""
        blocks = [
            _columns([point.get(name) for point in points])
            for name in dict.fromkeys(itertools.chain.from_iterable(points))
        ]
        blocks = [block for block in blocks if block.shape[1]]
        pairs = [
            (a[:, :, None] * b[:, None, :]).reshape(len(points), -1)
            for a, b in itertools.combinations(blocks, 2)
        ]
        if sum(pair.shape[1] for pair in pairs) > _MOST_PAIRS:
            pairs = []
        return cls(_beside(blocks, len(points)), _beside(pairs, len(points)))

    def of_some(self, chosen: Flags) -> "DesignMatrix":
        """Return the columns for some of the points."""
        return DesignMatrix(self.main[chosen], self.pairs[chosen])


@dataclass(frozen=True)
class Prediction:
    """What points will come to: Student's distributions of five degrees of freedom.

    Their tails are heavier than the normal one's: now and then a network does what none of its
    switches, and no two of them, explain.

    Attributes:
        mean: (N,) of a finished point its value.
        deviation: (N,) the scale; 0 of a finished point.
    """

    mean: Floats
    deviation: Floats

    def below(self, bound: float) -> Floats:
        """Return for each point the probability that its value will be below a bound, (N,)."""
        deviation = np.maximum(self.deviation, 1e-9 * (1 + np.abs(self.mean)))
        # Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.3, for five degrees.
        angle = np.arctan((bound - self.mean) / deviation / math.sqrt(5))
        cosine = np.cos(angle)
        found: Floats = np.sin(angle) * (cosine + 2 / 3 * cosine**3)
        return 0.5 + (angle + found) / math.pi

    def bound(self, count: int) -> float:
        """Return the bound below which so many points are expected, of all that there are."""
        if count >= len(self.mean):
            return math.inf
        reach = 100 * self.deviation.max() + 1e-6
        low, high = self.mean.min() - reach, self.mean.max() + reach
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.below(middle).sum() < count else (low, middle)
        return float(high)


def predict_final_values(factors: DesignMatrix, losses: Floats, values: Floats) -> Prediction:
    """Foretell the final values of points.

    Args:
        factors: of N points.
        losses: (N, R) each point's loss at each rung; NaN from the first that it has not come to.
        values: (N,) of the finished points, finite; NaN of the others.
    """
    rungs = losses.shape[1]
    mean, variance = values.copy(), np.zeros(len(values))
    known = ~np.isnan(values)
    reached = np.where(known, -1, (~np.isnan(losses)).sum(axis=1))  # (N,) rungs
    for rung in range(rungs, -1, -1):
        new = reached == rung
        if not new.any():
            continue
        terms, kinds, loss = _terms(factors, losses, rung)
        # Whoever was added from elsewhere may be finished without a curve.
        tells = known & np.isfinite(terms).all(axis=1)
        if tells.sum() < LEAST_VALUES:
            mean[new], variance[new] = loss[new], _vague(losses)
        else:
            target = mean[tells] - loss[tells]
            middle = float(np.median(target))
            mean[new], variance[new] = _regress(
                terms[tells], kinds, target - middle, variance[tells], terms[new]
            )
            mean[new] += middle + loss[new]
        known |= new
    return Prediction(mean, CAUTION * np.sqrt(variance))


def _terms(factors: DesignMatrix, losses: Floats, rung: int) -> tuple[Floats, NDArray[Any], Floats]:
    """Return what final values are regressed on after so many rungs.

    Returns:
        (N, D) terms, NaN of points that have not come as far; (D,) their kinds; (N,) the loss from
        which a final value is reckoned.
    """
    columns = [np.ones(len(losses))]
    loss = np.zeros(len(losses))
    if rung:
        loss = losses[:, rung - 1]
        middle = np.nanmedian(loss) if not np.isnan(loss).all() else 0.0
        # The better half may close up while the worse does not.
        columns += [np.minimum(loss, middle) - middle, np.maximum(loss, middle) - middle]
    if rung > 1:
        fall = losses[:, rung - 1] - losses[:, rung - 2]
        columns.append(fall - (np.nanmedian(fall) if not np.isnan(fall).all() else 0.0))
    kinds = [_CONSTANT] + [_OF_CURVE] * (len(columns) - 1)
    kinds += [_OF_PARAMETER] * factors.main.shape[1] + [_OF_PAIR] * factors.pairs.shape[1]
    terms = np.column_stack([*columns, factors.main, factors.pairs])
    return terms, np.array(kinds), loss


def _regress(
    terms: Floats, kinds: NDArray[Any], target: Floats, variance: Floats, new: Floats
) -> tuple[Floats, Floats]:
    """Regress a target on terms, and foretell it elsewhere.

    Args:
        terms: (n, D).
        kinds: (D,) of the terms.
        target: (n,).
        variance: (n,) of each target, beside the noise.
        new: (m, D) terms of what is to be foretold.

    Returns:
        (m,) means and variances.
    """
    scale = max(float(target.std()), 1e-6)
    noise = (_SCALES[:, 0] * scale) ** 2  # (S,)
    prior = np.empty((len(_SCALES), len(kinds)))  # (S, D) variances of the coefficients
    prior[:, kinds == _CONSTANT] = (10 * scale) ** 2
    prior[:, kinds == _OF_CURVE] = _CURVE**2
    prior[:, kinds == _OF_PARAMETER] = ((_SCALES[:, 1] * scale) ** 2)[:, None]
    prior[:, kinds == _OF_PAIR] = ((_SCALES[:, 1] * _SCALES[:, 2] * scale) ** 2)[:, None]
    weight = 1 / (variance + noise[:, None])  # (S, n)
    precision = np.matmul(terms.T * weight[:, None, :], terms)  # (S, D, D) of the coefficients
    diagonal = np.arange(len(kinds))
    precision[:, diagonal, diagonal] += 1 / prior
    covariance = np.linalg.inv(precision)  # (S, D, D)
    moment = np.matmul(weight * target, terms)  # (S, D)
    coefficients = np.matmul(covariance, moment[:, :, None])[:, :, 0]  # (S, D)
    evidence = 0.5 * (
        np.log(weight).sum(axis=1)
        - np.log(prior).sum(axis=1)
        - np.linalg.slogdet(precision)[1]
        - (weight * target**2).sum(axis=1)
        + (coefficients * moment).sum(axis=1)
    )
    share = np.exp(evidence - evidence.max())
    share /= share.sum()
    counts = share > _NEGLIGIBLE
    share = share[counts] / share[counts].sum()  # (s,)
    means = coefficients[counts] @ new.T  # (s, m)
    spread = np.matmul(new, covariance[counts])  # (s, m, D)
    variances = (spread * new).sum(axis=2) + noise[counts, None]  # (s, m)
    mean = share @ means
    return mean, share @ (variances + (means - mean) ** 2)


def _vague(losses: Floats) -> float:
    """Return a variance that leaves almost everything open."""
    seen = losses[~np.isnan(losses)]
    return float(4 * seen.var()) if seen.size > 1 else 1.0


def _columns(values: Sequence[Any]) -> Floats:
    """Return a parameter's columns, each of mean zero."""
    levels = sorted(set(values), key=lambda value: (str(type(value)), str(value)))
    there = [value for value in levels if value is not None]
    is_number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in there)
    if is_number and len(there) > _LEVELS:
        number = np.array([math.nan if value is None else value for value in values], dtype=float)
        number = (number - np.nanmean(number)) / np.nanstd(number)
        lacks = np.isnan(number).astype(float)
        columns = np.column_stack([np.nan_to_num(number), *([lacks] if lacks.any() else [])])
        standardized: Floats = columns - columns.mean(axis=0)
        return standardized
    columns = np.array([[value == level for level in levels[1:]] for value in values], dtype=float)
    columns = columns.reshape(len(values), len(levels) - 1)
    centred: Floats = columns - columns.mean(axis=0)
    return centred


def _beside(blocks: Sequence[Floats], count: int) -> Floats:
    return np.hstack([np.empty((count, 0)), *blocks])
