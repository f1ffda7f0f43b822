"""What each switch is worth: the mean difference over matched pairs, everything else equal.

In a full factorial design two points that differ in one parameter alone are a matched pair, and
the mean of the pairs' differences is the parameter's main effect; the difference of two such
differences is an interaction (Box, Hunter & Hunter, *Statistics for Experimenters*, 2nd edition,
chapter 5). The interval is the bootstrap's, bias-corrected and accelerated (Efron, *Better
Bootstrap Confidence Intervals*, 1987), over the pairs, and expanded for small samples (Hesterberg,
*What Teachers Should Know About the Bootstrap*, 2015, section 4.5).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from reports.formatting import format_param, format_value
from studies.space import REPLICATE

RESAMPLES = 4000
"""Of the bootstrap: its error is then a twentieth of the interval's width or less."""

CONFIDENCE = 0.95

MIN_PAIRS = 8
"""With fewer, differences that are noise alone lie on one side of zero too often."""

SOURCES = ("old", "new", "both")
"""The state sources, from what a change is reckoned to what it is reckoned to lead."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Contrast:
    """A parameter's change from one value to another, to be compared in matched pairs.

    Attributes:
        parameter: that changes.
        before: its value in a pair's first point.
        after: its value in the second.
    """

    parameter: str
    before: Any
    after: Any

    @property
    def label(self) -> str:
        """The change in words: the switch that is turned on, or both values."""
        if isinstance(self.after, bool):
            return format_param(self.parameter)
        if self.parameter == "state_source" and self.after == "both":
            return "old state" if self.before == "new" else "new state"
        values = (format_value(value) for value in (self.before, self.after))
        return f"{format_param(self.parameter)} {' → '.join(values)}"

    @property
    def meaning(self) -> str:
        """What is compared with what."""
        before, after = (format_value(value) for value in (self.before, self.after))
        return f"{format_param(self.parameter)}: {after} against {before}"


@dataclass(frozen=True)
class Effect:
    """What a change is worth.

    Attributes:
        contrast: the change.
        pairs: matched pairs whose points both have a value.
        mean: of the pairs' differences in the value, after less before; negative is better. NaN
            without pairs.
        low: the lower end of the bootstrap's 95% interval of the mean; NaN with fewer than two
            pairs.
        high: the upper end.
        improved_count: in how many of the pairs the value fell.
        only_before: pairs that are left out because only the first of their points has a value.
        only_after: because only the second has one.
        neither: because neither has.
    """

    contrast: Contrast
    pairs: int
    mean: float
    low: float
    high: float
    improved_count: int
    only_before: int
    only_after: int
    neither: int

    @property
    def missing_pairs(self) -> int:
        """Pairs that the design has and that lack a value."""
        return self.only_before + self.only_after + self.neither

    @property
    def is_significant(self) -> bool:
        """Whether the interval lies on one side of zero, and rests on pairs enough to say so."""
        return self.pairs >= MIN_PAIRS and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Interaction:
    """How much more a change is worth where another one is made as well.

    Attributes:
        first: the one change.
        second: the other.
        quadruples: sets of four points, everything else equal, that all have a value.
        mean: of (the first change's difference after the second) less (before the second), nats.
        low: the lower end of the bootstrap's interval.
        high: the upper end.
    """

    first: Contrast
    second: Contrast
    quadruples: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class FactorialTable:
    """A study's points as an array with an axis a parameter.

    Attributes:
        axes: the values of each parameter, in the array's order.
        values: of the points; NaN where there is none.
        planned: which points the study has at all.
    """

    axes: Mapping[str, Sequence[Any]]
    values: Floats
    planned: Flags
    _where: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_where", {name: i for i, name in enumerate(self.axes)})

    @classmethod
    def from_frame(cls, table: pd.DataFrame, parameters: Sequence[str]) -> "FactorialTable":
        """Lay a table's rows out.

        Args:
            table: a row a point, with a column for each parameter and the ``value``, which is NaN
                where it has none.
            parameters: the axes; two points must differ in one of them.
        """
        axes = {name: _in_order(table[name]) for name in parameters}
        places = tuple(
            table[name].map({value: i for i, value in enumerate(values)}).to_numpy(dtype=int)
            for name, values in axes.items()
        )
        shape = tuple(map(len, axes.values()))
        values, planned = np.full(shape, math.nan), np.zeros(shape, dtype=bool)
        # Where nothing varies there is one point, and an array without an axis.
        values[places] = table["value"].to_numpy(dtype=float) if axes else table["value"].iloc[0]
        planned[places] = True
        return cls(axes, values, planned)

    @property
    def points(self) -> int:
        """How many points have a value."""
        return int((~np.isnan(self.values)).sum())

    @property
    def is_complete(self) -> bool:
        """Whether every point has a value."""
        return not np.isnan(self.values[self.planned]).any()

    def where(self, chosen: Mapping[str, Any], below: float | None = None) -> "FactorialTable":
        """Return the part with these values of some parameters, and with a value below a bound."""
        values, planned = self.values, self.planned
        for parameter, value in chosen.items():
            axis = self._where[parameter]
            others = np.array([other != value for other in self.axes[parameter]])
            others = others.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
            values, planned = np.where(others, math.nan, values), planned & ~others
        if below is not None:
            values = np.where(values < below, values, math.nan)
        return FactorialTable(self.axes, values, planned)

    def contrasts(self) -> list[Contrast]:
        """List the changes to compare: each value of a parameter with the one before it.

        A state source reads two states, each of which is a switch: both are compared with either.
        """
        return [
            Contrast(name, before, after)
            for name, values in self.axes.items()
            if name != REPLICATE
            for before, after in (
                [("old", "both"), ("new", "both")]
                if name == "state_source" and len(values) == 3
                else itertools.pairwise(values)
            )
        ]

    def effect(self, contrast: Contrast) -> Effect:
        """Return what a change is worth."""
        before, after = self._sides(self.values, contrast)
        in_design = np.logical_and(*self._sides(self.planned, contrast))
        has_before, has_after = ~np.isnan(before) & in_design, ~np.isnan(after) & in_design
        differences = (after - before)[has_before & has_after]
        low, high = interval(differences)
        return Effect(
            contrast,
            pairs=len(differences),
            mean=float(differences.mean()) if len(differences) else math.nan,
            low=low,
            high=high,
            improved_count=int((differences < 0).sum()),
            only_before=int((has_before & ~has_after).sum()),
            only_after=int((has_after & ~has_before).sum()),
            neither=int((in_design & ~has_before & ~has_after).sum()),
        )

    def effects(self) -> list[Effect]:
        """Return what each change is worth, where there is a pair to tell it by."""
        found = (self.effect(contrast) for contrast in self.contrasts())
        return [effect for effect in found if effect.pairs]

    def interaction(self, first: Contrast, second: Contrast) -> Interaction:
        """Return how two changes of different parameters act on each other."""
        before, after = self._sides(self.values, first)
        differences = after - before
        axis = self._where[second.parameter]
        values = self.axes[second.parameter]
        less = differences.take([values.index(second.before)], axis)
        more = differences.take([values.index(second.after)], axis)
        found = (more - less).ravel()
        found = found[~np.isnan(found)]
        low, high = interval(found)
        mean = float(found.mean()) if len(found) else math.nan
        return Interaction(first, second, len(found), mean, low, high)

    def interactions(self) -> list[Interaction]:
        """Return those of each two changes of different parameters that can be told."""
        found = (
            self.interaction(first, second)
            for first, second in itertools.combinations(self.contrasts(), 2)
            if first.parameter != second.parameter
        )
        return [interaction for interaction in found if interaction.quadruples]

    def _sides(self, array: NDArray[Any], contrast: Contrast) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the array's two slices, the contrast's axis kept at length one."""
        axis, values = self._where[contrast.parameter], self.axes[contrast.parameter]
        before, after = (
            array.take([values.index(value)], axis) for value in (contrast.before, contrast.after)
        )
        return before, after


def interval(sample: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the bias-corrected and accelerated bootstrap interval of a sample's mean.

    The same numbers, in whatever order, always give the same interval.

    Args:
        sample: (n,)
        confidence: of the interval.

    Returns:
        Its ends; NaN for fewer than two numbers.
    """
    n = len(sample)
    if n < 2:
        return math.nan, math.nan
    sample = np.sort(sample)
    mean = sample.mean()
    deviations = sample - mean
    spread = float((deviations**2).sum())
    if spread == 0:
        return float(mean), float(mean)
    generator = np.random.default_rng(0)
    means = sample[generator.integers(n, size=(RESAMPLES, n), dtype=np.int32)].mean(axis=1)
    normal = NormalDist()
    # Of the resampled means, half of those that equal the sample's own count as below it.
    below = ((means < mean).sum() + (means <= mean).sum()) / (2 * RESAMPLES)
    bias = normal.inv_cdf(min(max(below, 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    # The jackknife's acceleration, which for a mean needs no resampling.
    acceleration = float((deviations**3).sum()) / (6 * spread**1.5)
    # A resample varies less than a sample of so few does: by n − 1 over n, and unlike Student's t.
    reach = math.sqrt(n / (n - 1)) * float(stats.t.ppf((1 + confidence) / 2, n - 1))
    ends = []
    for end in (-reach, reach):
        shifted = bias + end
        ends.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(means, ends)
    return float(low), float(high)


def _in_order(column: "pd.Series[Any]") -> list[Any]:
    """Return a column's values: switches from off to on, numbers upwards, sources as in SOURCES."""
    values = set(column)
    return [source for source in SOURCES if source in values] or sorted(values)
