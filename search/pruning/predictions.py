"""Predict the final values of unfinished trials from their curves and from similar trials.

For a trial that has reached a rung, Bayesian linear regression predicts the difference between its
final value and its loss at that rung from its curve, its parameters and all pairs of parameters.
The scales of the priors are not tuned: posteriors over a small grid of scales are averaged with
their evidence as weights (MacKay, *Bayesian Interpolation*, 1992).

Trials stop early because of what was observed, which can be ignored if every observation enters the
model (Rubin, *Inference and Missing Data*, 1976). The last rung is therefore predicted first, and
its predictions are data, with their variances, for the rung before: the factored likelihood of
Anderson, *Maximum Likelihood Estimates for a Multivariate Normal Distribution when Some
Observations Are Missing*, 1957.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studies.calibration import DEGREES

MIN_COMPLETE = 4
"""Known final values that the regression needs; with fewer, trials rank by their last loss."""

STD_INFLATION = 1.25
"""Standard deviation inflation, to correct for optional stopping."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Rungs = NDArray[np.int64]
Indices = NDArray[np.int64]

_NOISE_STD = (0.1, 0.2, 0.35, 0.6, 1.0)
"""Residual standard deviations, relative to that of the target."""

_MAIN_STD = (0.1, 0.3, 1.0)
"""Prior standard deviations of main effects, relative to that of the target."""

_INTERACTION_RATIO = (0.1, 0.4)
"""Prior standard deviations of interactions, relative to that of main effects."""

_CURVE_STD = 0.3
"""Prior standard deviation of the curve's coefficients: how much a lead may grow or shrink."""

_HYPERPARAMETERS = np.array(list(itertools.product(_NOISE_STD, _MAIN_STD, _INTERACTION_RATIO)))
# (S, 3)

_MIN_WEIGHT = 1e-3
"""Posterior weight below which a set of hyperparameters is dropped from the average."""

_MAX_LEVELS = 8
"""Distinct values up to which a numeric parameter is encoded as levels."""

_MAX_INTERACTIONS = 500
"""Columns above which interactions are left out: the regression would take too long."""

_CONSTANT, _CURVE, _MAIN_EFFECT, _INTERACTION = range(4)


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
        blocks = [
            _encode([params.get(name) for params in trials])
            for name in dict.fromkeys(itertools.chain.from_iterable(trials))
        ]
        blocks = [block for block in blocks if block.shape[1]]
        products = [
            (a[:, :, None] * b[:, None, :]).reshape(len(trials), -1)
            for a, b in itertools.combinations(blocks, 2)
        ]
        if sum(product.shape[1] for product in products) > _MAX_INTERACTIONS:
            products = []
        no_columns = np.empty((len(trials), 0))
        return cls(np.hstack([no_columns, *blocks]), np.hstack([no_columns, *products]))

    def select(self, mask: Mask) -> "DesignMatrix":
        """Return the rows of some trials."""
        return DesignMatrix(self.main_effects[mask], self.interactions[mask])


@dataclass(frozen=True)
class Prediction:
    """Final values of N trials as Student's t-distributions with five degrees of freedom.

    The tails are heavier than a normal distribution's: a few networks differ from what their
    parameters and pairs of parameters explain.

    Attributes:
        mean: (N,) location; the value of a finished trial.
        scale: (N,) scale; 0 for a finished trial.
    """

    mean: Floats
    scale: Floats

    def cdf(self, threshold: float) -> Floats:
        """Return the probability of each trial to finish below a threshold, (N,)."""
        scale = np.maximum(self.scale, 1e-9 * (1 + np.abs(self.mean)))
        # Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.3, for five degrees.
        angle = np.arctan((threshold - self.mean) / scale / math.sqrt(DEGREES))
        cosine = np.cos(angle)
        odd: Floats = np.sin(angle) * (cosine + 2 / 3 * cosine**3)
        return 0.5 + (angle + odd) / math.pi

    def threshold_for_count(self, count: int) -> float:
        """Return the threshold below which ``count`` of the trials are expected to finish."""
        if count >= len(self.mean):
            return math.inf
        reach = 100 * self.scale.max() + 1e-6
        low, high = self.mean.min() - reach, self.mean.max() + reach
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.cdf(middle).sum() < count else (low, middle)
        return float(high)


