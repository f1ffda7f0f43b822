"""Search spaces: the parameters of a study, their values, and the combinations of its grid."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any

from optuna.distributions import CategoricalDistribution
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rnn.config import STATE_SOURCES, BaselineCell, BaselineConfig, GatedConfig, StateSource

ParamValue = bool | int | str
Params = dict[str, ParamValue]
"""One value for each parameter."""

SearchSpace = dict[str, list[ParamValue]]
"""Each parameter's values, in the order of Optuna's choices."""

GATED_PARAMS = tuple(field.name for field in fields(GatedConfig) if field.name != "gate_inputs")
"""Parameters of a gated network."""

BASELINE_PARAMS = tuple(field.name for field in fields(BaselineConfig))
"""Parameters of a network of a baseline cell: ``cell``, ``layers`` and ``state_size``."""

BPTT_STEPS = "bptt_steps"
"""Parameter: number of steps that a gradient goes back, in studies that vary it."""

REPLICATE = "replicate"
"""Parameter: number of the replicate, in studies that have replicates."""

COST_PARAMS = (*BASELINE_PARAMS, BPTT_STEPS)
"""Parameters that determine most of the cost of a training step."""

PARAM_ORDER = ("cell", *GATED_PARAMS, BPTT_STEPS, REPLICATE)
"""All parameters of any study, in the order in which they are listed."""

MAX_BPTT_STEPS = 10_000

MAX_COMBINATIONS = 1_000_000
"""Maximum number of combinations of a grid, including excluded ones."""


class StrictModel(BaseModel):
    """Strict, immutable model: no coercion, unknown keys rejected."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


_Layers = Annotated[int, Field(ge=1, le=100)]
_StateSize = Annotated[int, Field(ge=1, le=2**16)]
_BPTTSteps = Annotated[int, Field(ge=1, le=MAX_BPTT_STEPS)]


class StoredParams(BaseModel):
    """Parameters of a stored trial; which it has depends on its study."""

    model_config = ConfigDict(strict=True, frozen=True)

    cell: BaselineCell | None = None
    input_gate: bool | None = None
    forget_gate: bool | None = None
    output_gate: bool | None = None
    state_gate: bool | None = None
    residual: bool | None = None
    state_source: StateSource | None = None
    layers: _Layers | None = None
    state_size: _StateSize | None = None
    bptt_steps: _BPTTSteps | None = None
    replicate: Annotated[int, Field(ge=0, lt=2**31)] = 0


class Space(StrictModel):
    """A grid: the values of each parameter, less the excluded combinations."""

    input_gate: list[bool] = [False, True]
    forget_gate: list[bool] = [False, True]
    output_gate: list[bool] = [False, True]
    state_gate: list[bool] = [False, True]
    residual: list[bool] = [False, True]
    state_source: list[StateSource] = list(STATE_SOURCES)
    layers: list[_Layers]
    state_size: list[_StateSize]
    cell: list[BaselineCell] | None = None
    bptt_steps: list[_BPTTSteps] | None = None
    exclude: list[dict[str, ParamValue]] = []

    @field_validator(*GATED_PARAMS, "cell", BPTT_STEPS)
    @classmethod
    def _check_values(cls, values: list[ParamValue] | None) -> list[ParamValue] | None:
        if values is None:
            return None
        if not values:
            raise ValueError("expected at least one value")
        if len(set(values)) < len(values):
            raise ValueError("expected distinct values")
        return values

    @model_validator(mode="after")
    def _check_cell(self) -> "Space":
        options = [name for name in GATED_PARAMS if name not in BASELINE_PARAMS]
        # A stored config lists every option, at its default where the study does not vary it.
        varied = [name for name in options if getattr(self, name) != _default(name)]
        if self.cell is not None and varied:
            raise ValueError(
                f"has cell and {', '.join(varied)}: expected one of them, because baseline cells "
                "have no switches; make a study of each"
            )
        return self

    @model_validator(mode="after")
    def _check_size(self) -> "Space":
        size = math.prod(len(self.values(name)) for name in self.parameters)
        if size > MAX_COMBINATIONS:
            raise ValueError(
                f"has {size:,} combinations: expected at most {MAX_COMBINATIONS:,}, including "
                "excluded ones"
            )
        return self

    @model_validator(mode="after")
    def _check_exclusions(self) -> "Space":
        for exclusion in self.exclude:
            if not exclusion:
                raise ValueError("exclude has {}, which excludes every combination")
            for name, value in exclusion.items():
                if name not in self.parameters:
                    expected = ", ".join(self.parameters)
                    raise ValueError(f"exclude names {name!r}: expected one of {expected}")
                if not _contains_exact(self.values(name), value):
                    expected = ", ".join(map(repr, self.values(name)))
                    raise ValueError(f"exclude has {name} = {value!r}: expected one of {expected}")
        if next(self.combinations(), None) is None:
            raise ValueError("exclude leaves no combination: expected at least one")
        return self

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the grid's parameters."""
        names = GATED_PARAMS if self.cell is None else BASELINE_PARAMS
        return names if self.bptt_steps is None else (*names, BPTT_STEPS)

    @property
    def search_space(self) -> SearchSpace:
        """Each parameter's values, in the order of the file."""
        return {name: list(self.values(name)) for name in self.parameters}

    def values(self, parameter: str) -> Sequence[ParamValue]:
        """Return a parameter's values in the order of the file."""
        values: Sequence[ParamValue] = getattr(self, parameter)
        return values

    def count(self) -> int:
        """Count the combinations that are not excluded."""
        return sum(1 for _ in self.combinations())

    def combinations(self) -> Iterator[Params]:
        """Yield the combinations that are not excluded, the last parameter varying fastest."""
        for values in itertools.product(*map(self.values, self.parameters)):
            params = dict(zip(self.parameters, values, strict=True))
            if not any(exclusion.items() <= params.items() for exclusion in self.exclude):
                yield params


def observed_search_space(trials: Iterable[Mapping[str, Any]]) -> SearchSpace:
    """Return the values that occur in trials' parameters, each sorted."""
    values: dict[str, set[ParamValue]] = {}
    for params in trials:
        for name, value in params.items():
            values.setdefault(name, set()).add(value)
    names = [name for name in PARAM_ORDER if name in values]
    return {name: sorted(values[name], key=_sort_key) for name in names}


def distributions(space: Mapping[str, Sequence[ParamValue]]) -> dict[str, CategoricalDistribution]:
    """Return the Optuna distributions of a search space."""
    return {name: CategoricalDistribution(tuple(values)) for name, values in space.items()}


def _sort_key(value: ParamValue) -> tuple[int, ParamValue]:
    return (0, STATE_SOURCES.index(value)) if value in STATE_SOURCES else (1, value)


def _default(parameter: str) -> Any:
    return Space.model_fields[parameter].default


def _contains_exact(values: Sequence[ParamValue], value: ParamValue) -> bool:
    """Return whether a value is among others; ``True`` is not 1."""
    return any(value == other and type(value) is type(other) for other in values)
