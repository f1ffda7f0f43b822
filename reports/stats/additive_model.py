"""Additive model of a sweep whose runs form no matched pairs, such as one that a sampler drew.

The value of a run is fitted by least squares as a sum of one term for each parameter. Errors are
robust: they allow noise that differs between runs and is shared by the runs of a configuration
(CR2; Bell & McCaffrey, *Bias Reduction in Standard Errors for Linear Regression with Multi-Stage
Samples*, 2002), with Satterthwaite's degrees of freedom. Terms of several coefficients are tested
by an approximate Hotelling test (Pustejovsky & Tipton, *Small-Sample Methods for Cluster-Robust
Variance Estimation*, 2018, section 3.2).

A term follows from the values of its parameter:

- texts, switches, and numbers of at most :data:`MAX_LEVELS` values have *levels*: one effect each.
  Levels of a number assume no shape and cost one column less than there are values, so up to three
  they cost no more than a trend, and up to five at most twice as much;
- other numbers have a *trend*. Whether there is one is tested by its linear and quadratic parts. If
  so, it has a curvature of its own on each side of the median, because losses, for example, rise
  faster on one side of the best learning rate. The axis is logarithmic if all values are positive,
  the greatest is at least 10^:data:`LOG_DECADES` times the least, and their logarithms are spread
  more evenly over their range than they are themselves.

A parameter that some runs lack has an indicator, and its term is centered over the runs that have
it. So a level of another parameter, such as an optimizer with options of its own, is compared at
the average of these options.

This module imports nothing of this project.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

CONFIDENCE = 0.95

MAX_LEVELS = 5
"""Number of values of a number up to which each has an effect of its own."""

MIN_RUNS = 3
"""Configurations that a level needs; runs of rarer levels share one unreported effect."""

LOG_DECADES = 1.5
"""Decades that positive values cover at least on a logarithmic axis."""

MIN_RESIDUAL = 5
"""Configurations needed in addition to one for each coefficient."""

MIN_DEGREES = 4.0
"""Degrees of freedom needed: with fewer, Satterthwaite's approximation fails (Tipton, *Small
Sample Adjustments for Robust Variance Estimation with Meta-Regression*, 2015)."""

MIN_SIDE = 5
"""Runs on each side of a place that a curvature of its own needs."""

RIVAL_FACTOR = 1.5
"""Half widths by which a place must be worse than the fitted best one, which the noise has chosen;
Scheffé's factor for the three coefficients of a trend is 1.4."""

CUBIC_LEVEL = 0.2
"""Level of the test that adds a cubic part; large, because a part that is missed biases a place."""

_TOLERANCE = 1e-8
"""Size below which a part of a normalised vector is rounding."""

_GRID = np.linspace(-1, 1, 101)
"""Places of a drawn trend on its axis, whose range is scaled to −1 to 1."""

_CANDIDATES = np.linspace(-1, 1, 41)
"""Places that are tested for the best one."""


@dataclass(frozen=True)
class Estimate:
    """A difference of expected values with its 95% interval.

    Attributes:
        mean: the difference; NaN if it cannot be estimated.
        error: standard error; NaN if it cannot be estimated.
        degrees: degrees of freedom of the error; 0 if it cannot be estimated.
        low: lower end of the interval.
        high: upper end of the interval.
        p: two-sided p-value of no difference; 1 if it cannot be estimated.
        reason: why it cannot be estimated, in one clause; "" if it can.
    """

    mean: float = math.nan
    error: float = math.nan
    degrees: float = 0.0
    low: float = math.nan
    high: float = math.nan
    p: float = 1.0
    reason: str = ""


