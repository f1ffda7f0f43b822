"""Predict the final values of unfinished trials from their curves and from similar trials.

For a trial that has reached a rung, Bayesian linear regression predicts the difference between its
final value and its loss at that rung from its curve, its parameters and all pairs of parameters.

Losses are predicted on a scale on which bad trials differ less than good ones: a regression would
otherwise follow the bad ones, which hardly matter. Losses that fall towards 0 differ by factors:
where they span a decade, their logarithms take their place.

Audited trials show the noise of bad networks as well, which may be ten times that of the good ones
that a policy promotes: once there is one, predictions of a regression with equal noise, which
follows a few noisy networks, and of one with unequal noise, which takes a few that fall late for
noise, are mixed.

Trials stop early because of what was observed, which can be ignored if every observation enters the
model (Rubin, *Inference and Missing Data*, 1976). The last rung is therefore predicted first, and
its predictions are data, with their variances, for the rung before: the factored likelihood of
Anderson, *Maximum Likelihood Estimates for a Multivariate Normal Distribution when Some
Observations Are Missing*, 1957. To predict each rung from the one before instead, and to chain
that, loses up to half of the best: those that were promoted all improved.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from reports.stats.audit import DEGREES
from search.pruning.regression import (
    CONSTANT,
    CURVE,
    BayesianRidge,
    DesignMatrix,
    Floats,
    Indices,
    Mask,
    Moments,
    fit_noise,
    mix,
)

Rungs = NDArray[np.int64]
"""Number of rungs of each trial."""

MIN_COMPLETE = 4
"""Known final values that the regression needs; with fewer, trials rank by their last loss."""

STD_INFLATION = 1.25
"""Standard deviation inflation, to correct for optional stopping: a search ends at the first moment
at which its predictions permit it. Without it, a grid of 192 trials kept 74% of its best tenth."""

EXTRAPOLATION = 1.0
"""Standard deviation of a prediction for each unit that a loss has fallen less than all those of
which the end is known. A network on a plateau that these have left may fall as they did, which the
regression has not seen: without it, a simulated grid lost a third of its best tenth, deep networks
that fall late."""

_MAX_LOGARITHM = 20.0
"""Greatest logarithm of an excess, in widths, that is expanded; greater predictions are equal."""

_DECADE = 10.0
"""Least ratio of the median loss to the least one of which the logarithms are predicted."""

_FURTHEST = 200.0
"""Distance from the median on a scale of logarithms beyond which all predictions are equal."""


@dataclass(frozen=True)
class LossScale:
    """Losses up to the median as they are, and the logarithm of the excess over it.

    Attributes:
        median: loss from which the scale is logarithmic; by default the scale is linear.
        width: excess over it at which differences count half.
        least: if positive, logarithms take the place of losses, and median and width are theirs;
            it takes the place of a loss of 0.
    """

    median: float = math.inf
    width: float = 1.0
    least: float = 0.0

    @classmethod
    def from_losses(cls, losses: Floats, *others: Floats) -> "LossScale":
        """Return the scale for some losses, of which missing ones are NaN.

        Its width is the greatest distance of the least loss from the median, in these or in others
        of the same trials: losses may hardly differ at first. Where most trials have the least
        loss, that is 0, and the median excess of the others is taken. The scale is linear if all
        losses are equal or missing.
        """
        columns = [losses, *others]
        least = _find_least(columns)
        columns = [cls(least=least)._take_logarithms(column) for column in columns]
        known = [column[np.isfinite(column)] for column in columns]
        excesses = [losses - np.median(losses) for losses in known if len(losses)]
        width = max((-excess.min() for excess in excesses), default=0.0)
        if width == 0:
            above = [excess[excess > 0] for excess in excesses]
            width = max((np.median(part) for part in above if len(part)), default=0.0)
        if width == 0:
            return cls()
        median = float(np.median(known[0])) if len(known[0]) else math.inf
        return cls(median, float(width), least)

    @property
    def unit(self) -> float:
        """Power of two near the width, to divide losses by without rounding; 1 of logarithms."""
        return 1.0 if self.least > 0 else math.ldexp(1.0, math.frexp(self.width)[1])

    def divide(self, divisor: float) -> "LossScale":
        """Return the same scale for losses that are divided by a number."""
        return replace(self, median=self.median / divisor, width=self.width / divisor)

    def shift(self, reference: Floats, losses: Floats) -> "LossScale":
        """Return the same scale for later losses of the trials of reference, NaN where missing.

        A trial that keeps its lead over the others keeps it on both scales.
        """
        is_known = np.isfinite(losses) & np.isfinite(reference)
        if self.median == math.inf or not is_known.any():
            return self
        change = self._take_logarithms(losses) - self._take_logarithms(reference)
        return replace(self, median=self.median + float(np.median(change[is_known])))

    def compress(self, losses: Floats) -> Floats:
        """Return losses on this scale."""
        losses = self._take_logarithms(losses)
        if self.median == math.inf:
            return losses
        excess = np.maximum(losses - self.median, 0) / self.width
        compressed: Floats = np.minimum(losses, self.median) + self.width * np.log1p(excess)
        return compressed

    def expand(self, compressed: Floats) -> Floats:
        """Return the losses that are compressed to these."""
        expanded = compressed
        if self.median != math.inf:
            logarithm = np.maximum(compressed - self.median, 0) / self.width
            excess = self.width * np.expm1(np.minimum(logarithm, _MAX_LOGARITHM))
            expanded = np.minimum(compressed, self.median) + excess
        if self.least > 0:
            middle = math.log(self.least) if self.median == math.inf else self.median
            expanded = np.exp(np.clip(expanded, middle - _FURTHEST, middle + _FURTHEST))
        return expanded

    def slope(self, losses: Floats) -> Floats:
        """Return how much a difference between losses near these counts on this scale."""
        slopes = 1 / self._fill(losses) if self.least > 0 else np.ones_like(losses)
        if self.median == math.inf:
            return slopes
        excess = np.maximum(self._take_logarithms(losses) - self.median, 0) / self.width
        return slopes / (1 + excess)

    def fall(self, first: Floats, last: Floats) -> Floats:
        """Return how far losses have fallen, without making bad ones differ less; 0 for a rise."""
        return np.maximum(self._take_logarithms(first) - self._take_logarithms(last), 0)

    def _take_logarithms(self, losses: Floats) -> Floats:
        return np.log(self._fill(losses)) if self.least > 0 else losses

    def _fill(self, losses: Floats) -> Floats:
        """Return losses with the least positive one in the place of 0."""
        return np.where(losses == 0, self.least, losses)


def _find_least(columns: Sequence[Floats]) -> float:
    """Return the least positive loss if losses span a decade and none is negative; else 0."""
    least = math.inf
    ratio = 1.0
    for column in columns:
        known = column[np.isfinite(column)]
        positive = known[known > 0]
        if (known < 0).any():
            return 0.0
        if len(positive):
            least = min(least, float(positive.min()))
            ratio = max(ratio, float(np.median(known) / positive.min()))
    return least if ratio >= _DECADE else 0.0


@dataclass(frozen=True)
class Prediction:
    """Final values of N trials as Student's t-distributions with five degrees of freedom.

    The tails are heavier than a normal distribution's: a few networks differ from what their
    parameters and pairs of parameters explain.

    Attributes:
        mean: (N,) location; the value of a finished trial.
        scale: (N,) scale near the location, which is multiplied by the slope there on the scale of
            losses; 0 for a finished trial.
        losses: scale of losses on which the distributions are symmetric.
    """

    mean: Floats
    scale: Floats
    losses: LossScale = field(default_factory=LossScale)

    def correct(self, bias: Floats, factor: Floats) -> "Prediction":
        """Return predictions shifted by (N,) ``bias``, in scales, with scales times ``factor``."""
        compressed, slope = self.losses.compress(self.mean), self.losses.slope(self.mean)
        moved = self.losses.expand(compressed + bias * self.scale * slope)
        mean = np.where(self.scale > 0, moved, self.mean)
        scale = factor * self.scale * slope / self.losses.slope(mean)
        return replace(self, mean=mean, scale=scale)

    def compute_scores(self, values: Floats) -> Floats:
        """Return how many scales each trial's value lies above its location, (N,)."""
        mean, scale = self._compressed
        scores: Floats = (self.losses.compress(values) - mean) / scale
        return scores

    def cdf(self, threshold: float) -> Floats:
        """Return the probability of each trial to finish below a threshold, (N,)."""
        return cumulate(self.compute_scores(np.array(threshold)))

    def threshold_for_count(self, count: int) -> float:
        """Return the threshold below which ``count`` of the trials are expected to finish."""
        if count >= len(self.mean):
            return math.inf
        mean, scale = self._compressed
        reach = 100 * scale.max()
        low, high = mean.min() - reach, mean.max() + reach
        for _ in range(60):
            middle = (low + high) / 2
            expected = cumulate((middle - mean) / scale).sum()
            low, high = (middle, high) if expected < count else (low, middle)
        return float(self.losses.expand(np.array(high)))

    @cached_property
    def _compressed(self) -> tuple[Floats, Floats]:
        """Locations and scales on the scale of losses, (N,) each."""
        mean = self.losses.compress(self.mean)
        # Equal values are one value, whatever the rounding.
        least = np.maximum(1e-9 * self.losses.width, 4 * np.spacing(np.abs(mean)))
        return mean, np.maximum(self.scale * self.losses.slope(self.mean), least)