def predict_final_values(
    design: DesignMatrix,
    losses: Floats,
    values: Floats,
    held_out: Rungs | None = None,
    architectures: Indices | None = None,
) -> Prediction:
    """Predict the final values of N trials.

    Args:
        design: parameters of the trials.
        losses: (N, R) loss at each rung; NaN from the first rung that a trial has not reached.
        values: (N,) finite values of finished trials; NaN for the others.
        held_out: (N,) number of rungs from which the value of a finished trial is predicted by
            leaving it out of the regression, with those of all such trials of its architecture; -1
            for all other trials. The value is data for the predictions of other architectures.
            None if there is no such trial.
        architectures: (N,) architecture of each trial; None if each is an architecture.
    """
    rungs = losses.shape[1]
    held_out = np.full(len(values), -1) if held_out is None else held_out
    architectures = np.arange(len(values)) if architectures is None else architectures
    is_held = held_out >= 0
    mean, variance = values.copy(), np.zeros(len(values))
    known = ~np.isnan(values)
    reached = np.where(known, -1, (~np.isnan(losses)).sum(axis=1))  # (N,) rungs
    held_mean, held_variance = mean.copy(), variance.copy()
    for rung in range(rungs, -1, -1):
        new, held = reached == rung, (held_out == rung) & ~np.isnan(values)
        if not (new | held).any():
            continue
        features, kinds, loss = _features(design, losses, rung)
        # Trials that were added by hand may be finished without a curve.
        usable = known & np.isfinite(features).all(axis=1)
        rows = np.flatnonzero(usable)
        groups = [
            np.flatnonzero((is_held & (architectures == architecture))[rows])
            for architecture in np.unique(architectures[held & usable])
        ]
        if len(rows) < MIN_COMPLETE + max(map(len, groups), default=0):
            mean[new], variance[new] = loss[new], _weak_prior_variance(losses)
            held_mean[held], held_variance[held] = loss[held], _weak_prior_variance(losses)
        else:
            target = mean[usable] - loss[usable]
            middle = float(np.median(target))
            (mean[new], variance[new]), left_out = _bayesian_ridge_average(
                features[usable], kinds, target - middle, variance[usable], features[new], groups
            )
            mean[new] += middle + loss[new]
            for group, (means, variances) in zip(groups, left_out, strict=True):
                found = held[rows[group]]
                chosen = rows[group][found]
                held_mean[chosen] = means[found] + middle + loss[chosen]
                held_variance[chosen] = variances[found]
        known |= new
    mean = np.where(is_held, held_mean, mean)
    variance = np.where(is_held, held_variance, variance)
    return Prediction(mean, STD_INFLATION * np.sqrt(variance))


