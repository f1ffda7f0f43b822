"""Search spaces: the tables ``[space]`` of a study file, and the grid that they make together."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any

from optuna.distributions import CategoricalDistribution
from pydantic import ConfigDict, Field, field_validator, model_validator

from rnn.config import (
    BASELINE_CELLS,
    OPTIMIZERS,
    STATE_SOURCES,
    BaselineConfig,
    GatedConfig,
    ParamValue,
    StateSource,
)
from studies.cell_record import CellRecord, cell_name
from studies.strict_model import StrictModel
from studies.training import (
    TRAINING_PARAMS,
    StoredTrainingParams,
    TrainingSettings,
    TrainingSpace,
    check_values,
    uses_setting,
)

Params = dict[str, ParamValue]
"""One value for each parameter that a trial has."""

SearchSpace = dict[str, list[ParamValue]]
"""Each parameter's values, in the order of Optuna's choices."""

CELL = "cell"
"""Parameter: name of the cell, in studies of other cells than the gated one."""

GATED_CELL = "gated"
"""Name of the gated cell."""

BUILT_IN_CELLS = (GATED_CELL, *BASELINE_CELLS)
"""Names of the cells that need no file."""

GATED_PARAMS = tuple(field.name for field in fields(GatedConfig) if field.name != "gate_inputs")
"""Parameters of a gated network."""

BASELINE_PARAMS = tuple(field.name for field in fields(BaselineConfig))
"""Parameters of a network of any other cell: ``cell``, ``layers`` and ``state_size``; those of a
user's cell have its options as well."""

SWITCHES = tuple(name for name in GATED_PARAMS if name not in BASELINE_PARAMS)
"""Parameters that only gated networks have."""

BPTT_STEPS = "bptt_steps"
"""Parameter: number of steps that a gradient goes back, in studies that vary it."""

REPLICATE = "replicate"
"""Parameter: number of the replicate, in studies that have replicates."""

COST_PARAMS = (*BASELINE_PARAMS, "batch_size", "sequence_length", BPTT_STEPS)
"""Parameters that determine most of the cost of a training step."""

RESERVED_PARAMS = (CELL, *GATED_PARAMS, *TRAINING_PARAMS, REPLICATE, "training", "exclude")
"""Names that an option of a user's cell cannot have."""

MAX_COMBINATIONS = 1_000_000
"""Maximum number of combinations of a grid, including excluded ones."""


_Layers = Annotated[int, Field(ge=1, le=100)]
_StateSize = Annotated[int, Field(ge=1, le=2**16)]


class StoredParams(StoredTrainingParams):
    """Parameters of a stored trial; which it has depends on its study."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, ParamValue]

    cell: str | None = None
    input_gate: bool | None = None
    forget_gate: bool | None = None
    output_gate: bool | None = None
    state_gate: bool | None = None
    residual: bool | None = None
    state_source: StateSource | None = None
    layers: _Layers | None = None
    state_size: _StateSize | None = None
    replicate: Annotated[int, Field(ge=0, lt=2**31)] = 0


class Space(StrictModel):
    """One table ``[space]``: the values of each parameter, less the excluded combinations.

    Keys that are no field are options of users' cells; :class:`Grid` checks them.
    """

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, list[ParamValue]]

    input_gate: list[bool] = [False, True]
    forget_gate: list[bool] = [False, True]
    output_gate: list[bool] = [False, True]
    state_gate: list[bool] = [False, True]
    residual: list[bool] = [False, True]
    state_source: list[StateSource] = list(STATE_SOURCES)
    layers: list[_Layers]
    state_size: list[_StateSize]
    cell: list[str] | None = None
    training: TrainingSpace = TrainingSpace()
    exclude: list[dict[str, ParamValue]] = []

    @model_validator(mode="before")
    @classmethod
    def _move_bptt_steps(cls, raw: Any) -> Any:
        """Read ``bptt_steps`` in ``[space]`` as in ``[space.training]``."""
        if not isinstance(raw, Mapping) or BPTT_STEPS not in raw:
            return raw
        table = {name: value for name, value in raw.items() if name != BPTT_STEPS}
        if raw[BPTT_STEPS] is None:  # stored by an earlier version
            return table
        training = raw.get("training", {})
        if isinstance(training, Mapping):
            if training.get(BPTT_STEPS) is not None:
                raise ValueError(
                    "has bptt_steps twice: expected it in space.training, and not in space as well"
                )
            table["training"] = {**training, BPTT_STEPS: raw[BPTT_STEPS]}
        return table

    @field_validator(*GATED_PARAMS, CELL)
    @classmethod
    def _check_values(cls, values: list[ParamValue] | None) -> list[ParamValue] | None:
        return values if values is None else check_values(values)

    @field_validator(CELL)
    @classmethod
    def _check_cells(cls, cells: list[str] | None) -> list[str] | None:
        for cell in cells or ():
            cell_name(cell)
        return cells

    @model_validator(mode="after")
    def _check_options(self) -> "Space":
        for name, values in self.__pydantic_extra__.items():
            try:
                check_values(values)
            except ValueError as error:
                raise ValueError(f"{name} is {values}: {error}") from error
        return self

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options of users' cells."""
        return tuple(self.__pydantic_extra__)

    @property
    def cell_names(self) -> tuple[str, ...]:
        """Names of the cells."""
        return tuple(map(cell_name, self.cell or (GATED_CELL,)))

    @property
    def varied_switches(self) -> list[str]:
        """Switches whose values differ from the default."""
        # A stored config lists every switch, at its default where the study does not vary it.
        return [name for name in SWITCHES if getattr(self, name) != _default(name)]

    def values(self, parameter: str) -> Sequence[ParamValue] | None:
        """Return a parameter's values in the order of the file; None if the table has none."""
        if parameter == CELL:
            return None if self.cell is None else self.cell_names
        if parameter in TRAINING_PARAMS:
            return getattr(self.training, parameter)  # type: ignore[no-any-return]
        if parameter in self.__pydantic_extra__:
            return self.__pydantic_extra__[parameter]
        return getattr(self, parameter, None)