def cumulate(scores: Floats) -> Floats:
    """Return the distribution function of Student's t at some scores, (N,)."""
    # Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.3, for five degrees.
    angle = np.arctan(scores / math.sqrt(DEGREES))
    cosine = np.cos(angle)
    odd: Floats = np.sin(angle) * (cosine + 2 / 3 * cosine**3)
    return 0.5 + (angle + odd) / math.pi


# Whole predictions, not sums to update: the scales of the priors, the variances of later rungs and
# the weight of each row change with every new value.
PredictionMemory = dict[int, tuple["_RungData", tuple[Moments, Moments]]]
"""What was predicted last at each rung, and from what: it is used again while that is the same.
Most trials wait for others: of the losses that one decision uses, few are new to the next one."""


def predict_final_values(
    design: DesignMatrix,
    losses: Floats,
    values: Floats,
    held_out: Rungs,
    architectures: Indices,
    memory: PredictionMemory,
) -> Prediction:
    """Predict the final values of N trials.

    Args:
        design: parameters of the trials.
        losses: (N, R) loss at each rung; NaN from the first rung that a trial has not reached.
        values: (N,) finite values of finished trials; NaN for the others.
        held_out: (N,) number of rungs from which the value of a finished trial is predicted by
            leaving it out of the regression, with those of all such trials of its architecture; -1
            for all other trials. The value is data for the predictions of other architectures.
        architectures: (N,) architecture of each trial.
        memory: what earlier calls have predicted, which is updated.
    """
    count, rungs = losses.shape
    has_value = ~np.isnan(values)
    is_held = held_out >= 0
    first = losses[:, 0] if rungs else values
    scale_of_first = LossScale.from_losses(first, *losses.T, values)
    # No number below is large or small in itself, whatever the unit of the losses.
    unit = scale_of_first.unit
    scale_of_first, first = scale_of_first.divide(unit), first / unit
    raw_losses = losses / unit
    raw_values = values / unit
    scale_of_values = scale_of_first.shift(first, raw_values)
    losses = raw_losses.copy()
    for column in losses.T:
        column[:] = scale_of_first.shift(first, column).compress(column)
    mean, variance = scale_of_values.compress(raw_values), np.zeros(count)
    held_mean, held_variance = mean.copy(), variance.copy()
    known = has_value.copy()
    reached = np.where(has_value, -1, (~np.isnan(losses)).sum(axis=1))  # (N,) rungs
    for rung in range(rungs, -1, -1):
        new = reached == rung
        held = (held_out == rung) & has_value
        if not (new | held).any():
            continue
        curve, loss = _curve_features(losses, rung)
        # Trials that were added by hand may be finished without a curve.
        usable = known & np.isfinite(curve).all(axis=1)
        groups = [
            np.flatnonzero(is_held & (architectures == architecture) & usable)
            for architecture in np.unique(architectures[held & usable])
        ]
        if usable.sum() < MIN_COMPLETE + max(map(len, groups), default=0):
            least, weak = _weak_prior(losses)
            last = scale_of_values.compress(raw_losses[:, rung - 1]) if rung else loss + least
            mean[new], variance[new] = last[new], weak
            held_mean[held], held_variance[held] = last[held], weak
        else:
            known_values = mean[usable], variance[usable]
            fall = scale_of_first.fall(raw_losses[:, 0], raw_losses[:, rung - 1]) if rung else loss
            rows = design, curve, loss, fall, *known_values
            data = _RungData(*rows, usable, new, held, is_held, groups)
            if rung not in memory or not data.equals(memory[rung][0]):
                memory[rung] = data, data.predict()
            (mean[new], variance[new]), found = memory[rung][1]
            held_mean[held & usable], held_variance[held & usable] = found
        known |= new
    mean = np.where(is_held, held_mean, mean)
    variance = np.where(is_held, held_variance, variance)
    mean = np.where(has_value & ~is_held, raw_values, scale_of_values.expand(mean))
    scale = STD_INFLATION * np.sqrt(variance) / scale_of_values.slope(mean)
    return Prediction(mean * unit, scale * unit, scale_of_values.divide(1 / unit))


