"""What a study searches: its parameters, their values, and the points of the grid."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from studies.settings import MAX_BPTT_STEPS, StrictModel

ParamValue = bool | int | str
Params = dict[str, ParamValue]
"""A value for each searched parameter."""

GATED_PARAMS = (
    "input_gate",
    "forget_gate",
    "output_gate",
    "state_gate",
    "residual",
    "state_source",
    "layers",
    "state_size",
)
"""Of a network of our own cell."""

BASELINE_PARAMS = ("cell", "layers", "state_size")
"""The parameters of a network of a known cell, which has no switches."""

BPTT_STEPS = "bptt_steps"
"""The parameter that says through how many steps a gradient goes, in studies that vary it."""

REPLICATE = "replicate"
"""The parameter that numbers an architecture's replicates, in studies that have them."""

COST_PARAMS = (*BASELINE_PARAMS, BPTT_STEPS)
"""The parameters that say most of what a step of a network costs."""

PARAM_ORDER = ("cell", *GATED_PARAMS, BPTT_STEPS, REPLICATE)
"""Whatever may be a parameter of some study, in the order in which they are listed."""


class Space(StrictModel):
    """The values of each searched parameter, and the combinations to leave out."""

    input_gate: list[bool] = [False, True]
    forget_gate: list[bool] = [False, True]
    output_gate: list[bool] = [False, True]
    state_gate: list[bool] = [False, True]
    residual: list[bool] = [False, True]
    state_source: list[Literal["new", "old", "both"]] = ["new", "old", "both"]
    layers: list[Annotated[int, Field(ge=1, le=100)]]
    state_size: list[Annotated[int, Field(ge=1, le=2**16)]]
    cell: list[Literal["elman", "gru", "lstm"]] | None = None
    bptt_steps: list[Annotated[int, Field(ge=1, le=MAX_BPTT_STEPS)]] | None = None
    exclude: list[dict[str, ParamValue]] = []

    @field_validator(*GATED_PARAMS, "cell", BPTT_STEPS)
    @classmethod
    def _distinct(cls, values: list[ParamValue] | None) -> list[ParamValue] | None:
        if values is None:
            return None
        if not values:
            raise ValueError("one value or more")
        if len(set(values)) < len(values):
            raise ValueError("each value once")
        return values

    @model_validator(mode="after")
    def _one_kind_of_cell(self) -> "Space":
        switches = [name for name in GATED_PARAMS if name not in BASELINE_PARAMS]
        # What is written down again has all of them, at their defaults.
        stated = [s for s in switches if getattr(self, s) != type(self).model_fields[s].default]
        if self.cell is not None and stated:
            raise ValueError(
                f"has cell and {', '.join(stated)}; allowed: one of them, for known cells have no "
                "switches; make a study of each"
            )
        return self

    @model_validator(mode="after")
    def _sensible_exclusions(self) -> "Space":
        for exclusion in self.exclude:
            if not exclusion:
                raise ValueError("exclude: {} would leave out every point; name a parameter")
            for name, value in exclusion.items():
                if name not in self.parameters:
                    allowed = ", ".join(self.parameters)
                    raise ValueError(f"exclude names {name!r}; allowed: {allowed}")
                if not _among(value, self.values(name)):
                    raise ValueError(
                        f"exclude has {name} = {value!r}; allowed: {_join(self.values(name))}"
                    )
        if next(self.combinations(), None) is None:
            raise ValueError("exclude leaves no point; allowed: at least one; exclude less")
        return self

    @property
    def parameters(self) -> tuple[str, ...]:
        """What varies, or could: the names of the grid's parameters."""
        own = GATED_PARAMS if self.cell is None else BASELINE_PARAMS
        return own if self.bptt_steps is None else (*own, BPTT_STEPS)

    def values(self, parameter: str) -> Sequence[ParamValue]:
        """Return a parameter's values in the order of the definition."""
        values: Sequence[ParamValue] = getattr(self, parameter)
        return values

    def combinations(self) -> Iterator[Params]:
        """Yield the grid's points less the excluded, the last parameter varying fastest."""
        for combination in itertools.product(*map(self.values, self.parameters)):
            point = dict(zip(self.parameters, combination, strict=True))
            if not any(exclusion.items() <= point.items() for exclusion in self.exclude):
                yield point


def _among(value: ParamValue, values: Sequence[ParamValue]) -> bool:
    return any(value == other and type(value) is type(other) for other in values)


def _join(values: Sequence[ParamValue]) -> str:
    return ", ".join(map(repr, values))