class Grid:
    """The combinations of all tables ``[space]`` of a study, each once.

    A combination lacks the parameters that do not apply to it: switches belong to the gated cell,
    options to the users' cells that have them, some training settings to some optimizers. Where
    there are several tables, a parameter that one of them varies has the study's value, or the
    default, in the others.

    Args:
        spaces: the tables.
        training: training settings of the study.
        cells: users' cells by name.

    Raises:
        ValueError: if the tables contradict each other, the training settings or the cells.
    """

    def __init__(
        self,
        spaces: Sequence[Space],
        training: TrainingSettings,
        cells: Mapping[str, CellRecord],
    ) -> None:
        self._spaces = spaces
        self._training = training
        self._cells = cells
        self._has_cell = any(space.cell is not None for space in spaces)
        self._varied = {
            name
            for space in spaces
            for name in (*TRAINING_PARAMS, *space.options)
            if space.values(name) is not None
        }
        if not spaces:
            raise ValueError("has no table: expected at least one [space]")
        for space in spaces:
            self._check_cells(space)
            self._check_optimizer(space)
        size = sum(
            math.prod(map(len, self._values(space, cell).values()))
            for space in spaces
            for cell in space.cell_names
        )
        if size > MAX_COMBINATIONS:
            raise ValueError(
                f"has {size:,} combinations: expected at most {MAX_COMBINATIONS:,}, including "
                "excluded ones"
            )
        for space in spaces:
            self._check_exclusions(space)
        self._check_each_table()

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the grid's parameters."""
        return tuple(self.search_space)

    @property
    def search_space(self) -> SearchSpace:
        """Each parameter's values, in the order of the file."""
        values: dict[str, dict[ParamValue, None]] = {}
        for space in self._spaces:
            for cell in space.cell_names:
                for name, each in self._values(space, cell).items():
                    values.setdefault(name, {}).update(dict.fromkeys(each))
        return {name: list(values[name]) for name in param_order(values)}

    def values(self, parameter: str) -> Sequence[ParamValue]:
        """Return a parameter's values in the order of the file."""
        return self.search_space[parameter]

    def count(self) -> int:
        """Count the combinations that are not excluded."""
        return sum(1 for _ in self.combinations())

    def combinations(self) -> Iterator[Params]:
        """Yield the combinations that are not excluded, the last parameter varying fastest."""
        seen: set[frozenset[tuple[str, ParamValue]]] = set()
        for space in self._spaces:
            for params in self._space_combinations(space):
                key = frozenset(params.items())
                if key not in seen:
                    seen.add(key)
                    yield params

    def _space_combinations(self, space: Space) -> Iterator[Params]:
        """Yield the combinations of one table; some may occur twice."""
        for cell in space.cell_names:
            values = self._values(space, cell)
            for combination in itertools.product(*values.values()):
                params = dict(zip(values, combination, strict=True))
                optimizer = params.get("optimizer", self._training.optimizer)
                params = {
                    name: value
                    for name, value in params.items()
                    if uses_setting(str(optimizer), name)
                }
                if not any(exclusion.items() <= params.items() for exclusion in space.exclude):
                    yield params

    def _values(self, space: Space, cell: str) -> dict[str, Sequence[ParamValue]]:
        """Return the values of the parameters that one cell of a table has."""
        values: dict[str, Sequence[ParamValue]] = {CELL: [cell]} if self._has_cell else {}
        for name in SWITCHES if cell == GATED_CELL else ():
            values[name] = getattr(space, name)
        for name, option in self._cells[cell].options.items() if cell in self._cells else ():
            if name in self._varied:
                given = space.values(name)
                values[name] = [option.default] if given is None else option.convert(given)
        values |= {"layers": space.layers, "state_size": space.state_size}
        for name in TRAINING_PARAMS:
            if name in self._varied:
                values[name] = space.values(name) or [getattr(self._training, name)]
        return values

    def _check_cells(self, space: Space) -> None:
        for spec in space.cell or ():
            name = cell_name(spec)
            if spec not in BUILT_IN_CELLS and name not in self._cells:
                raise ValueError(f"has the cell {spec!r}, which is not loaded")
            if name in self._cells and self._cells[name].spec != spec:
                raise ValueError(
                    f"has two cells named {name}, {self._cells[name].spec!r} and {spec!r}: "
                    "expected distinct class names"
                )
        if GATED_CELL not in space.cell_names and space.varied_switches:
            raise ValueError(
                f"has {', '.join(space.varied_switches)} and no gated cell: expected "
                '"gated" in cell, or no switches'
            )
        own = [self._cells[name] for name in space.cell_names if name in self._cells]
        for name in space.options:
            known = [cell for cell in own if name in cell.options]
            if not known:
                fields = [field for field in Space.model_fields if field not in space.options]
                options = [option for cell in own for option in cell.options]
                expected = ", ".join(dict.fromkeys([*fields, *options]))
                raise ValueError(f"has the unknown key {name}: expected one of {expected}")
            for cell in known:
                cell.options[name].check(f"{cell_name(cell.spec)} has {name}", space.values(name))

    def _check_optimizer(self, space: Space) -> None:
        optimizers = space.values("optimizer") or [self._training.optimizer]
        for name in TRAINING_PARAMS:
            if space.values(name) is None or any(
                uses_setting(str(optimizer), name) for optimizer in optimizers
            ):
                continue
            using = [optimizer for optimizer in OPTIMIZERS if uses_setting(optimizer, name)]
            raise ValueError(
                f"has training.{name}, which {' and '.join(map(str, optimizers))} does not use: "
                f"expected the optimizer {' or '.join(using)}"
            )

    def _check_exclusions(self, space: Space) -> None:
        values: dict[str, list[ParamValue]] = {}
        for cell in space.cell_names:
            for name, each in self._values(space, cell).items():
                values.setdefault(name, []).extend(each)
        for exclusion in space.exclude:
            if not exclusion:
                raise ValueError("exclude has {}, which excludes every combination")
            for name, value in exclusion.items():
                if name not in values:
                    expected = ", ".join(param_order(values))
                    raise ValueError(f"exclude names {name!r}: expected one of {expected}")
                if not _contains_exact(values[name], value):
                    expected = ", ".join(map(repr, dict.fromkeys(values[name])))
                    raise ValueError(f"exclude has {name} = {value!r}: expected one of {expected}")

    def _check_each_table(self) -> None:
        for space in self._spaces:
            if next(self._space_combinations(space), None) is None:
                raise ValueError("exclude leaves no combination: expected at least one")


