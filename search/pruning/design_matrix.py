"""Parameters of trials as columns of numbers, for the regression that predicts final values."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from search.pruning.regression import INTERACTION, MAIN_EFFECT, Floats, Indices, Mask

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
        blocks = [_encode(each) for each in values]
        factors = blocks
        if _count_products(blocks) > _MAX_INTERACTIONS:
            factors = [
                _encode_order(each) if _is_numeric(each) else block
                for each, block in zip(values, blocks, strict=True)
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
    """Encode the order of a number's values, from 0 to 1, in a column of mean zero."""
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
    """Return whether all values of a parameter that are not missing are numbers."""
    present = {type(value) for value in values} - {type(None)}
    return present <= {int, float}


def _count_products(blocks: Sequence[Floats]) -> int:
    """Return the number of products of columns of different blocks."""
    return sum(a.shape[1] * b.shape[1] for a, b in itertools.combinations(blocks, 2))