@dataclass(frozen=True)
class _RungData:
    """All that the predictions at a rung follow from, of N trials, n of them training rows."""

    design: DesignMatrix
    curve: Floats  # (N, c) features of the curves, NaN for trials that have not reached the rung
    loss: Floats  # (N,) losses that are subtracted from the final values
    fall: Floats  # (N,) how far the losses have fallen since the first rung
    mean: Floats  # (n,) final values of the training rows
    variance: Floats  # (n,) their variances
    usable: Mask  # (N,) which trials are training rows
    new: Mask  # (N,) trials to predict, which have stopped at the rung
    held: Mask  # (N,) trials to predict without their values
    is_held: Mask  # (N,) which trials are so predicted at any rung
    groups: Sequence[Indices]  # training rows of each architecture that has such trials

    def equals(self, other: "_RungData") -> bool:
        """Return whether all is equal, and the design the same object."""
        return self.design is other.design and self._list_bytes() == other._list_bytes()

    def predict(self) -> tuple[Moments, Moments]:
        """Predict the final values of the new trials, and of those that are held out."""
        target = self.mean - self.loss[self.usable]
        middle = float(np.median(target))
        kinds = np.repeat([CONSTANT, CURVE], [1, self.curve.shape[1] - 1])
        rows = (
            self._features(self.usable),
            np.concatenate([kinds, self.design.kinds]),
            target - middle,
            self.variance,
        )
        fits = [BayesianRidge(*rows)]
        if self.is_held.any():
            fits.append(BayesianRidge(*rows, fit_noise(*rows, fits[0])))
        # Mixed by precision: unequal noise alone loses networks that fall late, equal noise alone
        # follows a few noisy ones, and equal parts of both cost more.
        features = self._features(self.new)
        mean, variance = mix([fit.predict(features) for fit in fits])
        variance += self._extrapolation(self.new, self.usable)
        held_mean, held_variance = np.empty((2, len(self.held)))
        places = np.cumsum(self.usable) - 1  # (N,) training row of each trial
        for group in self.groups:
            moments = mix([fit.leave_out(places[group]) for fit in fits])
            held_mean[group], held_variance[group] = moments
            others = self.usable.copy()
            others[group] = False
            held_variance[group] += self._extrapolation(group, others)
        held = self.held & self.usable
        return (
            (mean + middle + self.loss[self.new], variance),
            (held_mean[held] + middle + self.loss[held], held_variance[held]),
        )

    def _extrapolation(self, trials: Mask | Indices, known: Mask) -> Floats:
        """Return the variance to add where losses have fallen less than all known ones, (m,)."""
        missing = np.maximum(self.fall[known].min() - self.fall[trials], 0)
        variance: Floats = (EXTRAPOLATION * missing) ** 2
        return variance

    def _list_bytes(self) -> list[bytes]:
        rows = self.curve, self.loss, self.fall, self.mean, self.variance, self.usable
        arrays = (*rows, self.new, self.held, self.is_held, *self.groups)
        return [array.tobytes() for array in arrays]

    def _features(self, trials: Mask) -> Floats:
        """Return the features of some trials, (m, D)."""
        return np.hstack([self.curve[trials], self.design.columns[trials]])


def _curve_features(losses: Floats, rung: int) -> tuple[Floats, Floats]:
    """Return ``curve``, of which the first column is constant, and ``loss`` of a rung."""
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
    return np.column_stack(columns), loss


def _weak_prior(losses: Floats) -> tuple[float, float]:
    """Return a value below all losses, for trials without one, and a large variance."""
    seen = losses[~np.isnan(losses)]
    variance = float(4 * seen.var()) if seen.size > 1 else 1.0
    least = float(seen.min()) - 4 * math.sqrt(variance) if seen.size else 0.0
    return least, variance
