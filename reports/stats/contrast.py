"""Contrasts: changes of one parameter, and the order of a parameter's values."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.formatting import format_param, format_value, is_missing, order_values
from rnn.config import OPTIMIZERS
from studies.space import BPTT_STEPS, BUILT_IN_CELLS, BUILT_IN_PARAMS, CELL, SWITCHES
from studies.training import UPDATE_EVERY, uses_setting

STATE_SOURCE_ORDER = ("old", "new", "both")
"""Order of the state sources: a contrast goes from an earlier to a later one."""


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


def list_conditional_params(parameter: str, names: Iterable[str]) -> set[str]:
    """List the parameters that only some values of a parameter have, among some names.

    The switches and the options belong to cells, some training settings to optimizers, and
    ``update_every`` to gradients that do not go back a whole sequence.
    """
    if parameter == CELL:
        return {name for name in names if name in SWITCHES or name not in BUILT_IN_PARAMS}
    if parameter == "optimizer":
        return {name for name in names if not all(uses_setting(each, name) for each in OPTIMIZERS)}
    return {UPDATE_EVERY} & set(names) if parameter == BPTT_STEPS else set()


def sort_values(column: "pd.Series[Any]") -> list[Any]:
    """Sort the distinct values: off before on, numbers ascending, state sources as listed above.

    Users' cells come after the built-in ones. Missing values are left out.
    """
    values = {value for value in column.tolist() if not is_missing(value)}
    if column.name == CELL:
        return sorted(values, key=lambda cell: (cell not in BUILT_IN_CELLS, cell))
    return [source for source in STATE_SOURCE_ORDER if source in values] or order_values(values)


def pair_values(name: str, values: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    """Pair the values of a parameter that are compared.

    Of a parameter that is a number or a switch, each value is compared with the one before it; of a
    text, which has no order, each two values. A state source switches two states on or off: reading
    both is compared with reading either.
    """
    if name == "state_source":
        full = [("old", "both"), ("new", "both")]
        return full if len(values) == len(STATE_SOURCE_ORDER) else itertools.pairwise(values)
    if values and isinstance(values[0], str):
        return itertools.combinations(values, 2)
    return itertools.pairwise(values)