def param_order(names: Iterable[str]) -> list[str]:
    """Return names of parameters in the order in which they are listed.

    Options of users' cells stand between the switches and ``layers``, in the given order.
    """
    given = list(dict.fromkeys(names))
    last = ("layers", "state_size", *TRAINING_PARAMS, REPLICATE)
    first = (CELL, *SWITCHES)
    options = [name for name in given if name not in first and name not in last]
    return [name for name in (*first, *options, *last) if name in given]


def observed_search_space(trials: Iterable[Mapping[str, Any]]) -> SearchSpace:
    """Return the values that occur in trials' parameters, each sorted."""
    values: dict[str, set[ParamValue]] = {}
    for params in trials:
        for name, value in params.items():
            values.setdefault(name, set()).add(value)
    return {name: sorted(values[name], key=_sort_key) for name in param_order(values)}


def distributions(space: Mapping[str, Sequence[ParamValue]]) -> dict[str, CategoricalDistribution]:
    """Return the Optuna distributions of a search space."""
    return {name: CategoricalDistribution(tuple(values)) for name, values in space.items()}


def _sort_key(value: ParamValue) -> tuple[int, ParamValue]:
    return (0, STATE_SOURCES.index(value)) if value in STATE_SOURCES else (1, value)


def _default(parameter: str) -> Any:
    return Space.model_fields[parameter].default


def _contains_exact(values: Sequence[ParamValue], value: ParamValue) -> bool:
    """Return whether a value is among others; ``True`` is not 1."""
    return any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in values
    )
