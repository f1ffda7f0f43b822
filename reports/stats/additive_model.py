"""Additive model of a sweep whose runs form no matched pairs, such as one that a sampler drew.

The value of a run is fitted by least squares as a sum of one term for each parameter. Errors are
robust: they allow noise that differs between runs and is shared by the runs of a configuration
(CR2; Bell & McCaffrey, *Bias Reduction in Standard Errors for Linear Regression with Multi-Stage
Samples*, 2002), with Satterthwaite's degrees of freedom.

A term follows from the values of its parameter:

- texts, switches, and numbers of at most :data:`MAX_LEVELS` values have *levels*: one effect each.
  Levels of a number assume no shape and cost one column less than there are values;
- other numbers have a *trend*, a parabola whose linear and quadratic parts are tested. If one of
  them is significant, the trend has another curvature on each side of its best place, because
  losses, for example, rise faster on one side of the best learning rate. The axis is logarithmic if
  all values are positive, the greatest is at least 10^:data:`LOG_DECADES` times the least, and
  their logarithms are spread more evenly over their range than they are themselves.

A parameter that some runs lack has an indicator, and its term is centered over the runs that have
it. So a level of another parameter, such as an optimizer with options of its own, is compared at
the average of these options.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reports.stats import Booleans, Floats, Integers
from reports.stats.design import Contrast
from reports.stats.effects import CONFIDENCE, AdjustedEffect, Effect
from reports.stats.noise import MIN_DEGREES, NoiseSource
from reports.stats.replicates import adjust_by_holm
from reports.stats.scale import NATS, Scale, is_missing, order_values

MAX_LEVELS = 5
"""Number of values of a number up to which each has an effect of its own."""

MIN_CONFIGURATIONS = 3
"""Configurations that a level needs; runs of rarer levels count as lacking the parameter."""

LOG_DECADES = 1.5
"""Decades that positive values cover at least on a logarithmic axis."""

MIN_RESIDUAL = 5
"""Configurations needed in addition to one for each coefficient."""

MIN_SIDE = 10
"""Runs on each side of a place that a curvature of its own needs."""

KINK_LEVEL = 0.05
"""Level of the test for a kink at a place."""

_TOLERANCE = 1e-6
"""Relative size below which a difference is rounding."""

_ROUNDING = 1e-8
"""Least noise of a value, as a share of the range of all values."""

_GRID = np.linspace(-1, 1, 101)
"""Places of a drawn trend on its axis, whose range is scaled to −1 to 1."""

_CANDIDATES = np.linspace(-1, 1, 41)
"""Places that are tested for the best one."""


class _Estimate(NamedTuple):
    """Some differences of expected values with their 95% intervals, each an array (m,).

    The p-values are two-sided, of no difference. Where the differences cannot be estimated, the
    reason says why in one clause.
    """

    mean: Any = math.nan
    error: Any = math.nan
    degrees: Any = 0.0
    low: Any = math.nan
    high: Any = math.nan
    p: Any = 1.0
    reason: str = ""


@dataclass(frozen=True)
class Optimum:
    """Where a trend is best within the values tried, with a 95% interval of the place.

    Attributes:
        value: the best place of the fitted trend; NaN if unknown.
        low: lower end of the interval; the least value tried if ``is_open_below``.
        high: upper end of the interval; the greatest value tried if ``is_open_above``.
        is_open_below: whether the best may lie at or below the least value tried.
        is_open_above: whether the best may lie at or above the greatest value tried.
        reason: why it is unknown, in one clause; "" if it is known.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    is_open_below: bool = False
    is_open_above: bool = False
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Trend:
    """How the value depends on a number, other parameters being equal.

    Attributes:
        parameter: name of the parameter.
        is_log: whether its axis is logarithmic.
        low: least value tried.
        high: greatest value tried.
        p: p-value of no trend at all, by its linear and its quadratic part.
        optimum: where it is best.
        places: (101,), values of the parameter, evenly spaced on its axis.
        curve: (101,), fitted values there, at the average of all other terms.
        points: (runs that have the parameter,), their values of it.
        partials: values of these runs without the effects of other terms.
        p_adjusted: ``p``, corrected for the number of all tests of the model.
    """

    parameter: str
    is_log: bool
    low: float
    high: float
    p: float
    optimum: Optimum
    places: Floats
    curve: Floats
    points: Floats
    partials: Floats
    p_adjusted: float = 1.0

    @property
    def is_significant(self) -> bool:
        """Whether there is any trend, after correction."""
        return self.p_adjusted < 1 - CONFIDENCE