@dataclass(frozen=True)
class LevelDifference:
    """Difference of a level of a parameter to its first level.

    Attributes:
        parameter: name of the parameter.
        before: the first level: False, the least number, or the first text in the alphabet.
        after: the other level.
        estimate: expected value with ``after`` minus that with ``before``.
        adjusted_p: p-value, corrected for the number of all tests of the model by Holm's method.
    """

    parameter: str
    before: Any
    after: Any
    estimate: Estimate
    adjusted_p: float = 1.0

    @property
    def is_significant(self) -> bool:
        """Whether it differs from zero after correction."""
        return self.adjusted_p < 1 - CONFIDENCE


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

    @property
    def is_at_end(self) -> bool:
        """Whether the whole interval is the least or the greatest value tried."""
        return self.low == self.high and (self.is_open_below or self.is_open_above)


@dataclass(frozen=True, eq=False)
class Trend:
    """How the value depends on a number, other parameters being equal.

    Attributes:
        parameter: name of the parameter.
        is_log: whether its axis is logarithmic.
        low: least value tried.
        high: greatest value tried.
        difference: expected value at ``high`` minus that at ``low``.
        p: p-value of no trend at all, which tests all coefficients together; 1 if unknown.
        adjusted_p: the same, corrected for the number of all tests of the model.
        optimum: where it is best.
        places: (101,), values of the parameter, evenly spaced on its axis.
        curve: (101,), fitted values there, at the average of all other terms.
        curve_low: (101,), lower ends of the 95% intervals of their differences to the average.
        curve_high: (101,), upper ends.
        points: (runs that have the parameter,), their values of it.
        partials: values of these runs without the effects of other terms.
    """

    parameter: str
    is_log: bool
    low: float
    high: float
    difference: Estimate
    p: float
    optimum: Optimum
    places: Floats
    curve: Floats
    curve_low: Floats
    curve_high: Floats
    points: Floats
    partials: Floats
    adjusted_p: float = 1.0

    @property
    def is_significant(self) -> bool:
        """Whether there is any trend, after correction."""
        return self.adjusted_p < 1 - CONFIDENCE

    @property
    def difference_per_decade(self) -> float:
        """Mean difference for a factor of ten; NaN on a linear axis."""
        if not self.is_log:
            return math.nan
        return self.difference.mean / (math.log10(self.high) - math.log10(self.low))


_NO_TREND = "its trend is not significant"

_Test = TypeVar("_Test", LevelDifference, Trend)


@dataclass(frozen=True)
class AdditiveModel:
    """A fitted additive model.

    Attributes:
        runs: number of runs that were fitted.
        configurations: number of their configurations.
        left_out: number of runs without a finite value.
        maximize: whether a higher value is better.
        levels: differences between levels, in the order of the parameters.
        trends: trends, in the order of the parameters.
        predicted_share: share of the variance of the values that the model explains in
            configurations that it was not fitted to, by leaving out one at a time: 1 minus the
            ratio of the squared errors of the model and of the mean. Below zero the mean predicts
            better. NaN if unknown.
        reasons: why a parameter has no term, in one clause, by its name.
        reason: why nothing is estimated, in one clause; "" if something is.
    """

    runs: int
    configurations: int
    left_out: int
    maximize: bool
    levels: tuple[LevelDifference, ...] = ()
    trends: tuple[Trend, ...] = ()
    predicted_share: float = math.nan
    reasons: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


