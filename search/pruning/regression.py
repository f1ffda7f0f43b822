"""Bayesian linear regression on parameters of trials, with noise that may differ between them.

:class:`DesignMatrix` encodes the parameters as columns of numbers.

The scales of the priors are not tuned: posteriors over a small grid of scales are averaged with
their evidence as weights (MacKay, *Bayesian Interpolation*, 1992).

Bad networks may vary ten times as much as good ones. :func:`fit_noise` estimates the logarithm of
the noise variance as a linear function (Harvey, *Estimating Regression Models with Multiplicative
Heteroscedasticity*, Econometrica 44, 1976) from the errors of predictions that leave each row out.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports.stats.audit import DEGREES

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]
Moments = tuple[Floats, Floats]
"""Means and variances of predictions, (m,) each."""

CONSTANT, CURVE, MAIN_EFFECT, INTERACTION = range(4)
"""Kinds of features."""

_NOISE_STD = (0.1, 0.2, 0.35, 0.6, 1.0)
"""Residual standard deviations, relative to that of the target."""

_MAIN_STD = (0.1, 0.3, 1.0)
"""Prior standard deviations of main effects, relative to that of the target."""

_INTERACTION_RATIO = (0.1, 0.4)
"""Prior standard deviations of interactions, relative to that of main effects."""

_CURVE_STD = 0.3
"""Prior standard deviation of the curve's coefficients: how much a lead may grow or shrink. Their
mean is a lead that is kept: with one of zero, a trial far ahead is predicted to fall back."""

_LOG_NOISE_STD = 1.0
"""Prior standard deviation of the coefficients of the logarithm of the noise variance."""

_MAX_LOG_NOISE = 8.0
"""Greatest absolute logarithm of a ratio of noise variances."""

# Averaged over: the one best pair loses up to a sixth of the best. To average over _CURVE_STD as
# well, slopes between quartiles of the curve and products of three parameters save no steps.
_PRIORS = tuple(itertools.product(_MAIN_STD, _INTERACTION_RATIO))

_MIDDLE = len(_NOISE_STD) // 2
_MIDDLE_FIRST = (*range(_MIDDLE, -1, -1), *range(_MIDDLE + 1, len(_NOISE_STD)))

_NEGLIGIBLE = 30.0
"""Difference of two logarithms of evidence from which the lesser one does not count. The evidence
falls from the best level of noise to both sides; levels beyond one so far from it are left out."""

_MIN_WEIGHT = 1e-3
"""Posterior weight below which a set of hyperparameters is dropped from the average."""


_MAX_LEVELS = 8
"""Distinct values up to which a numeric parameter is encoded as levels."""

_MAX_INTERACTIONS = 200
"""Columns of interactions above which numbers have one column in them, and above which they are
left out: the regression would take too long."""


@dataclass(frozen=True)
class DesignMatrix:
    """Parameters of N trials as columns of mean zero.

    Attributes:
        main_effects: (N, p) one column for each level of a parameter except the first.
        interactions: (N, q) products of columns of different parameters.
    """

    main_effects: Floats
    interactions: Floats

    @classmethod
    def from_params(cls, trials: Sequence[Mapping[str, Any]]) -> "DesignMatrix":
        """Encode the parameters of trials; a missing parameter is a level of its own."""
        names = dict.fromkeys(itertools.chain.from_iterable(trials))
        values = [[params.get(name) for params in trials] for name in names]
        blocks = [_encode(column) for column in values]
        factors = blocks
        if _count_products(blocks) > _MAX_INTERACTIONS:
            factors = [
                _encode_order(column) if _is_numeric(column) else block
                for column, block in zip(values, blocks, strict=True)
            ]
        products = []
        if _count_products(factors) <= _MAX_INTERACTIONS:
            products = [
                (a[:, :, None] * b[:, None, :]).reshape(len(trials), -1)
                for a, b in itertools.combinations(factors, 2)
            ]
        no_columns = np.empty((len(trials), 0))
        return cls(np.hstack([no_columns, *blocks]), np.hstack([no_columns, *products]))

    @cached_property
    def columns(self) -> Floats:
        """Main effects and interactions, (N, p + q)."""
        return np.hstack([self.main_effects, self.interactions])

    @cached_property
    def kinds(self) -> Indices:
        """Kind of each of these columns, (p + q,)."""
        widths = self.main_effects.shape[1], self.interactions.shape[1]
        return np.repeat([MAIN_EFFECT, INTERACTION], widths)

    def select(self, mask: Mask) -> "DesignMatrix":
        """Return the rows of some trials."""
        return DesignMatrix(self.main_effects[mask], self.interactions[mask])


def _encode(values: Sequence[Any]) -> Floats:
    """Encode one parameter's values as columns of mean zero."""
    levels = _levels(values)
    if _is_numeric(values) and len([level for level in levels if level is not None]) > _MAX_LEVELS:
        number = np.array([math.nan if value is None else value for value in values], dtype=float)
        return _centre_number((number - np.nanmean(number)) / np.nanstd(number))
    places = {level: place for place, level in enumerate(levels)}
    place = np.array([places[value] for value in values], dtype=np.int64)
    columns = (place[:, None] == np.arange(1, len(levels))).astype(float)
    centred: Floats = columns - columns.mean(axis=0)
    return centred