@dataclass(frozen=True)
class AdditiveModel:
    """A fitted additive model.

    Attributes:
        configurations: number of configurations that were fitted.
        levels: differences between levels, in the order of the parameters.
        trends: trends, in the order of the parameters.
        predicted_share: share of the variance of the values that the model explains in
            configurations that it was not fitted to, by leaving out one at a time: 1 minus the
            ratio of the squared errors of the model and of the mean. Below zero the mean predicts
            better. NaN if unknown.
        reasons: why a parameter, or a level of it, is not estimated, in one clause, by its name.
        reason: why nothing is estimated, in one clause; "" if something is.
    """

    configurations: int
    levels: tuple[AdjustedEffect, ...] = ()
    trends: tuple[Trend, ...] = ()
    predicted_share: float = math.nan
    reasons: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


def fit_additive_model(
    columns: Mapping[str, Sequence[Any] | NDArray[Any]],
    values: Sequence[float] | Floats,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    scale: Scale = NATS,
) -> AdditiveModel:
    """Fit the values of runs as a sum of one term for each parameter.

    Args:
        columns: the parameter of each run, (runs,) by name; None or NaN where a run lacks it.
        values: (runs,); runs without a finite value are left out.
        clusters: (runs,), equal for the runs of one configuration; None if each run has its own.
        scale: unit, direction and precision of the values.
    """
    y = np.asarray(values, dtype=np.float64)
    rows = np.flatnonzero(np.isfinite(y))
    y = y[rows]
    names = rows if clusters is None else np.asarray(clusters)[rows]
    groups = np.unique(names, return_inverse=True)[1].astype(np.int64)
    configurations = len(set(groups.tolist()))
    if len(set(y.tolist())) < 2:
        reason = "all runs have the same value" if len(y) else "no run has one"
        return AdditiveModel(configurations, reason=reason)
    built = {
        name: _build_term(name, [column[row] for row in rows.tolist()], groups)
        for name, column in columns.items()
    }
    terms = [each for each in built.values() if isinstance(each, _Term)]
    reasons = {name: each for name, each in built.items() if isinstance(each, str)}
    if not terms:
        return AdditiveModel(configurations, reasons=reasons, reason="no parameter varies enough")
    fit = _Fit(terms, y - y.mean(), groups)  # a large constant would cost digits
    needed = fit.rank + MIN_RESIDUAL
    if configurations < needed:
        reason = f"{configurations} configurations are too few: the model needs at least {needed}"
        return AdditiveModel(configurations, reasons=reasons, reason=reason)

    searched = [_search_optimum(fit, term, scale) for term in terms]
    drawn = _Fit([each.term for each in searched], fit.values, groups)
    if configurations >= drawn.rank + MIN_RESIDUAL:
        fit = drawn
    found_levels: list[Effect] = []
    trends: list[Trend] = []
    for term, search in zip(fit.terms, searched, strict=True):
        if term.levels:
            for found in _compare_levels(fit, term, scale):
                if isinstance(found, str):
                    reasons[term.parameter] = found
                else:
                    found_levels.append(found)
        elif reason := fit.estimate(term, np.eye(term.size)).reason:
            reasons[term.parameter] = reason
        else:
            trends.append(_build_trend(fit, term, search, y))
    tests = np.array([*(each.p for each in found_levels), *(each.p for each in trends)])
    adjusted = iter(adjust_by_holm(tests).tolist())
    levels = tuple(AdjustedEffect(each, next(adjusted)) for each in found_levels)
    trends = [replace(each, p_adjusted=next(adjusted)) for each in trends]
    unknown = Optimum(reason="its trend is not significant")
    trends = [each if each.is_significant else replace(each, optimum=unknown) for each in trends]
    return AdditiveModel(configurations, levels, tuple(trends), fit.predicted_share, reasons)


