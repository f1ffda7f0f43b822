"""The design of a study: contrasts of its parameters, and codes of its trials."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from reports.stats import Floats, Integers

if TYPE_CHECKING:
    import pandas as pd

REPLICATE = "replicate"
"""Column of the number of the replicate, which is a parameter that is not contrasted."""

MAX_LEVELS = 20
"""Number of values of a number above which it is continuous: each value has few trials."""

MAX_TEXTS = 10
"""Number of texts above which a parameter is not contrasted: each two would be compared."""


def order_values(values: Iterable[Any]) -> list[Any]:
    """Sort the values of a parameter: numbers ascending, then texts such as ``sequence``."""
    return sorted(values, key=lambda value: (isinstance(value, str), value))


def number_groups(rows: "pd.DataFrame", names: Sequence[str]) -> "pd.Series[int]":
    """Number the combinations of some columns, in the order of the rows."""
    import pandas as pd

    if not names:
        return pd.Series(0, index=rows.index)
    return rows.groupby(list(names), dropna=False, sort=False).ngroup()


@dataclass(frozen=True)
class Contrast:
    """A change of one parameter, all others being equal.

    Attributes:
        before: value in the first trial of a pair.
        after: value in the second trial.
        name: short name of the change; "" for one that tells the values.
    """

    parameter: str
    before: Any
    after: Any
    name: str = field(default="", compare=False)


@dataclass(frozen=True)
class ParameterTraits:
    """What is known of parameters besides the values that trials have.

    Attributes:
        orders: values of a parameter in their order: a contrast goes from an earlier to a later
            one. Other values come after these, numbers ascending, then texts.
        owned: parameters that only some values of a parameter have.
        names: contrasts of a parameter and their short names. Where all of their values occur,
            these contrasts alone are estimated.
    """

    orders: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    owned: Mapping[str, Set[str]] = field(default_factory=dict)
    names: Mapping[str, Mapping[tuple[Any, Any], str]] = field(default_factory=dict)

    def sort_values(self, parameter: str, values: Iterable[Any]) -> list[Any]:
        """Sort the distinct values of a parameter: off before on, numbers ascending."""
        order = self.orders.get(parameter, ())
        found = set(values)
        return [value for value in order if value in found] + order_values(found.difference(order))

    def name_contrast(self, parameter: str, before: Any, after: Any) -> Contrast:
        """Return a contrast with its short name, if it has one."""
        name = self.names.get(parameter, {}).get((before, after), "")
        return Contrast(parameter, before, after, name)

    def list_contrasts(self, parameter: str, values: Sequence[Any]) -> list[Contrast]:
        """List the contrasts of a parameter that are estimated.

        Of a parameter that is a number or a switch, each value is compared with the one before it;
        of a text, which has no order, each two values.

        Args:
            parameter: name of the parameter.
            values: its values, in order.
        """
        named = self.names.get(parameter, {})
        pairs: Iterable[tuple[Any, Any]] = itertools.pairwise(values)
        if named and set(values).issuperset(itertools.chain.from_iterable(named)):
            pairs = named
        elif values and isinstance(values[0], str):
            pairs = itertools.combinations(values, 2)
        return [self.name_contrast(parameter, before, after) for before, after in pairs]


def has_levels(values: Sequence[Any]) -> bool:
    """Return whether the distinct values of a parameter are few enough to contrast them."""
    is_text = bool(values) and isinstance(values[0], str)
    return len(values) <= (MAX_TEXTS if is_text else MAX_LEVELS)


NO_TRAITS = ParameterTraits()
"""Traits of parameters of which nothing but the values is known."""


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


# ------------------------------------------------------------------ linear models


def build_contrasts(parameters: Sequence[Integers], count: int, order: int) -> Floats:
    """Return the columns of a model of parameters and of products of up to some of them.

    Args:
        parameters: (trials,) each, index of the value of each trial, without gaps.
        count: number of trials.
        order: largest number of parameters of a product.

    Returns:
        (trials, columns), a constant and products of orthonormal contrasts.
    """
    single = []
    for codes in parameters:
        levels = int(codes.max()) + 1
        basis = np.linalg.qr(np.hstack([np.ones((levels, 1)), np.eye(levels)[:, 1:]]))[0]
        single.append(basis[codes, 1:] * math.sqrt(levels))  # a mean square of 1
    products: dict[tuple[int, ...], Floats] = {(): np.ones((count, 1))}
    for size in range(1, order + 1):
        for chosen in itertools.combinations(range(len(single)), size):
            pair = products[chosen[:-1]][:, :, None] * single[chosen[-1]][:, None, :]
            products[chosen] = pair.reshape(count, -1)
    return np.hstack(list(products.values()))


def count_contrasts(sizes: Sequence[int], order: int) -> int:
    """Return the number of columns of such a model, given the number of contrasts of each one."""
    return sum(
        math.prod(chosen)
        for size in range(order + 1)
        for chosen in itertools.combinations(sizes, size)
    )


def orthonormalize(columns: Floats) -> Floats:
    """Return an orthonormal basis (rows, rank) of columns (rows, columns) that may be dependent."""
    if columns.shape[1] > len(columns):  # the smaller of both products has the same rank
        scales, basis = np.linalg.eigh(columns @ columns.T)
        return np.asarray(basis[:, scales > 1e-9 * scales.max(initial=0)])
    scales, vectors = np.linalg.eigh(columns.T @ columns)
    kept = scales > 1e-9 * scales.max(initial=0)
    return np.asarray(columns @ (vectors[:, kept] / np.sqrt(scales[kept])))