def fit_additive_model(
    columns: Mapping[str, Sequence[Any] | NDArray[Any]],
    values: Sequence[float] | Floats,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    maximize: bool = False,
) -> AdditiveModel:
    """Fit the values of runs as a sum of one term for each parameter.

    Args:
        columns: the parameter of each run, (runs,) by name; None or NaN where a run lacks it.
        values: (runs,); runs without a finite value are left out and counted.
        clusters: (runs,), equal for the runs of one configuration; None if each run has its own.
        maximize: whether a higher value is better.
    """
    y = np.asarray(values, dtype=np.float64)
    rows = np.flatnonzero(np.isfinite(y))
    y = y[rows]
    names = np.arange(len(rows)) if clusters is None else np.asarray(clusters)[rows]
    groups = np.unique(names, return_inverse=True)[1].astype(np.int64)
    configurations = len(np.unique(groups))
    empty = AdditiveModel(len(rows), configurations, len(values) - len(rows), maximize)
    if len(set(y.tolist())) < 2:
        return replace(empty, reason="all runs have the same value" if len(y) else "no run has one")
    terms: list[_Term] = []
    reasons: dict[str, str] = {}
    for name, column in columns.items():
        term = _build_term(name, [column[row] for row in rows.tolist()], groups)
        if isinstance(term, str):
            reasons[name] = term
        else:
            terms.append(term)
    if not terms:
        return replace(empty, reasons=reasons, reason="no parameter varies enough")
    residual = y - y.mean()  # a large constant would cost digits
    fit = _fit(terms, residual, groups)
    needed = fit.rank + MIN_RESIDUAL
    if configurations < needed:
        few = f"{configurations} configurations are too few: the model needs at least {needed}"
        return replace(empty, reasons=reasons, reason=few)
    searched = [_search_optimum(fit, i, residual, groups, maximize) for i in range(len(terms))]
    drawn = _fit([each.drawn for each in searched], residual, groups)
    if configurations >= drawn.rank + MIN_RESIDUAL:
        fit = drawn
    levels = [each for term in fit.terms for each in _compare_levels(fit, term)]
    trends = []
    for term, search in zip(fit.terms, searched, strict=True):
        if not term.levels:
            trend = _estimate_trend(fit, term, search, y)
            if isinstance(trend, str):
                reasons[term.parameter] = trend
            else:
                trends.append(trend)
    adjusted = _adjust_by_holm([*(each.estimate.p for each in levels), *(t.p for t in trends)])
    of_levels, of_trends = adjusted[: len(levels)], adjusted[len(levels) :]
    return replace(
        empty,
        levels=tuple(map(_set_adjusted_p, levels, of_levels)),
        trends=tuple(map(_decide_optimum, map(_set_adjusted_p, trends, of_trends))),
        predicted_share=fit.predicted_share,
        reasons=reasons,
    )


def _set_adjusted_p(test: _Test, p: float) -> _Test:
    return replace(test, adjusted_p=p)


def _decide_optimum(trend: Trend) -> Trend:
    """Withdraw the optimum of a trend that is not significant."""
    if trend.is_significant:
        return trend
    return replace(trend, optimum=Optimum(reason=_NO_TREND))


@dataclass(frozen=True, eq=False)
class _Term:
    """Term of one parameter.

    Attributes:
        parameter: its name.
        present: (runs,), whether a run has the parameter.
        codes: (runs,), index of the level, −1 for rare levels and where it is missing; or the
            place on the axis, −1 to 1.
        levels: the levels; empty for a trend.
        low: least value of a trend.
        high: greatest value of a trend.
        is_log: whether the axis of a trend is logarithmic.
        knot: place with a curvature of its own on each side; None for one curvature.
        is_cubic: whether a trend with such a place has a cubic part.
    """

    parameter: str
    present: Booleans
    codes: Floats
    levels: tuple[Any, ...] = ()
    low: float = math.nan
    high: float = math.nan
    is_log: bool = False
    knot: float | None = None
    is_cubic: bool = False

    @cached_property
    def size(self) -> int:
        """Number of coefficients."""
        return int(self.evaluate(np.zeros(1)).shape[1])

    @cached_property
    def columns(self) -> Floats:
        """(runs, coefficients), centered over the runs that have the parameter, 0 for others."""
        raw = self.evaluate(self.codes)
        return np.where(self.present[:, None], raw - self.center, 0.0)

    @cached_property
    def center(self) -> Floats:
        """(coefficients,), average of the columns over the runs that have the parameter."""
        mean: Floats = self.evaluate(self.codes)[self.present].mean(axis=0)
        return mean

    @property
    def nuisances(self) -> Iterator[Floats]:
        """Yield columns that are fitted and not reported: lacking it, and its rare levels."""
        if not self.present.all():
            yield self.present.astype(np.float64)
        if self.levels and (is_rare := self.present & (self.codes < 0)).any():
            yield is_rare.astype(np.float64)

    def evaluate(self, codes: Floats) -> Floats:
        """Return the columns (n, coefficients) of levels or places (n,), before centering."""
        if self.levels:
            return np.equal(codes[:, None], np.arange(1, len(self.levels))).astype(np.float64)
        if self.knot is None:
            return np.column_stack([codes, codes**2])
        distances = codes - self.knot
        sides = [np.minimum(distances, 0.0) ** 2, np.maximum(distances, 0.0) ** 2]
        known = self.codes[self.present] - self.knot
        if min((known < 0).sum(), (known > 0).sum()) < MIN_SIDE:
            sides = [distances**2]
        return np.column_stack([distances, *sides, *([distances**3] if self.is_cubic else [])])

    def to_value(self, places: Floats | float) -> Floats:
        """Return the values of the parameter at places on the axis of a trend."""
        share = (np.asarray(places, dtype=np.float64) + 1) / 2
        if self.is_log:
            return np.asarray(
                np.exp(math.log(self.low) * (1 - share) + math.log(self.high) * share)
            )
        return np.asarray(self.low + (self.high - self.low) * share)


