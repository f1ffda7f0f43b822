"""Main effects and interactions of a factorial study, estimated from matched pairs.

In a full factorial design two trials that differ in one parameter alone are a matched pair. The
mean difference over all pairs is the parameter's main effect; the difference of two such
differences is an interaction (Box, Hunter & Hunter, *Statistics for Experimenters*, 2nd edition,
chapter 5).
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reports.formatting import format_param, format_value
from reports.stats.paired_difference import Floats, PairedDifference
from studies.space import REPLICATE

STATE_SOURCE_ORDER = ("old", "new", "both")
"""Order of the state sources: a contrast goes from an earlier to a later one."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Contrast:
    """A change of one parameter, all others being equal.

    Attributes:
        parameter: name of the parameter.
        before: value in the first trial of a pair.
        after: value in the second trial.
    """

    parameter: str
    before: Any
    after: Any

    @property
    def label(self) -> str:
        """Short name: the switch that is turned on, or both values."""
        if isinstance(self.after, bool):
            return format_param(self.parameter)
        if self.parameter == "state_source" and self.after == "both":
            return "old state" if self.before == "new" else "new state"
        values = (format_value(value) for value in (self.before, self.after))
        return f"{format_param(self.parameter)} {' → '.join(values)}"

    @property
    def description(self) -> str:
        """The parameter and both of its values."""
        before, after = (format_value(value) for value in (self.before, self.after))
        return f"{format_param(self.parameter)}: {after} against {before}"


@dataclass(frozen=True, kw_only=True)
class Effect(PairedDifference):
    """Main effect of a contrast.

    Attributes:
        contrast: the change.
        only_before: number of pairs left out because the second trial has no value.
        only_after: number of pairs left out because the first trial has no value.
        neither: number of pairs left out because neither trial has a value.
    """

    contrast: Contrast
    only_before: int
    only_after: int
    neither: int

    @property
    def missing_pairs(self) -> int:
        """Number of pairs that the design has and that lack a value."""
        return self.only_before + self.only_after + self.neither


@dataclass(frozen=True, kw_only=True)
class Interaction(PairedDifference):
    """How much larger the effect of one contrast is after another contrast than before it.

    Each of its ``pairs`` consists of two matched pairs, hence of four trials.

    Attributes:
        first: one contrast.
        second: the other, of another parameter.
    """

    first: Contrast
    second: Contrast

    @property
    def quadruples(self) -> int:
        """Number of sets of four trials, equal in all other parameters, with four values."""
        return self.pairs