@dataclass(frozen=True, eq=False)
class _Term:
    """Term of one parameter.

    Runs that lack the parameter, or have a rare level of it, are not present. The codes (runs,) are
    the index of the level, or the place on the axis of a trend, −1 to 1. The curvature of a trend
    changes at its knot, and with a kink its slope too.
    """

    parameter: str
    present: Booleans
    codes: Floats
    levels: tuple[Any, ...] = ()
    low: float = math.nan
    high: float = math.nan
    is_log: bool = False
    knot: float | None = None
    has_kink: bool = False

    @cached_property
    def columns(self) -> Floats:
        """(runs, coefficients), centered over the runs that are present, 0 for others."""
        return np.where(self.present[:, None], self.evaluate(self.codes) - self.center, 0.0)

    @cached_property
    def center(self) -> Floats:
        """(coefficients,), average of the columns over the runs that are present."""
        mean: Floats = self.evaluate(self.codes[self.present]).mean(axis=0)
        return mean

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return len(self.center)

    def evaluate(self, codes: Floats) -> Floats:
        """Return the columns (n, coefficients) of levels or places (n,), before centering."""
        if self.levels:
            return np.equal(codes[:, None], np.arange(1, len(self.levels))).astype(np.float64)
        columns = [codes, codes**2]
        if self.knot is not None:
            known = self.codes[self.present]
            if min((known < self.knot).sum(), (known > self.knot).sum()) >= MIN_SIDE:
                above = np.maximum(codes - self.knot, 0.0)
                columns += [above**2, above] if self.has_kink else [above**2]
        return np.column_stack(columns)

    def to_value(self, places: Floats) -> Floats:
        """Return the values of the parameter at places on the axis of a trend."""
        ends = np.array([self.low, self.high])
        if self.is_log:
            return np.asarray(np.exp(np.interp(places, [-1, 1], np.log(ends))))
        return np.asarray(np.interp(places, [-1, 1], ends))


def _build_term(parameter: str, column: list[Any], groups: Integers) -> _Term | str:
    """Build the term of a parameter, or say why it has none."""
    is_known = np.array([not is_missing(value) for value in column], dtype=np.bool_)
    known = [value for value in column if not is_missing(value)]
    distinct = order_values(set(known))
    if len(distinct) < 2:
        return f"it has {'one value' if distinct else 'no values'}"
    is_number = not any(isinstance(value, bool | np.bool_ | str) for value in distinct)
    if is_number and len(distinct) > MAX_LEVELS:
        numbers = np.array(known, dtype=np.float64)
        if not np.isfinite([*numbers, 2 * np.abs(numbers).max()]).all():
            return "it has infinite values"
        low, high = float(numbers.min()), float(numbers.max())
        is_log = _is_logarithmic(numbers)
        axis = np.log(numbers) if is_log else numbers
        codes = np.zeros(len(column))
        codes[is_known] = 2 * (axis - axis.min()) / (axis.max() - axis.min()) - 1
        return _Term(parameter, is_known, codes, low=low, high=high, is_log=is_log)
    runs = set(zip(column, groups.tolist(), strict=True))  # each configuration once
    counts = Counter(value for value, _ in runs)
    levels = [value for value in distinct if counts[value] >= MIN_CONFIGURATIONS]
    if len(levels) < 2:
        return f"fewer than two of its values have {MIN_CONFIGURATIONS} configurations"
    places = {value: i for i, value in enumerate(levels)}
    codes = np.array([places.get(value, -1) for value in column])
    return _Term(parameter, codes >= 0, codes.astype(np.float64), tuple(levels))


def _is_logarithmic(numbers: Floats) -> bool:
    """Return whether numbers are to be shown on a logarithmic axis."""
    if numbers.min() <= 0 or float(np.ptp(np.log10(numbers))) < LOG_DECADES:
        return False
    uniform = (np.arange(len(numbers)) + 0.5) / len(numbers)
    of_logarithms, of_numbers = (
        np.abs((np.sort(each) - each.min()) / np.ptp(each) - uniform).max()
        for each in (np.log(numbers), numbers)
    )
    return bool(of_logarithms < of_numbers)