def _build_term(parameter: str, column: list[Any], groups: Integers) -> _Term | str:
    """Build the term of a parameter, or say why it has none."""
    present = np.array([_is_known(value) for value in column], dtype=np.bool_)
    known = [value for value in column if _is_known(value)]
    distinct = sorted(set(known), key=lambda value: (isinstance(value, str), value))
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
        codes[present] = 2 * (axis - axis.min()) / (axis.max() - axis.min()) - 1
        return _Term(parameter, present, codes, low=low, high=high, is_log=is_log)
    counts: dict[Any, set[int]] = {value: set() for value in distinct}
    for value, group in zip(column, groups.tolist(), strict=True):
        if _is_known(value):
            counts[value].add(group)
    levels = [value for value in distinct if len(counts[value]) >= MIN_RUNS]
    if len(levels) < 2:
        return f"fewer than two of its values have {MIN_RUNS} configurations"
    places = {value: i for i, value in enumerate(levels)}
    codes = np.array([places.get(v, -1) if _is_known(v) else -1 for v in column], dtype=np.float64)
    return _Term(parameter, present, codes, tuple(levels))


def _is_known(value: Any) -> bool:
    """Return whether a value is given: neither None nor NaN nor ``pandas.NA``."""
    is_equal = value == value
    return value is not None and isinstance(is_equal, bool | np.bool_) and bool(is_equal)


def _is_logarithmic(numbers: Floats) -> bool:
    """Return whether numbers are to be shown on a logarithmic axis."""
    if numbers.min() <= 0 or float(np.ptp(np.log10(numbers))) < LOG_DECADES:
        return False
    return _measure_unevenness(np.log(numbers)) < _measure_unevenness(numbers)


def _measure_unevenness(numbers: Floats) -> float:
    """Return the largest distance of their distribution to the uniform one over their range."""
    shares = (np.sort(numbers) - numbers.min()) / (numbers.max() - numbers.min())
    return float(np.abs(shares - (np.arange(len(shares)) + 0.5) / len(shares)).max())