@dataclass(frozen=True)
class FactorialTable:
    """Values of a study's trials as an array with one axis per parameter.

    Attributes:
        axes: values of each parameter, in the order of the array.
        values: values of the trials; NaN where there is none.
        planned: whether the study has a trial there.
    """

    axes: Mapping[str, Sequence[Any]]
    values: Floats
    planned: Flags
    _axis_index: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        index = {name: i for i, name in enumerate(self.axes)}
        object.__setattr__(self, "_axis_index", index)

    @classmethod
    def from_frame(cls, table: pd.DataFrame, parameters: Sequence[str]) -> "FactorialTable":
        """Arrange the rows of a frame.

        Args:
            table: one row per trial, with a column for each parameter and ``value``, NaN where the
                trial has none.
            parameters: names of the axes; any two rows differ in one of them or more.
        """
        axes = {name: _sort_values(table[name]) for name in parameters}
        places = tuple(
            table[name].map({value: i for i, value in enumerate(values)}).to_numpy(dtype=int)
            for name, values in axes.items()
        )
        shape = tuple(map(len, axes.values()))
        values, planned = np.full(shape, math.nan), np.zeros(shape, dtype=bool)
        # If nothing varies, there is a single trial and an array without axes.
        values[places] = table["value"].to_numpy(dtype=float) if axes else table["value"].iloc[0]
        planned[places] = True
        return cls(axes, values, planned)

    @property
    def value_count(self) -> int:
        """Number of trials with a value."""
        return int((~np.isnan(self.values)).sum())

    @property
    def is_complete(self) -> bool:
        """Whether every planned trial has a value."""
        return not np.isnan(self.values[self.planned]).any()

    def subset(self, fixed: Mapping[str, Any], below: float | None = None) -> "FactorialTable":
        """Keep trials with the given parameter values and, if stated, values below a bound."""
        values, planned = self.values, self.planned
        for parameter, value in fixed.items():
            axis = self._axis_index[parameter]
            others = np.array([other != value for other in self.axes[parameter]])
            others = others.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
            values, planned = np.where(others, math.nan, values), planned & ~others
        if below is not None:
            values = np.where(values < below, values, math.nan)
        return FactorialTable(self.axes, values, planned)

    def list_contrasts(self) -> list[Contrast]:
        """List the contrasts to estimate: each value of a parameter with the one before it.

        A state source switches two states on or off: reading both is compared with reading either.
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

    def compute_difference(
        self, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> PairedDifference:
        """Estimate the difference between two settings of the same parameters.

        Args:
            before: value of each parameter that differs, in the first trial of a pair.
            after: values in the second trial.

        Returns:
            The difference; it has no pairs if the table lacks one of the values.
        """
        settings = (*before.items(), *after.items())
        if any(value not in self.axes.get(name, ()) for name, value in settings):
            return PairedDifference.from_differences(np.empty(0))
        difference = self._select(self.values, after) - self._select(self.values, before)
        return PairedDifference.from_differences(difference)

    def compute_effect(self, contrast: Contrast) -> Effect:
        """Estimate the main effect of a contrast."""
        sides = ({contrast.parameter: value} for value in (contrast.before, contrast.after))
        masks = [(self._select(self.values, side), self._select(self.planned, side))
                 for side in sides]  # fmt: skip
        (before, before_planned), (after, after_planned) = masks
        planned = before_planned & after_planned
        has_before, has_after = ~np.isnan(before) & planned, ~np.isnan(after) & planned
        return Effect.from_differences(
            after - before,
            contrast=contrast,
            only_before=int((has_before & ~has_after).sum()),
            only_after=int((has_after & ~has_before).sum()),
            neither=int((planned & ~has_before & ~has_after).sum()),
        )

    def compute_effects(self) -> list[Effect]:
        """Estimate the main effect of each contrast that has a pair."""
        effects = (self.compute_effect(contrast) for contrast in self.list_contrasts())
        return [effect for effect in effects if effect.pairs]

    def compute_interaction(self, first: Contrast, second: Contrast) -> Interaction:
        """Estimate the interaction of two contrasts of different parameters."""
        before, after = (
            self._select(self.values, {first.parameter: value})
            for value in (first.before, first.after)
        )
        difference_before, difference_after = (
            self._select(after - before, {second.parameter: value})
            for value in (second.before, second.after)
        )
        return Interaction.from_differences(
            difference_after - difference_before, first=first, second=second
        )

    def compute_interactions(self) -> list[Interaction]:
        """Estimate the interaction of each two contrasts that have a quadruple."""
        interactions = (
            self.compute_interaction(first, second)
            for first, second in itertools.combinations(self.list_contrasts(), 2)
            if first.parameter != second.parameter
        )
        return [interaction for interaction in interactions if interaction.pairs]

    def _select(self, array: NDArray[Any], fixed: Mapping[str, Any]) -> NDArray[Any]:
        """Return a slice of the array, in which the axes of fixed parameters have length one."""
        for parameter, value in fixed.items():
            array = array.take([self.axes[parameter].index(value)], self._axis_index[parameter])
        return array


def find_full_factorial_blocks(
    table: pd.DataFrame, parameters: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Find the largest blocks of an incomplete factorial design that lack no combination.

    Where combinations are excluded, a parameter's effect is confounded with the effects of the
    parameters that the exclusion ties it to; within a full block it is not.

    Args:
        table: one row per trial, with a column for each parameter.
        parameters: parameters that vary.

    Returns:
        Rows by the name of the block, such as ``state size is 256``; empty if the design is full,
        or if no single parameter splits it into full blocks.
    """
    if _is_full(table, parameters):
        return {}
    candidates = dict(
        itertools.chain.from_iterable(
            _split_if_full(table, name, parameters) for name in parameters
        )
    )
    rows = {name: set(block.index) for name, block in candidates.items()}
    return {
        name: block
        for name, block in candidates.items()
        if not any(rows[name] < rows[other] for other in candidates)
    }


def _split_if_full(
    table: pd.DataFrame, parameter: str, parameters: Sequence[str]
) -> Iterator[tuple[str, pd.DataFrame]]:
    blocks = dict(iter(table.groupby(parameter)))
    if len(blocks) > 1 and all(_is_full(block, parameters) for block in blocks.values()):
        for value, block in blocks.items():
            yield f"{format_param(parameter)} is {format_value(value)}", block


def _is_full(table: pd.DataFrame, parameters: Sequence[str]) -> bool:
    combinations = math.prod(table[name].nunique() for name in parameters)
    return not parameters or len(table.drop_duplicates(list(parameters))) == combinations


def _sort_values(column: "pd.Series[Any]") -> list[Any]:
    """Sort the distinct values: off before on, numbers ascending, state sources as listed above."""
    values = set(column)
    return [source for source in STATE_SOURCE_ORDER if source in values] or sorted(values)
