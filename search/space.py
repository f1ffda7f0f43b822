"""A point of the grid ↔ Optuna's categorical parameters ↔ an architecture."""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from optuna.distributions import CategoricalDistribution

from rnn.architecture import Architecture, GateInputs, StateSource
from rnn.network import Member
from studies.definition import PARAMETERS, REPLICATE, Definition, Point, Space, Value

SearchSpace = dict[str, list[Value]]
"""Each parameter's values, in the order of Optuna's choices."""


def search_space(space: Space) -> SearchSpace:
    """Return the values of a grid's parameters, in the definition's order."""
    return {name: list(space.values(name)) for name in PARAMETERS}


def search_space_of(points: Iterable[Point]) -> SearchSpace:
    """Return the values that occur in points: switches and numbers sorted, sources as named."""
    values: dict[str, set[Value]] = {}
    for point in points:
        for name, value in point.items():
            values.setdefault(name, set()).add(value)
    names = [name for name in (*PARAMETERS, REPLICATE) if name in values]
    return {name: sorted(values[name], key=_order) for name in names}


def distributions(space: Mapping[str, Sequence[Value]]) -> dict[str, CategoricalDistribution]:
    """Return the parameters as Optuna's distributions."""
    return {name: CategoricalDistribution(tuple(values)) for name, values in space.items()}


def member_of(params: Mapping[str, Value], definition: Definition) -> Member:
    """Return the network that a trial's parameters stand for.

    Args:
        params: a value for each searched parameter, and the replicate's number if there are any.
        definition: of the study, for what is not searched.
    """
    gate_inputs: GateInputs = definition.gate_inputs
    architecture = Architecture(
        input_gate=bool(params["input_gate"]),
        forget_gate=bool(params["forget_gate"]),
        output_gate=bool(params["output_gate"]),
        state_gate=bool(params["state_gate"]),
        residual=bool(params["residual"]),
        state_source=cast(StateSource, params["state_source"]),
        layers=int(params["layers"]),
        state_size=int(params["state_size"]),
        gate_inputs=gate_inputs,
    )
    return Member(architecture, int(params.get(REPLICATE, 0)))


def point_of(member: Member, with_replicate: bool = False) -> Point:
    """Return the parameters that stand for a network: the inverse of :func:`member_of`."""
    point: Point = {name: getattr(member.architecture, name) for name in PARAMETERS}
    return point | ({REPLICATE: member.replicate} if with_replicate else {})


def _order(value: Value) -> tuple[int, Value]:
    sources = ("new", "old", "both")
    return (0, sources.index(value)) if value in sources else (1, value)