class _Fit:
    """Least squares with errors that are robust to unequal noise, CR2.

    The coefficients are weighted sums of the coordinates of the values in the orthonormal basis Q
    (runs, rank) of the design, so that under equal noise weights W have the covariance W Wᵀ.
    """

    def __init__(self, terms: list[_Term], values: Floats, groups: Integers) -> None:
        self.terms, self.values, self.groups = terms, values, groups
        design = np.column_stack([np.ones(len(values)), *(term.columns for term in terms)])
        for present in (term.present.astype(np.float64) for term in terms):
            rest = present - design @ np.linalg.lstsq(design, present, rcond=None)[0]
            if np.abs(rest).max() > _TOLERANCE:  # no reported column implies it
                design = np.column_stack([design, present])
        left, sizes, right = np.linalg.svd(design, full_matrices=False)
        self.rank = int((sizes > 1e-8 * sizes[0]).sum())
        self._basis = left[:, : self.rank]
        right = right[: self.rank].T
        self._weights = right / sizes[: self.rank]
        self._lost = np.eye(len(right)) - right @ right.T  # what the design does not determine
        self._coordinates = self._basis.T @ values
        self.residuals: Floats = values - self._basis @ self._coordinates
        counts = np.bincount(groups)
        self._order = np.argsort(groups, kind="stable")
        self._starts = np.cumsum(counts) - counts
        self._corrected = np.empty_like(self._basis)  # (I − H)^−½ Q with a cluster's leverage H
        errors = np.empty_like(values)  # of predictions by the other clusters
        for size in np.unique(counts):
            rows = self._order[self._starts[counts == size][:, None] + np.arange(size)]
            q = self._basis[rows]
            rest, vectors = np.linalg.eigh(np.eye(size) - q @ q.transpose(0, 2, 1))
            inverse = np.divide(1, rest, out=np.zeros_like(rest), where=rest > 1e-8)
            turned = vectors.transpose(0, 2, 1)
            self._corrected[rows] = vectors * np.sqrt(inverse)[:, None] @ turned @ q
            solved = vectors * inverse[:, None] @ turned @ self.residuals[rows][..., None]
            is_predicted = (inverse > 0).all(axis=1)
            errors[rows] = np.where(is_predicted[:, None], solved[..., 0], np.nan)
        sums = np.bincount(groups, values)[groups]
        others = (values.sum() - sums) / np.maximum(1, len(values) - counts[groups])
        is_known = np.isfinite(errors)
        total = float(((values - others)[is_known] ** 2).sum())
        squares = float((errors[is_known] ** 2).sum())
        self.predicted_share = 1 - squares / total if total > 0 else math.nan

    def exchange(self, term: _Term, other: _Term) -> "_Fit":
        """Return a fit with another term in place of one."""
        terms = [other if each is term else each for each in self.terms]
        return _Fit(terms, self.values, self.groups)

    def estimate(self, term: _Term, contrasts: Floats) -> _Estimate:
        """Estimate contrasts (m, coefficients) of a term."""
        from scipy import special

        ends = np.cumsum([1, *(each.size for each in self.terms)]).tolist()
        spans = {each.parameter: slice(*ends[i : i + 2]) for i, each in enumerate(self.terms)}
        weights = self._weights[spans[term.parameter]]
        parts = contrasts @ self._lost[spans[term.parameter]]
        lost = np.abs(parts) > _TOLERANCE * np.abs(contrasts).max()
        if lost.any():
            names = [name for name, span in spans.items() if lost[:, span].any()]
            others = ", ".join(name for name in names if name != term.parameter)
            reason = f"it cannot be separated from {others}" if others else "its values are too few"
            return _Estimate(reason=reason)

        # The parts of the robust variance have the covariances M (clusters, clusters) under equal
        # noise: trace(M)² / trace(M²) degrees of freedom. Both traces are quadratic in products of
        # two elements of a contrast, so they cost no loop over contrasts.
        s = self._corrected @ weights.T
        scores = self._sum(s * self.residuals[:, None])
        halves = self._sum(s[:, :, None] * self._basis[:, None, :])
        spreads = self._sum(s[:, :, None] * s[:, None, :])
        overlaps = halves @ halves.transpose(0, 2, 1)
        flat = halves.reshape(len(halves), -1)
        cross = (flat.T @ flat).reshape(term.size, self.rank, term.size, self.rank)
        mixed = np.einsum("gab,gcd->abcd", spreads, overlaps)
        squares = np.einsum("gab,gcd->abcd", spreads, spreads) - mixed - mixed.transpose(2, 3, 0, 1)
        squares += np.einsum("aicj,bidj->abcd", cross, cross)

        products = (contrasts[:, :, None] * contrasts[:, None, :]).reshape(len(contrasts), -1)
        traces = products @ (spreads - overlaps).sum(axis=0).ravel()
        if (traces < (1 - _TOLERANCE) * (products @ (weights @ weights.T).ravel())).any():
            reason = "it rests on a configuration that nothing else can be compared with"
            return _Estimate(reason=reason)
        # Values without noise differ from their fit by rounding alone, which is no measure of it.
        least = (_ROUNDING * np.ptp(self.values)) ** 2 * traces
        variances = np.maximum(products @ (scores.T @ scores).ravel(), least)
        of_squares = ((products @ squares.reshape(term.size**2, -1)) * products).sum(axis=1)
        means, errors = contrasts @ weights @ self._coordinates, np.sqrt(np.maximum(0.0, variances))
        degrees = traces**2 / np.maximum(of_squares, 1e-9 * traces**2)
        is_known = degrees >= MIN_DEGREES
        half = np.where(is_known, errors * special.stdtrit(degrees, (1 + CONFIDENCE) / 2), np.inf)
        ratios = np.abs(means) / np.maximum(errors, np.finfo(np.float64).tiny)
        p = np.where(is_known, 2 * special.stdtr(degrees, -ratios), 1.0)
        return _Estimate(means, errors, degrees, means - half, means + half, p)

    def _sum(self, columns: Floats) -> Floats:
        """Sum columns (runs, …) over the runs of each cluster."""
        sums: Floats = np.add.reduceat(columns[self._order], self._starts, axis=0)
        return sums


