"""The design of a study: which trial has which values of the parameters."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reports.stats.contrast import REPLICATE, Contrast, ParameterTraits
from reports.stats.noise import Integers, Runs
from reports.stats.scale import format_param, format_value

if TYPE_CHECKING:
    import pandas as pd

Flags = NDArray[np.bool_]

_MAX_KEY = 2**62
"""Product of the parameters' values up to which contexts are numbered at once."""


@dataclass(frozen=True)
class FactorialDesign:
    """Parameters of a study's trials, complete or not, or a union of several designs.

    Attributes:
        axes: values of each parameter in order, over the trials that have it.
        codes: (trials, parameters), indices into these values; -1 where a trial lacks a parameter.
        traits: what else is known of the parameters.
    """

    axes: Mapping[str, Sequence[Any]]
    codes: Integers
    traits: ParameterTraits

    def list_contrasts(self) -> list[Contrast]:
        """List the contrasts to estimate, see :meth:`ParameterTraits.list_contrasts`."""
        return [
            contrast
            for name, values in self.axes.items()
            if name != REPLICATE
            for contrast in self.traits.list_contrasts(name, values)
        ]

    def find(self, fixed: Mapping[str, Any]) -> Flags:
        """Return which trials have the given value of each parameter, or one of those in a list."""
        found = np.ones(len(self.codes), dtype=bool)
        for parameter, value in fixed.items():
            values = list(self.axes.get(parameter, ()))
            wanted = value if isinstance(value, list) else [value]
            codes = [values.index(each) for each in wanted if each in values]
            if not codes:
                return np.zeros(len(self.codes), dtype=bool)
            column = self.codes[:, list(self.axes).index(parameter)]
            found &= column == codes[0] if len(codes) == 1 else np.isin(column, codes)
        return found

    def number_contexts(self, without: frozenset[str]) -> Integers:
        """Number the trials: equal numbers for equal values of the remaining parameters."""
        if without not in self._contexts:
            keys, bound = np.zeros(len(self.codes), dtype=np.int64), 1
            for i, (name, values) in enumerate(self.axes.items()):
                if name not in without:
                    if bound > _MAX_KEY // (len(values) + 1):
                        keys = np.unique(keys, return_inverse=True)[1]
                        bound = len(keys)
                    keys = keys * (len(values) + 1) + self.codes[:, i] + 1
                    bound *= len(values) + 1
            self._contexts[without] = np.unique(keys, return_inverse=True)[1]
        return self._contexts[without]

    def list_own(self, contrast: Contrast) -> frozenset[str]:
        """Return the parameters that only one side of a contrast has, because of the contrast."""
        owned = self.traits.owned.get(contrast.parameter, ())
        columns = [i for i, name in enumerate(self.axes) if name in owned]
        if not columns:
            return frozenset()
        has_before, has_after = (
            (self.codes[self.find({contrast.parameter: value})][:, columns] >= 0).any(axis=0)
            for value in (contrast.before, contrast.after)
        )
        names = list(self.axes)
        return frozenset(names[columns[i]] for i in np.flatnonzero(has_before != has_after))

    @cached_property
    def _contexts(self) -> dict[frozenset[str], Integers]:
        """Numbers of the trials that were computed before."""
        return {}


def encode(table: "pd.DataFrame", axes: Mapping[str, Sequence[Any]]) -> Integers:
    """Return the index of each row's value of each axis; -1 where missing, -2 where unknown."""
    import pandas as pd

    codes = np.full((len(table), len(axes)), -1, dtype=np.int64)
    for i, (name, values) in enumerate(axes.items()):
        if name in table:
            place = {value: code for code, value in enumerate(values)}
            indices, found = pd.factorize(table[name])  # -1 where missing
            known = [place.get(value, -2) for value in found.tolist()]
            codes[:, i] = np.array([*known, -1])[indices]
    return codes


def encode_runs(
    replicates: "pd.DataFrame", axes: Mapping[str, Sequence[Any]], places: Sequence[int]
) -> Runs:
    """Encode further runs of the same architectures; ``places`` are the axes to keep."""
    rows = replicates[replicates["value"].notna()]
    return Runs(
        encode(rows, axes)[:, places],
        rows[REPLICATE].to_numpy(dtype=np.int64),
        rows["value"].to_numpy(dtype=float),
    )


def find_full_factorial_blocks(
    table: "pd.DataFrame", parameters: Sequence[str]
) -> "dict[str, pd.DataFrame]":
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
    table: "pd.DataFrame", parameter: str, parameters: Sequence[str]
) -> "Iterator[tuple[str, pd.DataFrame]]":
    blocks = dict(iter(table.groupby(parameter)))
    if len(blocks) > 1 and all(_is_full(block, parameters) for block in blocks.values()):
        for value, block in blocks.items():
            yield f"{format_param(parameter)} is {format_value(value)}", block


def _is_full(table: "pd.DataFrame", parameters: Sequence[str]) -> bool:
    combinations = math.prod(table[name].nunique() for name in parameters)
    return not parameters or len(table.drop_duplicates(list(parameters))) == combinations
