"""A point of the grid ↔ Optuna's categorical parameters ↔ an architecture."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.distributions import CategoricalDistribution

from rnn.architecture import STATE_SOURCES, Architecture
from rnn.known_cell import KnownCell
from rnn.member import Member
from studies.definition import Definition
from studies.space import (
    ALL_PARAMETERS,
    GRADIENT_WINDOW,
    KNOWN_CELL,
    REPLICATE,
    Point,
    Space,
    Value,
)

SearchSpace = dict[str, list[Value]]
"""Each parameter's values, in the order of Optuna's choices."""


def search_space(space: Space) -> SearchSpace:
    """Return the values of a grid's parameters, in the definition's order."""
    return {name: list(space.values(name)) for name in space.parameters}


def search_space_of(points: Iterable[Point]) -> SearchSpace:
    """Return the values that occur in points: switches and numbers sorted, sources as named."""
    values: dict[str, set[Value]] = {}
    for point in points:
        for name, value in point.items():
            values.setdefault(name, set()).add(value)
    names = [name for name in ALL_PARAMETERS if name in values]
    return {name: sorted(values[name], key=_order) for name in names}


def distributions(space: Mapping[str, Sequence[Value]]) -> dict[str, CategoricalDistribution]:
    """Return the parameters as Optuna's distributions."""
    return {name: CategoricalDistribution(tuple(values)) for name, values in space.items()}


def member_of(params: Mapping[str, Any], definition: Definition) -> Member:
    """Return the network that a trial's parameters stand for.

    Args:
        params: a value for each searched parameter, and the replicate's number if there are any.
        definition: of the study, for what is not searched.
    """
    architecture = (
        KnownCell(*(params[name] for name in KNOWN_CELL))
        if "cell" in params
        else Architecture.of(params, definition.gate_inputs)
    )
    window = params.get(GRADIENT_WINDOW, definition.training.gradient_window)
    return Member(architecture, params.get(REPLICATE, 0), window)


def _order(value: Value) -> tuple[int, Value]:
    return (0, STATE_SOURCES.index(value)) if value in STATE_SOURCES else (1, value)