def _encode_order(values: Sequence[Any]) -> Floats:
    """Encode the places of sorted numbers, from 0 to 1, in a column of mean zero."""
    present = [level for level in _levels(values) if level is not None]
    places = {value: place for place, value in enumerate(sorted(present))}
    place = np.array([places.get(value, math.nan) for value in values])
    return _centre_number(place / max(1, len(present) - 1))


def _centre_number(number: Floats) -> Floats:
    """Return a column of numbers, and one for those that are missing if some are, centred."""
    missing = np.isnan(number)
    filled = np.where(missing, 0.0, number)
    columns = np.column_stack([filled, *([missing.astype(float)] if missing.any() else [])])
    centred: Floats = columns - columns.mean(axis=0)
    return centred


def _levels(values: Sequence[Any]) -> list[Any]:
    """Return the distinct values of a parameter, sorted; a missing one is a value."""
    return sorted(set(values), key=lambda value: (str(type(value)), str(value)))


def _is_numeric(values: Sequence[Any]) -> bool:
    present = {type(value) for value in values} - {type(None)}
    return present <= {int, float}


def _count_products(blocks: Sequence[Floats]) -> int:
    return sum(a.shape[1] * b.shape[1] for a, b in itertools.combinations(blocks, 2))


@dataclass(frozen=True)
class NoiseModel:
    """Noise variance of each row, relative to a common one.

    Attributes:
        columns: (d,) features on which the variance depends.
        scales: (d,) divisors of these.
        coefficients: (d,) of the logarithm of the ratio.
    """

    columns: Indices
    scales: Floats
    coefficients: Floats

    def encode(self, features: Floats) -> Floats:
        """Return the features on which the variance depends, (m, d)."""
        return np.clip(features[:, self.columns] / self.scales, -3, 3)

    def compute_ratios(self, features: Floats) -> Floats:
        """Return the variance of each row relative to the common one, (m,)."""
        logarithm = self.encode(features) @ self.coefficients
        ratios: Floats = np.exp(np.clip(logarithm, -_MAX_LOG_NOISE, _MAX_LOG_NOISE))
        return ratios


EQUAL_NOISE = NoiseModel(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0))