class _Search(NamedTuple):
    """A term as it is drawn, the p-value of a trend, and where it is best."""

    term: _Term
    p: float = 1.0
    optimum: Optimum = Optimum()


def _search_optimum(fit: _Fit, term: _Term, scale: Scale) -> _Search:
    """Test a trend and find where it is best, with an interval by inverting tests.

    A place is excluded if another one is significantly better, which close to it is a test of its
    slope. It is judged by a trend that changes its curvature there, and its slope if that is
    significant, so that one side of it does not depend on the shape of the other.
    """
    if term.levels:
        return _Search(term)
    x, square = term.columns.T
    parts = np.array([[1.0, x @ square / (x @ x)], [0.0, 1.0]])  # linear and quadratic
    p = min(1.0, 2 * float(np.min(fit.estimate(term, parts).p)))
    if p >= 1 - CONFIDENCE:
        return _Search(term, p)
    judged = [_judge_place(fit, term, place, scale) for place in _CANDIDATES.tolist()]
    ratios = np.array([ratio for _, ratio in judged])
    best, end = int(ratios.argmin()), len(ratios) - 1
    drawn, possible = judged[best][0], np.flatnonzero(ratios <= 1).tolist()
    if not possible:
        return _Search(drawn, p, Optimum(reason="its trend has no single best place"))
    first, last = possible[0], possible[-1]
    if (first, last) == (0, end):
        return _Search(drawn, p, Optimum(reason="both ends of the values tried may be the best"))
    low, high = _CANDIDATES[[first, last]]
    if first not in (0, end):  # an end has no slope on its other side to interpolate
        low = np.interp(1, ratios[[first, first - 1]], _CANDIDATES[[first, first - 1]])
    if last not in (0, end):
        high = np.interp(1, ratios[[last, last + 1]], _CANDIDATES[[last, last + 1]])
    value, low, high = term.to_value(np.array([_CANDIDATES[best], low, high])).tolist()
    return _Search(drawn, p, Optimum(value, low, high, first == 0, last == end))


def _judge_place(fit: _Fit, term: _Term, place: float, scale: Scale) -> tuple[_Term, float]:
    """Return a trend that changes at a place, and how much better another place is.

    That is, the largest difference in units of half the width of its interval: the place is
    excluded above 1.
    """
    model = replace(term, knot=place, has_kink=True)
    refit = fit.exchange(term, model)
    if refit.estimate(model, np.eye(model.size)[-1:]).p >= KINK_LEVEL:
        model = replace(term, knot=place)
        refit = fit.exchange(term, model)
    others = _CANDIDATES[place != _CANDIDATES]
    found = refit.estimate(model, model.evaluate(np.array([place])) - model.evaluate(others))
    if found.reason:
        return model, 0.0
    losses, half_widths = scale.to_loss(found.mean), found.high - found.mean
    ratios = np.divide(losses, half_widths, out=np.zeros_like(losses), where=half_widths > 0)
    return model, float(ratios.max())


def _compare_levels(fit: _Fit, term: _Term, scale: Scale) -> Iterator[Effect | str]:
    """Yield the difference of each level of a term to the first one, or why there is none."""
    for level, contrast in zip(term.levels[1:], np.eye(term.size), strict=True):
        found = fit.estimate(term, contrast[None])
        if found.reason:
            yield found.reason
        elif found.degrees[0] < MIN_DEGREES:
            yield "too few configurations tell how much it varies"
        else:
            yield Effect(
                contrast=Contrast(term.parameter, term.levels[0], level),
                pairs=0,
                mean=float(found.mean[0]),
                error=float(found.error[0]),
                degrees=float(found.degrees[0]),
                source=NoiseSource.ADDITIVE,
                improved_count=0,
                scale=scale,
            )


def _build_trend(fit: _Fit, term: _Term, search: _Search, values: Floats) -> Trend:
    """Draw the trend of a number through the average of the values (runs,)."""
    level = float(values[term.present].mean())
    coefficients = fit.estimate(term, np.eye(term.size)).mean
    partials = term.columns @ coefficients + fit.residuals
    return Trend(
        parameter=term.parameter,
        is_log=term.is_log,
        low=term.low,
        high=term.high,
        p=search.p,
        optimum=search.optimum,
        places=term.to_value(_GRID),
        curve=level + (term.evaluate(_GRID) - term.center) @ coefficients,
        points=term.to_value(term.codes[term.present]),
        partials=level + partials[term.present],
    )