def _features(
    design: DesignMatrix, losses: Floats, rung: int
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Return the regression's features for trials that have reached ``rung`` rungs.

    Returns:
        (N, D) features, NaN for trials that have not reached the rung; (D,) their kinds; (N,) the
        losses that are subtracted from the final values.
    """
    columns = [np.ones(len(losses))]
    loss = np.zeros(len(losses))
    if rung:
        loss = losses[:, rung - 1]
        middle = np.nanmedian(loss) if not np.isnan(loss).all() else 0.0
        # The better half may converge while the worse half does not.
        columns += [np.minimum(loss, middle) - middle, np.maximum(loss, middle) - middle]
    if rung > 1:
        fall = losses[:, rung - 1] - losses[:, rung - 2]
        columns.append(fall - (np.nanmedian(fall) if not np.isnan(fall).all() else 0.0))
    kinds = [_CONSTANT] + [_CURVE] * (len(columns) - 1)
    kinds += [_MAIN_EFFECT] * design.main_effects.shape[1]
    kinds += [_INTERACTION] * design.interactions.shape[1]
    features = np.column_stack([*columns, design.main_effects, design.interactions])
    return features, np.array(kinds), loss


def _bayesian_ridge_average(
    features: Floats,
    kinds: NDArray[np.int64],
    target: Floats,
    variance: Floats,
    new: Floats,
    groups: Sequence[Indices],
) -> tuple[tuple[Floats, Floats], list[tuple[Floats, Floats]]]:
    """Fit Bayesian ridge regressions over a grid of hyperparameters and average their predictions.

    Args:
        features: (n, D) of the training rows.
        kinds: (D,) kind of each feature.
        target: (n,).
        variance: (n,) variance of each target, in addition to the noise.
        new: (m, D) features of the rows to predict.
        groups: groups of training rows to predict as well, each without the targets of its group.
            For given hyperparameters these predictions follow from those with all targets. With
            the spread S = X C Xᵀ of a group's predictions and the weights W of its targets t, they
            are t − (I − S W)⁻¹ (t − X b) with the spread (I − S W)⁻¹ S (Cook & Weisberg, *Residuals
            and Influence in Regression*, 1982, sections 2.2 and 3.6). The weights of the
            hyperparameters are those with all rows.

    Returns:
        (m,) means and variances of the new rows; the same of each group.
    """
    scale = max(float(target.std()), 1e-6)
    noise = (_HYPERPARAMETERS[:, 0] * scale) ** 2  # (S,)
    prior = np.empty((len(_HYPERPARAMETERS), len(kinds)))  # (S, D) variances of the coefficients
    prior[:, kinds == _CONSTANT] = (10 * scale) ** 2
    prior[:, kinds == _CURVE] = _CURVE_STD**2
    prior[:, kinds == _MAIN_EFFECT] = ((_HYPERPARAMETERS[:, 1] * scale) ** 2)[:, None]
    prior[:, kinds == _INTERACTION] = (
        (_HYPERPARAMETERS[:, 1] * _HYPERPARAMETERS[:, 2] * scale) ** 2
    )[:, None]
    weight = 1 / (variance + noise[:, None])  # (S, n)
    # One set of hyperparameters after the other, although NumPy could compute them all in one call:
    # a process that exits during a long call may crash, because BLAS is unloaded under it.
    precision = np.stack([(features.T * each) @ features for each in weight])  # (S, D, D)
    diagonal = np.arange(len(kinds))
    precision[:, diagonal, diagonal] += 1 / prior
    moment = np.matmul(weight * target, features)  # (S, D)
    coefficients = np.stack(list(map(np.linalg.solve, precision, moment)))  # (S, D)
    log_evidence = 0.5 * (
        np.log(weight).sum(axis=1)
        - np.log(prior).sum(axis=1)
        - np.linalg.slogdet(precision)[1]
        - (weight * target**2).sum(axis=1)
        + (coefficients * moment).sum(axis=1)
    )
    share = np.exp(log_evidence - log_evidence.max())
    share /= share.sum()
    selected = share > _MIN_WEIGHT
    share = share[selected] / share[selected].sum()  # (s,)
    weight, noise = weight[selected], noise[selected]
    coefficients = coefficients[selected]  # (s, D)
    covariance = [np.linalg.inv(each) for each in precision[selected]]  # s of (D, D)

    def average(means: Floats, spread: Floats) -> tuple[Floats, Floats]:
        mean = share @ means
        return mean, share @ (spread + noise[:, None] + (means - mean) ** 2)

    spread = np.stack([((new @ each) * new).sum(axis=1) for each in covariance])  # (s, m)
    left_out = []
    for group in groups:
        rows = features[group]  # (g, D)
        spreads = np.stack([rows @ each @ rows.T for each in covariance])  # (s, g, g)
        # The identity is the larger by a margin, so that a row that alone determines a coefficient
        # can be left out.
        rest = (1 + 1e-9) * np.eye(len(group)) - spreads * weight[:, None, group]
        residual = target[group] - coefficients @ rows.T  # (s, g)
        means = target[group] - np.linalg.solve(rest, residual[:, :, None])[:, :, 0]
        variances = np.diagonal(np.linalg.solve(rest, spreads), axis1=1, axis2=2)
        left_out.append(average(means, variances))
    return average(coefficients @ new.T, spread), left_out


def _weak_prior_variance(losses: Floats) -> float:
    """Return a variance wide enough to express that almost nothing is known."""
    seen = losses[~np.isnan(losses)]
    return float(4 * seen.var()) if seen.size > 1 else 1.0


def _encode(values: Sequence[Any]) -> Floats:
    """Encode one parameter's values as columns of mean zero."""
    levels = sorted(set(values), key=lambda value: (str(type(value)), str(value)))
    present = [value for value in levels if value is not None]
    is_numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in present)
    if is_numeric and len(present) > _MAX_LEVELS:
        number = np.array([math.nan if value is None else value for value in values], dtype=float)
        number = (number - np.nanmean(number)) / np.nanstd(number)
        missing = np.isnan(number).astype(float)
        columns = np.column_stack([np.nan_to_num(number), *([missing] if missing.any() else [])])
        standardized: Floats = columns - columns.mean(axis=0)
        return standardized
    columns = np.array([[value == level for level in levels[1:]] for value in values], dtype=float)
    columns = columns.reshape(len(values), len(levels) - 1)
    centred: Floats = columns - columns.mean(axis=0)
    return centred