class _Fit:
    """Least squares with errors that are robust to unequal noise, CR2.

    Contrasts are weights W (q, rank) of the coordinates in the orthonormal basis Q (runs, rank) of
    the design, so that W Wᵀ is proportional to their covariance under equal noise.

    Attributes:
        terms: the terms, in the order of their columns after the constant.
        rank: rank of the design.
        coefficients: (rank,), coordinates Qᵀy of the fitted values.
        residuals: (runs,).
        predicted_share: share of the variance explained in left-out configurations.
    """

    def __init__(
        self, terms: list[_Term], design: Floats, values: Floats, groups: Integers
    ) -> None:
        """Fit the values (runs,) by a design (runs, columns), of which columns may depend."""
        self.terms = terms
        left, sizes, right = np.linalg.svd(design, full_matrices=False)
        self.rank = int((sizes > _TOLERANCE * sizes[0]).sum())
        self.basis: Floats = left[:, : self.rank]
        self._right = right[: self.rank]
        self._inverse = self._right.T / sizes[: self.rank]
        self.coefficients: Floats = self.basis.T @ values
        self.residuals: Floats = values - self.basis @ self.coefficients
        clusters = np.bincount(groups)
        order, starts = np.argsort(groups, kind="stable"), np.cumsum(clusters) - clusters
        self._order, self._starts = order, starts
        # Clusters of one size together: rows (clusters, size), and A = (I − H)^−½ of leverage H.
        self._blocks: list[tuple[Integers, Floats]] = []
        self._exact: list[Floats] = []  # directions in which nothing else says what is noise
        predicted = np.zeros(len(values))  # errors of predictions by the other clusters
        is_predicted = np.ones(len(values), dtype=np.bool_)
        for size in np.unique(clusters):
            rows = order[starts[clusters == size][:, None] + np.arange(size)]
            q = self.basis[rows]
            rest, vectors = np.linalg.eigh(np.eye(size) - q @ q.transpose(0, 2, 1))
            is_free: Booleans = np.asarray(rest > _TOLERANCE)
            inverse = np.where(is_free, 1 / np.where(is_free, rest, 1.0), 0.0)[:, None, :]
            turned = vectors.transpose(0, 2, 1)
            self._blocks.append((rows, vectors * np.sqrt(inverse) @ turned))
            errors = vectors * inverse @ turned @ self.residuals[rows][..., None]
            predicted[rows] = errors[..., 0]
            is_whole: Booleans = np.asarray(is_free.all(axis=1))
            is_predicted[rows] = is_whole[:, None]
            lost = vectors * ~is_free[:, None, :] @ turned @ q
            self._exact.append(lost[~is_whole].reshape(-1, self.rank))
        sums = np.bincount(groups, values)[groups]
        others = (values.sum() - sums) / np.maximum(1, len(values) - clusters[groups])
        total = float(((values - others)[is_predicted] ** 2).sum())
        squares = float((predicted[is_predicted] ** 2).sum())
        self.predicted_share = 1 - squares / total if total > 0 else math.nan

    def _correct(self, columns: Floats) -> Floats:
        """Multiply columns (runs, q) by A in each cluster."""
        corrected = np.empty_like(columns)
        for rows, matrices in self._blocks:
            corrected[rows] = matrices @ columns[rows]
        return corrected

    def _sum(self, columns: Floats) -> Floats:
        """Sum columns (runs, …) over the runs of each cluster."""
        sums: Floats = np.add.reduceat(columns[self._order], self._starts, axis=0)
        return sums

    def select(self, term: _Term, contrasts: Floats) -> "_Contrasts | str":
        """Select contrasts (q, coefficients) of a term, or say why they cannot be estimated."""
        start = 1 + sum(each.size for each in self.terms[: self.terms.index(term)])
        full = np.zeros((len(contrasts), self._right.shape[1]))
        full[:, start : start + term.size] = contrasts
        lost = full - full @ self._right.T @ self._right
        if np.abs(lost).max() > 1e-6 * np.abs(full).max():
            others = self._name_confounded(term, lost)
            return f"it cannot be separated from {others}" if others else "its values are too few"
        weights: Floats = full @ self._inverse
        size = np.linalg.norm(weights)
        if any(np.abs(each @ weights.T).max(initial=0.0) > 1e-6 * size for each in self._exact):
            return "it rests on a configuration that nothing else can be compared with"
        s = self._correct(self.basis @ weights.T)
        halves = self._sum(s[:, :, None] * self.basis[:, None, :]).transpose(1, 0, 2)
        spreads = self._sum(s[:, :, None] * s[:, None, :]).transpose(1, 2, 0)
        scores = self._sum(s * self.residuals[:, None])
        overlaps = np.einsum("agi,bgi->abg", halves, halves)
        flat = halves.transpose(1, 0, 2).reshape(len(spreads[0, 0]), -1)
        q = len(weights)  # a matrix product is far faster than einsum for many clusters
        cross = (flat.T @ flat).reshape(q, self.rank, q, self.rank).transpose(0, 2, 1, 3)
        mixed = np.einsum("abg,cdg->abcd", spreads, overlaps)
        fourth = np.einsum("abg,cdg->abcd", spreads, spreads) - mixed - mixed.transpose(2, 3, 0, 1)
        return _Contrasts(
            weights @ self.coefficients,
            scores.T @ scores,
            weights @ weights.T,
            fourth + np.einsum("acij,bdij->abcd", cross, cross),
        )

    def _name_confounded(self, term: _Term, lost: Floats) -> str:
        """Name the other parameters whose columns depend on those of a term.

        Args:
            term: the term.
            lost: (q, columns), the parts of its contrasts that the design does not determine.
        """
        names, end = [], 1
        for each in self.terms:
            start, end = end, end + each.size
            if each is not term and np.abs(lost[:, start:end]).max() > 1e-6:
                names.append(each.parameter)
        return ", ".join(names)