class BayesianRidge:
    """Average of Bayesian ridge regressions over a grid of hyperparameters.

    Args:
        features: (n, D) of the training rows.
        kinds: (D,) kind of each feature.
        target: (n,).
        variance: (n,) variance of each target, in addition to the noise.
        noise: how the noise differs between rows.
    """

    def __init__(
        self,
        features: Floats,
        kinds: Indices,
        target: Floats,
        variance: Floats,
        noise: NoiseModel = EQUAL_NOISE,
    ) -> None:
        self._features = features
        self._target = target
        self._noise_model = noise
        scale = max(float(target.std()), 1e-6)
        ratios = noise.compute_ratios(features)
        # One set of hyperparameters after the other, although NumPy could compute them all in one
        # call: a process that exits during a long call may crash, because BLAS is unloaded under
        # it.
        priors = [_prior_variances(kinds, scale, *prior) for prior in _PRIORS]
        fits: list[tuple[_WeightedSums, Floats]] = []
        log_evidence: list[float] = []
        best: dict[int, float] = {}  # greatest logarithm of the evidence at each level of noise
        for level in _MIDDLE_FIRST:
            inner = best.get(level + (level < _MIDDLE) - (level > _MIDDLE), math.inf)
            best[level] = -math.inf
            if inner < max(best.values()) - _NEGLIGIBLE:
                continue  # further from the middle than a level that is far from the best one
            common = (_NOISE_STD[level] * scale) ** 2
            sums = _WeightedSums(features, target, variance, ratios, common)
            found = [sums.compute_log_evidence(prior) for prior in priors]
            best[level] = max(found)
            log_evidence += found
            fits += [(sums, prior) for prior in priors]
        share = np.exp(np.array(log_evidence) - max(log_evidence))
        share /= share.sum()
        selected = np.flatnonzero(share > _MIN_WEIGHT)
        self._share = share[selected] / share[selected].sum()  # (s,)
        self._weight = np.stack([fits[i][0].weight for i in selected])  # (s, n)
        self._noise = np.array([fits[i][0].noise for i in selected])
        precision = [fits[i][0].compute_precision(fits[i][1]) for i in selected]  # s of (D, D)
        moment = [fits[i][0].moment for i in selected]
        self._coefficients = np.stack(list(map(np.linalg.solve, precision, moment)))  # (s, D)
        self._covariance = list(map(np.linalg.inv, precision))

    def predict(self, features: Floats) -> Moments:
        """Predict the targets of new rows from their features, (m, D)."""
        covariance = sum(map(np.multiply, self._share, self._covariance))
        spread = ((features @ covariance) * features).sum(axis=1)
        return self._average(self._coefficients @ features.T, spread, features)

    def leave_out(self, group: Indices) -> Moments:
        """Predict a group of training rows without the targets of the group.

        For given hyperparameters these predictions follow from those with all targets. With the
        spread S = X C Xᵀ of the group's predictions and the weights W of its targets t, they are
        t − (I − S W)⁻¹ (t − X b) with the spread (I − S W)⁻¹ S (Cook & Weisberg, *Residuals and
        Influence in Regression*, 1982, sections 2.2 and 3.6). The weights of the hyperparameters
        and the ratios of the noise are those with all rows.
        """
        rows = self._features[group]  # (g, D)
        target = self._target[group]  # (g,)
        spreads = np.stack(
            [rows @ covariance @ rows.T for covariance in self._covariance]
        )  # (s, g, g)
        # The identity is the larger by a margin, so that a row that alone determines a coefficient
        # can be left out.
        rest = (1 + 1e-9) * np.eye(len(group)) - spreads * self._weight[:, None, group]
        residual = target - self._coefficients @ rows.T  # (s, g)
        means = target - np.linalg.solve(rest, residual[:, :, None])[:, :, 0]
        variances = np.diagonal(np.linalg.solve(rest, spreads), axis1=1, axis2=2)
        return self._average(means, self._share @ variances, rows)

    def leave_each_out(self) -> Moments:
        """Predict each training row without its target; see :meth:`leave_out`."""
        rows = self._features
        spread = np.stack(
            [((rows @ covariance) * rows).sum(axis=1) for covariance in self._covariance]
        )
        rest = 1 + 1e-9 - spread * self._weight
        means = self._target - (self._target - self._coefficients @ rows.T) / rest
        return self._average(means, self._share @ (spread / rest), rows)

    def _average(self, means: Floats, spread: Floats, features: Floats) -> Moments:
        """Average predictions over the hyperparameters, (s, m) means, and add the noise."""
        mean = self._share @ means
        noise = (self._share @ self._noise) * self._noise_model.compute_ratios(features)
        return mean, spread + noise + self._share @ (means - mean) ** 2


