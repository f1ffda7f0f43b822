"""Main effects and interactions of a factorial study, estimated from matched pairs.

In a full factorial design two trials that differ in one parameter alone are a matched pair. The
mean difference over all pairs is the parameter's main effect; the difference of two such
differences is an interaction (Box, Hunter & Hunter, *Statistics for Experimenters*, 2nd edition,
chapter 5). In a union of grids a trial may lack a parameter, such as a switch of another cell; both
trials of a pair have it or both lack it.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reports.formatting import format_param, format_value, is_missing
from reports.stats.paired_difference import Floats, PairedDifference
from rnn.config import OPTIMIZERS, RESERVED_OPTION_NAMES
from studies.space import BUILT_IN_CELLS, CELL, REPLICATE, SWITCHES
from studies.training import uses_setting

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
        variants: number of trials of which each side of a pair is the best, before and after: 1
            but for cells and optimizers that have parameters of their own.
    """

    contrast: Contrast
    only_before: int
    only_after: int
    neither: int
    variants: tuple[int, int] = (1, 1)

    @property
    def missing_pairs(self) -> int:
        """Number of pairs that the design has and that lack a value."""
        return self.only_before + self.only_after + self.neither

    @property
    def description(self) -> str:
        """The parameter and both of its values, and which of them is the best of several."""
        before, after = (
            format_value(value) + (f" (best of {count})" if count > 1 else "")
            for value, count in zip(
                (self.contrast.before, self.contrast.after), self.variants, strict=True
            )
        )
        return f"{format_param(self.contrast.parameter)}: {after} against {before}"


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
    """Values of a study's trials by their parameters.

    Attributes:
        axes: values of each parameter in order, over the trials that have it.
        codes: (trials, parameters), indices into these values; -1 where a trial lacks a parameter.
        values: (trials,), their values; NaN where there is none.
    """

    axes: Mapping[str, Sequence[Any]]
    codes: NDArray[np.int64]
    values: Floats
    _keys: dict[frozenset[str], NDArray[np.int64]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def from_frame(cls, table: pd.DataFrame, parameters: Sequence[str]) -> "FactorialTable":
        """Arrange the rows of a frame.

        Args:
            table: one row per trial, with a column for each parameter, missing where the trial
                lacks it, and ``value``, NaN where the trial has none.
            parameters: names of the axes; any two rows differ in one of them or more.
        """
        axes = {name: sort_values(table[name]) for name in parameters}
        codes = np.full((len(table), len(axes)), -1, dtype=np.int64)
        for i, (name, values) in enumerate(axes.items()):
            place = {value: code for code, value in enumerate(values)}
            codes[:, i] = [-1 if is_missing(v) else place[v] for v in table[name].tolist()]
        return cls(axes, codes, table["value"].to_numpy(dtype=float))

    @property
    def value_count(self) -> int:
        """Number of trials with a value."""
        return int((~np.isnan(self.values)).sum())

    @property
    def is_complete(self) -> bool:
        """Whether every planned trial has a value."""
        return not np.isnan(self.values).any()

    def subset(self, fixed: Mapping[str, Any], below: float | None = None) -> "FactorialTable":
        """Keep trials with the given parameter values and, if stated, values below a bound."""
        is_kept = self._find(fixed)
        values = self.values[is_kept]
        if below is not None:
            values = np.where(values < below, values, math.nan)
        return FactorialTable(self.axes, self.codes[is_kept], values)

    def list_contrasts(self) -> list[Contrast]:
        """List the contrasts to estimate.

        Of a parameter that is a number or a switch, each value is compared with the one before it;
        of a text, which has no order, each two values. A state source switches two states on or
        off: reading both is compared with reading either.
        """
        return [
            Contrast(name, before, after)
            for name, values in self.axes.items()
            if name != REPLICATE
            for before, after in _pair_values(name, values)
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
        first, second = self._match(before), self._match(after)
        return PairedDifference.from_differences(second.values - first.values)

    def compute_effect(self, contrast: Contrast) -> Effect:
        """Estimate the main effect of a contrast.

        A cell that has parameters which the other one lacks, its switches or options, is compared
        at the best of them, and so is an optimizer.
        """
        own = self._list_own(contrast)
        before, after = (
            self._match({contrast.parameter: value}, own)
            for value in (contrast.before, contrast.after)
        )
        planned = before.is_planned & after.is_planned
        has_before = ~np.isnan(before.values) & planned
        has_after = ~np.isnan(after.values) & planned
        return Effect.from_differences(
            after.values - before.values,
            contrast=contrast,
            only_before=int((has_before & ~has_after).sum()),
            only_after=int((has_after & ~has_before).sum()),
            neither=int((planned & ~has_before & ~has_after).sum()),
            variants=(before.variants, after.variants),
        )

    def compute_effects(self) -> list[Effect]:
        """Estimate the main effect of each contrast that has a pair."""
        effects = (self.compute_effect(contrast) for contrast in self.list_contrasts())
        return [effect for effect in effects if effect.pairs]

    def compute_interaction(self, first: Contrast, second: Contrast) -> Interaction:
        """Estimate the interaction of two contrasts of different parameters."""
        (neither, only_second), (only_first, both) = (
            [
                self._match({first.parameter: one, second.parameter: other}).values
                for other in (second.before, second.after)
            ]
            for one in (first.before, first.after)
        )
        return Interaction.from_differences(
            (both - only_second) - (only_first - neither), first=first, second=second
        )

    def compute_interactions(self) -> list[Interaction]:
        """Estimate the interaction of each two contrasts that have a quadruple."""
        interactions = (
            self.compute_interaction(first, second)
            for first, second in itertools.combinations(self.list_contrasts(), 2)
            if first.parameter != second.parameter
        )
        return [interaction for interaction in interactions if interaction.pairs]

    def _find(self, fixed: Mapping[str, Any]) -> Flags:
        """Return which trials have the given parameter values."""
        found = np.ones(len(self.values), dtype=bool)
        for parameter, value in fixed.items():
            values = self.axes.get(parameter, ())
            if value not in values:
                return np.zeros(len(self.values), dtype=bool)
            column = list(self.axes).index(parameter)
            found &= self.codes[:, column] == list(values).index(value)
        return found

    def _match(self, fixed: Mapping[str, Any], own: frozenset[str] = frozenset()) -> "_Side":
        """Return the trials with the given values, by their values of all other parameters.

        Args:
            fixed: parameter values.
            own: parameters that are ignored: of the trials that differ in these alone, the best
                one is returned.
        """
        contexts = self._number_contexts(own.union(fixed))
        found = self._find(fixed)
        places, values = contexts[found], self.values[found]
        best = np.full(int(contexts.max(initial=-1)) + 1, math.nan)
        np.fmin.at(best, places, values)
        counts = np.bincount(places, minlength=len(best))
        return _Side(best, counts > 0, int(counts.max(initial=0)))

    def _number_contexts(self, without: frozenset[str]) -> NDArray[np.int64]:
        """Number the trials: equal numbers for equal values of the remaining parameters."""
        if without not in self._keys:
            keys = np.zeros(len(self.values), dtype=np.int64)
            for i, (name, values) in enumerate(self.axes.items()):
                if name not in without:
                    keys = keys * (len(values) + 1) + self.codes[:, i] + 1
                    # Renumbered at once: the product of all parameters' values may not fit.
                    keys = np.unique(keys, return_inverse=True)[1]
            self._keys[without] = keys
        return self._keys[without]

    def _list_own(self, contrast: Contrast) -> frozenset[str]:
        """Return the parameters that only one side of a contrast has, because of the contrast."""
        conditional = list_conditional_params(contrast.parameter, self.axes)
        columns = [i for i, name in enumerate(self.axes) if name in conditional]
        has_before, has_after = (
            (self.codes[self._find({contrast.parameter: value})][:, columns] >= 0).any(axis=0)
            for value in (contrast.before, contrast.after)
        )
        names = list(self.axes)
        return frozenset(names[columns[i]] for i in np.flatnonzero(has_before != has_after))


class _Side(NamedTuple):
    """One side of all pairs, by context: the values of all other parameters.

    Attributes:
        values: (contexts,), the trials' values; NaN where there is none.
        is_planned: (contexts,), whether the study has a trial there.
        variants: largest number of trials of which a value is the best.
    """

    values: Floats
    is_planned: Flags
    variants: int


def list_conditional_params(parameter: str, names: Iterable[str]) -> set[str]:
    """List the parameters that only some values of a parameter have, among some names.

    The switches and the options belong to cells, some training settings to optimizers.
    """
    if parameter == CELL:
        return {name for name in names if name in SWITCHES or name not in RESERVED_OPTION_NAMES}
    if parameter == "optimizer":
        return {name for name in names if not all(uses_setting(each, name) for each in OPTIMIZERS)}
    return set()


def sort_values(column: "pd.Series[Any]") -> list[Any]:
    """Sort the distinct values: off before on, numbers ascending, state sources as listed above.

    Users' cells come after the built-in ones. Missing values are left out.
    """
    values = {value for value in column.tolist() if not is_missing(value)}
    if column.name == CELL:
        return sorted(values, key=lambda cell: (cell not in BUILT_IN_CELLS, cell))
    return [source for source in STATE_SOURCE_ORDER if source in values] or sorted(values)


def _pair_values(name: str, values: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    if name == "state_source":
        full = [("old", "both"), ("new", "both")]
        return full if len(values) == len(STATE_SOURCE_ORDER) else itertools.pairwise(values)
    if values and isinstance(values[0], str):
        return itertools.combinations(values, 2)
    return itertools.pairwise(values)