@dataclass(frozen=True, eq=False)
class _Contrasts:
    """Some contrasts of a term, and what is needed for any combination of them.

    Attributes:
        means: (q,), their estimates.
        covariance: (q, q), robust.
        equal_covariance: (q, q), for equal noise of variance 1.
        fourth: (q, q, q, q), ⟨M_ab, M_cd⟩, where M_ab (clusters, clusters) has the covariances of
            the parts of the robust variance under equal noise.
    """

    means: Floats
    covariance: Floats
    equal_covariance: Floats
    fourth: Floats

    def combine(self, combinations: Floats) -> tuple[Floats, Floats, Floats]:
        """Estimate combinations (m, q).

        Returns:
            (m,) means, standard errors and Satterthwaite's degrees of freedom.
        """
        c = combinations
        variances = np.einsum("ma,ab,mb->m", c, self.covariance, c)
        expected = np.einsum("ma,ab,mb->m", c, self.equal_covariance, c)
        pairs = (c[:, :, None] * c[:, None, :]).reshape(len(c), -1)
        fourth = self.fourth.reshape(pairs.shape[1], pairs.shape[1])
        spread = ((pairs @ fourth) * pairs).sum(axis=1)
        degrees = expected**2 / np.maximum(spread, np.finfo(np.float64).tiny)
        return c @ self.means, np.sqrt(np.maximum(0.0, variances)), degrees

    def estimate(self, combination: Floats) -> Estimate:
        """Estimate one combination (q,) with its interval."""
        mean, error, degrees = (float(each[0]) for each in self.combine(combination[None]))
        if not degrees >= MIN_DEGREES:
            return Estimate(reason="too few configurations tell how much it varies")
        half = float(_compute_half_widths(error, degrees))
        return Estimate(mean, error, degrees, mean - half, mean + half, _test(mean, error, degrees))

    def test(self) -> float:
        """Return the p-value of all contrasts being zero; 1 if it is unknown."""
        from scipy import special

        q = len(self.means)
        factor = np.linalg.inv(np.linalg.cholesky(self.equal_covariance))
        standard = np.einsum(
            "sa,tb,uc,vd,abcd->stuv", factor, factor, factor, factor, self.fourth, optimize=True
        )
        total = np.einsum("sstt->", standard) + np.einsum("stts->", standard)
        degrees = q * (q + 1) / float(total)
        free = degrees - q + 1
        if not free >= MIN_DEGREES or np.linalg.cond(self.covariance) > 1 / _TOLERANCE:
            return 1.0
        distance = float(self.means @ np.linalg.solve(self.covariance, self.means))
        return float(special.fdtrc(q, free, free / (degrees * q) * distance))


