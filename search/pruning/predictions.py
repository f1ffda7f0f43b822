"""Predict the final values of unfinished trials from their curves and from similar trials.

For a trial that has reached a rung, Bayesian linear regression predicts the difference between its
final value and its loss at that rung from its curve, its parameters and all pairs of parameters.

The noise of the trials that a policy promotes is that of good ones. Audited trials show that of bad
ones as well, which may be ten times as large: once there is one, predictions of a regression with
equal noise and of one with unequal noise are mixed (:mod:`search.pruning.regression`).

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

from search.pruning.regression import (
    CONSTANT,
    CURVE,
    INTERACTION,
    MAIN_EFFECT,
    BayesianRidge,
    Floats,
    Indices,
    fit_noise,
    mix,
)
from studies.calibration import DEGREES

MIN_COMPLETE = 4
"""Known final values that the regression needs; with fewer, trials rank by their last loss."""

STD_INFLATION = 1.25
"""Standard deviation inflation, to correct for optional stopping."""

Mask = NDArray[np.bool_]
Rungs = NDArray[np.int64]

_MAX_LEVELS = 8
"""Distinct values up to which a numeric parameter is encoded as levels."""

_MAX_INTERACTIONS = 500
"""Columns above which interactions are left out: the regression would take too long."""


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
            rest = (features[usable], kinds, target - middle, variance[usable])
            fits = [BayesianRidge(*rest)]
            if is_held.any():
                fits.append(BayesianRidge(*rest, fit_noise(*rest, fits[0])))
            mean[new], variance[new] = mix([fit.predict(features[new]) for fit in fits])
            mean[new] += middle + loss[new]
            for group in groups:
                means, variances = mix([fit.leave_out(group) for fit in fits])
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
    kinds = [CONSTANT] + [CURVE] * (len(columns) - 1)
    kinds += [MAIN_EFFECT] * design.main_effects.shape[1]
    kinds += [INTERACTION] * design.interactions.shape[1]
    features = np.column_stack([*columns, design.main_effects, design.interactions])
    return features, np.array(kinds), loss


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