class _WeightedSums:
    """Sums over the training rows at one common variance of the noise, times (n,) ratios.

    Attributes:
        noise: the common variance.
        weight: (n,) weight of each row.
        moment: (D,) weighted sum of features times target.
    """

    def __init__(
        self, features: Floats, target: Floats, variance: Floats, ratios: Floats, noise: float
    ) -> None:
        self.noise = noise
        self.weight: Floats = 1 / (variance + noise * ratios)
        scaled = features * np.sqrt(self.weight)[:, None]
        self._gram = scaled.T @ scaled  # (D, D)
        self.moment: Floats = (self.weight * target) @ features
        self._square = float((self.weight * target**2).sum())
        self._log_weight = float(np.log(self.weight).sum())

    def compute_precision(self, prior: Floats) -> Floats:
        """Return the precision of the coefficients (D, D), given their prior variances (D,)."""
        precision = self._gram.copy()
        diagonal = np.einsum("ii->i", precision)
        diagonal += 1 / prior
        diagonal *= 1 + 1e-12  # positive definite whatever the rounding
        return precision

    def compute_log_evidence(self, prior: Floats) -> float:
        """Return the logarithm of the evidence of prior variances (D,), up to a constant.

        The last row of the Cholesky factor of [[P, m], [mᵀ, ·]], for the precision P = L Lᵀ and the
        moment m, is L⁻¹ m, whose square is mᵀ P⁻¹ m.
        """
        size = len(prior)
        bordered = np.empty((size + 1, size + 1))
        bordered[:size, :size] = self.compute_precision(prior)
        bordered[size, :size] = bordered[:size, size] = self.moment
        bordered[size, size] = 2 * self._square + 1  # any number greater than mᵀ P⁻¹ m
        factor = np.linalg.cholesky(bordered)
        explained = float((factor[size, :size] ** 2).sum())
        log_determinant = 2 * float(np.log(np.diagonal(factor)[:size]).sum())
        log_prior = float(np.log(prior).sum())
        return 0.5 * (self._log_weight - log_prior - log_determinant - self._square + explained)


def _prior_variances(kinds: Indices, scale: float, main: float, ratio: float) -> Floats:
    """Return the prior variance of each coefficient, (D,); ``scale`` is that of the target."""
    deviations = {
        CONSTANT: 10 * scale,
        CURVE: _CURVE_STD,
        MAIN_EFFECT: main * scale,
        INTERACTION: main * ratio * scale,
    }
    variances: Floats = np.array([deviations[kind] for kind in kinds.tolist()]) ** 2
    return variances


def fit_noise(
    features: Floats, kinds: Indices, target: Floats, variance: Floats, fitted: BayesianRidge
) -> NoiseModel:
    """Estimate how the noise depends on curve and main effects, from a fit in which it is equal.

    The errors of predictions that leave each row out, relative to their standard deviation, are
    taken for Student's t with the degrees of freedom of a prediction, so that a few outliers do not
    decide. The coefficients have normal priors; the mode is found by Newton's method. Rows with a
    variance are predictions and tell nothing about noise.
    """
    mean, spread = fitted.leave_each_out()
    columns = np.flatnonzero((kinds == CURVE) | (kinds == MAIN_EFFECT))
    scales = np.where(kinds[columns] == CURVE, features[:, columns].std(axis=0), 1.0)
    model = NoiseModel(columns, np.maximum(scales, 1e-9), np.zeros(len(columns)))
    is_known = variance == 0
    squares = ((target - mean) ** 2 / spread)[is_known]  # (k,)
    rows = np.column_stack([np.ones(is_known.sum()), model.encode(features[is_known])])
    precision = np.full(rows.shape[1], _LOG_NOISE_STD**-2)
    precision[0] = 1e-2
    coefficients = np.zeros(rows.shape[1])
    # The expected curvature of the likelihood, which is positive.
    curvature = 0.5 * DEGREES / (DEGREES + 3) * (rows.T @ rows) + np.diag(precision)
    for _ in range(30):
        ratio = squares * np.exp(-rows @ coefficients)
        weighted = (DEGREES + 1) * ratio / (DEGREES + ratio)
        gradient = 0.5 * (1 - weighted) @ rows + precision * coefficients
        step = np.linalg.solve(curvature, gradient)
        coefficients -= step
        if np.abs(step).max() < 1e-3:
            break
    return NoiseModel(columns, model.scales, coefficients[1:])


def mix(moments: Sequence[Moments]) -> Moments:
    """Mix predictions of the same rows by several regressions, with their precisions as weights."""
    means, variances = map(np.stack, zip(*moments, strict=True))
    share = 1 / variances
    share /= share.sum(axis=0)
    mean = (share * means).sum(axis=0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(axis=0)