def _fit(terms: list[_Term], values: Floats, groups: Integers) -> _Fit:
    """Fit terms, leaving out unreported columns that depend on the reported ones."""
    design = np.column_stack([np.ones(len(values)), *(term.columns for term in terms)])
    for nuisance in (each for term in terms for each in term.nuisances):
        rest = nuisance - design @ np.linalg.lstsq(design, nuisance, rcond=None)[0]
        if np.linalg.norm(rest) > 1e-6 * np.linalg.norm(nuisance):
            design = np.column_stack([design, nuisance])
    return _Fit(terms, design, values, groups)


@dataclass(frozen=True, eq=False)
class _Search:
    """A term, and for a trend how significant and where best it is.

    Attributes:
        drawn: the term as it is drawn and estimated.
        p: p-value of the trend; 1 for levels.
        optimum: where the trend is best.
    """

    drawn: _Term
    p: float = 1.0
    optimum: Optimum = Optimum(reason=_NO_TREND)


def _search_optimum(
    fit: _Fit, index: int, values: Floats, groups: Integers, maximize: bool
) -> _Search:
    """Find where the trend of a term is best, with an interval by inverting tests.

    A place may be the best if the slope there does not differ significantly from zero in a model
    with a curvature of its own on each side (of Fieller's kind; at an end of the range: if no slope
    leads into it to better values), and if neither an end of the range nor the fitted best place is
    significantly better. The slope at the best place is zero: 5% of the tests exclude it.

    Args:
        fit: fit of all terms, with trends of one curvature.
        index: index of the term.
        values: (runs,).
        groups: (runs,), index of the configuration.
        maximize: whether a higher value is better.
    """
    term = fit.terms[index]
    if term.levels:
        return _Search(term)
    contrasts = fit.select(term, np.eye(term.size))
    p = 1.0 if isinstance(contrasts, str) else contrasts.test()
    if p >= 1 - CONFIDENCE:
        return _Search(term, p)

    def refit(model: _Term) -> _Fit:
        return _fit([*fit.terms[:index], model, *fit.terms[index + 1 :]], values, groups)

    def search(is_cubic: bool) -> Floats:
        models = [replace(term, knot=float(place), is_cubic=is_cubic) for place in _CANDIDATES]
        return np.array([_measure_margin(refit(each), each, maximize, rival) for each in models])

    # With a knot or a cubic part that the noise has chosen, the drawn trend looks too certain.
    drawn = replace(term, knot=float(np.median(term.codes[term.present])))
    selected = refit(drawn).select(drawn, np.eye(drawn.size))
    if isinstance(selected, str):
        return _Search(term, p, Optimum(reason=selected))
    curve = drawn.evaluate(_GRID) @ selected.means
    rival = float(_GRID[curve.argmax() if maximize else curve.argmin()])

    margins = search(is_cubic=False)
    cubic = replace(term, knot=float(_CANDIDATES[margins.argmax()]), is_cubic=True)
    larger = refit(cubic)
    if len(np.unique(groups)) >= larger.rank + MIN_RESIDUAL:
        part = larger.select(cubic, np.eye(cubic.size)[-1:])
        if not isinstance(part, str) and part.test() < CUBIC_LEVEL:
            # Both intervals together: the smaller model may be right, and the noise have chosen.
            margins = np.maximum(margins, search(is_cubic=True))
    return _Search(drawn, p, _read_margins(margins, term, rival))


def _measure_margin(fit: _Fit, term: _Term, maximize: bool, rival: float) -> float:
    """Return how far a place is from being excluded as the best one; 1 at most, 0 if it is just.

    Args:
        fit: fit of all terms.
        term: trend with a curvature of its own on each side of the place.
        maximize: whether a higher value is better.
        rival: best place of the drawn trend.
    """
    others = [other for other in (rival, -1.0, 1.0) if other != term.knot]
    slope = np.eye(term.size)[:1]  # at the place itself, all other columns are flat
    contrasts = np.vstack([slope, -term.evaluate(np.array(others))])
    selected = fit.select(term, contrasts)
    if isinstance(selected, str):
        return 1.0
    means, errors, degrees = selected.combine(np.eye(len(contrasts)))
    half_widths = _compute_half_widths(errors, degrees)
    is_known = (half_widths > 0) & (degrees >= MIN_DEGREES)
    ratios = np.divide(means, half_widths, out=np.zeros(len(means)), where=is_known)
    steepness, *losses = (-1.0 if maximize else 1.0) * ratios
    if others[0] == rival:
        losses[0] /= RIVAL_FACTOR
    if term.knot == -1:
        steepness = min(0.0, steepness)
    elif term.knot == 1:
        steepness = max(0.0, steepness)
    return float(1 - max(abs(steepness), *losses))


def _compute_half_widths(errors: Floats | float, degrees: Floats | float) -> Floats:
    """Return half the widths of Student's intervals."""
    from scipy import special

    return np.asarray(special.stdtrit(np.maximum(degrees, 1.0), (1 + CONFIDENCE) / 2) * errors)


def _test(mean: float, error: float, degrees: float) -> float:
    """Return the two-sided p-value of Student's test."""
    from scipy import special

    return float(2 * special.stdtr(degrees, -abs(mean) / error)) if error > 0 else float(mean == 0)


def _compare_levels(fit: _Fit, term: _Term) -> Iterator[LevelDifference]:
    """Yield the difference of each level of a term to the first one."""
    for i, level in enumerate(term.levels[1:]):
        contrasts = fit.select(term, np.eye(term.size)[[i]])
        estimate = (
            Estimate(reason=contrasts)
            if isinstance(contrasts, str)
            else contrasts.estimate(np.ones(1))
        )
        yield LevelDifference(term.parameter, term.levels[0], level, estimate)


def _estimate_trend(fit: _Fit, term: _Term, search: _Search, values: Floats) -> Trend | str:
    """Estimate the trend of a number, or say why that is impossible."""
    contrasts = fit.select(term, np.eye(term.size))
    if isinstance(contrasts, str):
        return contrasts
    columns = term.evaluate(_GRID) - term.center
    means, errors, degrees = contrasts.combine(columns)
    half = _compute_half_widths(errors, degrees)
    level = float(values[term.present].mean())
    fitted = term.columns @ contrasts.means
    return Trend(
        parameter=term.parameter,
        is_log=term.is_log,
        low=term.low,
        high=term.high,
        difference=contrasts.estimate(columns[-1] - columns[0]),
        p=search.p,
        optimum=search.optimum,
        places=term.to_value(_GRID),
        curve=level + means,
        curve_low=level + means - half,
        curve_high=level + means + half,
        points=term.to_value(term.codes[term.present]),
        partials=level + (fitted + fit.residuals)[term.present],
    )


def _read_margins(margins: Floats, term: _Term, best: float) -> Optimum:
    """Return the interval of the candidates (41,) with a margin of at least zero.

    Args:
        margins: how far each candidate is from being excluded.
        term: the term.
        best: best place of the drawn trend.
    """
    possible, places = np.flatnonzero(margins >= 0), _CANDIDATES
    end = len(places) - 1
    if not len(possible):
        return Optimum(reason="its trend has no single best place")
    first, last = int(possible[0]), int(possible[-1])
    if first == 0 and last == end:
        return Optimum(reason="both ends of the values tried may be the best")

    def cross(inside: int, outside: int) -> float:
        share = margins[inside] / (margins[inside] - margins[outside])
        return float(places[inside] + share * (places[outside] - places[inside]))

    # An end is judged by another rule than the places next to it, so nothing is interpolated there.
    low = places[first] if first in (0, end) else cross(first, first - 1)
    high = places[last] if last in (0, end) else cross(last, last + 1)
    best, low, high = (float(term.to_value(e)) for e in (np.clip(best, low, high), low, high))
    return Optimum(best, low, high, is_open_below=first == 0, is_open_above=last == end)


def _adjust_by_holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's method."""
    adjusted, largest = [1.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, p[i] * (len(p) - rank)))
        adjusted[i] = largest
    return adjusted
