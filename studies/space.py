"""Tables ``[space]`` and ``[refinement]`` of a study file, and the parameters of its trials."""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from optuna.distributions import CategoricalDistribution
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from rnn.config import (
    BUILT_IN_CELLS,
    GATED_CELL,
    GATED_OPTIONS,
    LATER_SWITCHES,
    STATE_SOURCES,
    Block,
    GatedOptions,
    NetworkConfig,
    ParamValue,
)
from studies.messages import expect_one_of
from studies.records import (
    DEFAULT_MARGIN,
    NamedTask,
    Options,
    StrictModel,
    TaskEntry,
    first_message,
    of_task,
    unit,
    with_bounds,
)
from studies.study_settings import TRAINING_PARAMS, UPDATE_EVERY, TrainingSettings

Params = dict[str, ParamValue]
"""One value for each parameter that a trial has."""

SearchSpace = dict[str, list[ParamValue]]
"""Each parameter's values, in the order of Optuna's choices."""

TASK = "task"
"""Parameter: name of the task, in studies of several tasks."""

CELL = "cell"
"""Parameter: name of the cell, in studies of other cells than the gated one."""

SWITCHES = tuple(name for name in GATED_OPTIONS if name != "gate_inputs")
"""Parameters that only gated networks have."""

BLOCK = "block"
"""Parameter: what a layer is, in studies that vary it or state another one than the default."""

GATED_PARAMS = (*SWITCHES, "layers", "state_size")
"""Parameters of a gated network."""

BASELINE_PARAMS = (CELL, "layers", "state_size")
"""Parameters of a network of any other cell: ``cell``, ``layers`` and ``state_size``; those of a
user's cell have its options as well."""

BPTT_STEPS = "bptt_steps"
"""Parameter: number of steps that a gradient goes back, or ``"sequence"``, in studies that vary
it."""

REPLICATE = "replicate"
"""Parameter: number of the replicate, in studies that have replicates; a trial without it is
replicate 0."""

BUILT_IN_PARAMS = (
    TASK, CELL, *SWITCHES, BLOCK, "layers", "state_size", *TRAINING_PARAMS, REPLICATE
)  # fmt: skip
"""All parameters in the order in which they are listed, but for the options of users' cells and of
the task."""

COST_PARAMS = (*BASELINE_PARAMS, BLOCK, "batch_size", "sequence_length", BPTT_STEPS, UPDATE_EVERY)
"""Parameters that determine most of the cost of a training step."""

_TYPES: dict[str, Any] = {
    TASK: str,
    CELL: str,
    **{
        field.name: with_bounds(field.type)
        for field in (*fields(GatedOptions), *fields(NetworkConfig))
        if field.name in (*GATED_PARAMS, BLOCK)
    },
    **{name: TrainingSettings.model_fields[name].rebuild_annotation() for name in TRAINING_PARAMS},
    REPLICATE: Annotated[int, Field(ge=0, lt=2**31)],
}
"""Type of each parameter, with its bounds; those of options, their records have."""

_T = TypeVar("_T")


def _require_distinct(values: list[_T]) -> list[_T]:
    if not values:
        raise ValueError("expected at least one value")
    if len({(type(value), value) for value in values}) < len(values):
        raise ValueError("expected distinct values")
    return values


Values = Annotated[list[_T], AfterValidator(_require_distinct)]
"""Distinct values of a parameter, at least one."""

if TYPE_CHECKING:
    _NetworkValues = StrictModel

    class TrainingSpace(StrictModel):
        """Values of the training settings that a grid varies; None for the study's value."""

else:  # a field for each parameter; a switch that studies may lack varies only where it is named
    _defaults = GATED_OPTIONS | {name: (value,) for name, value in LATER_SWITCHES.items()}
    _NetworkValues = create_model(
        "_NetworkValues",
        __base__=StrictModel,
        **{
            name: (Values[_TYPES[name]], list(_defaults[name]) if name in SWITCHES else ...)
            for name in GATED_PARAMS
        },
    )
    TrainingSpace = create_model(
        "TrainingSpace",
        __base__=StrictModel,
        **{name: (Values[_TYPES[name]] | None, None) for name in TRAINING_PARAMS},
    )


def cell_name(spec: str) -> str:
    """Return the name of a cell: that of a built-in cell, or of a user's class.

    Raises:
        ValueError: if the cell is neither.
    """
    if spec in BUILT_IN_CELLS:
        return spec
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name.isidentifier():
        raise ValueError(
            f"{spec[:80]!r} is no cell: expected {', '.join(BUILT_IN_CELLS)}, or the class of a "
            "cell of your own, as in my_cells.py:MinGRU"
        )
    if name in BUILT_IN_CELLS:
        raise ValueError(f"{spec[:80]!r} has the name of a built-in cell: rename the class")
    return name


_CellSpec = Annotated[str, AfterValidator(lambda spec: cell_name(spec) and spec)]


def _require_list_or_table(raw: Any) -> Any:
    if isinstance(raw, list | dict):
        return raw
    raise ValueError("expected a list of tasks, or a table of options; one task is task.source")


_TaskAxis = Annotated[
    Annotated[dict[str, Values[ParamValue]], Tag("[options]")]
    | Annotated[Values[NamedTask], Tag("[axis]")],
    Discriminator(lambda raw: "[axis]" if isinstance(raw, list) else "[options]"),
    BeforeValidator(_require_list_or_table),
]


class Space(_NetworkValues):
    """One table ``[space]``: the values of each parameter, less the excluded combinations.

    Switches and sizes are those of :class:`rnn.config.GatedOptions`. Keys that are no field are
    options of users' cells; :class:`Grid` checks them.
    """

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, Values[ParamValue]]

    cell: Values[_CellSpec] | None = None
    """[Cells](#cells): `gated`, `elman`, `gru`, `lstm`, or your own as `FILE.py:Class`; by default
    the gated cell alone."""
    block: Values[Block] | None = None
    """What a layer is: `plain`, its cell, which is the default, or a [`residual`
    block](cells.md#blocks)."""
    training: TrainingSpace = TrainingSpace()
    task: _TaskAxis = {}
    """A table: values of [options of the task](#task). A list: [several tasks](#several-tasks)."""
    exclude: list[dict[str, ParamValue]] = []
    """Combinations to leave out, as in `[{ state_size = 32, residual = false }]`."""
    replicates: PositiveInt = 1
    """[Runs of each architecture](#replicates), each with other initial weights and another order
    of the data."""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options of users' cells."""
        return tuple(self.__pydantic_extra__)

    @property
    def cell_names(self) -> tuple[str, ...]:
        """Names of the cells."""
        return tuple(map(cell_name, self.cell or (GATED_CELL,)))

    @property
    def tasks(self) -> list[TaskEntry]:
        """Several tasks; empty for one."""
        return self.task if isinstance(self.task, list) else []

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, of several ones."""
        return tuple(task.name for task in self.tasks)

    @property
    def task_options(self) -> dict[str, list[ParamValue]]:
        """Values of the options of the task, of one only."""
        return {} if isinstance(self.task, list) else self.task

    @property
    def varied_switches(self) -> list[str]:
        """Switches whose values differ from the default."""
        # A stored config lists every switch, at its default where the study does not vary it.
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return [name for name in SWITCHES if getattr(self, name) != defaults[name]]

    def values(self, parameter: str) -> Sequence[ParamValue] | None:
        """Return a parameter's values in the order of the file; None if the table has none."""
        if parameter == TASK:
            return self.task_names or None
        if parameter == CELL:
            return None if self.cell is None else self.cell_names
        if parameter in TRAINING_PARAMS:
            return getattr(self.training, parameter)  # type: ignore[no-any-return]
        if parameter in (*GATED_PARAMS, BLOCK):
            return getattr(self, parameter)  # type: ignore[no-any-return]
        return {**self.__pydantic_extra__, **self.task_options}.get(parameter)

    def at_task(self, name: str) -> "Space | None":
        """Return the table of one of its tasks alone; None without a combination of it."""
        if name not in self.task_names:
            return None
        exclude = [
            {key: value for key, value in exclusion.items() if key != TASK}
            for exclusion in self.exclude
            if exclusion.get(TASK, name) == name
        ]
        return self.model_copy(update={"task": {}, "exclude": exclude}) if all(exclude) else None


class LoopTable(dict[str, Any]):
    """A raw table ``[space]`` of a study with a loop, which has any parameters."""


class LoopSpace(StrictModel):
    """One table ``[space]`` of a study with a loop: the values of each parameter."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, Values[ParamValue]]

    exclude: list[dict[str, ParamValue]] = []
    replicates: PositiveInt = 1

    @property
    def choices(self) -> dict[str, Sequence[ParamValue]]:
        """Values of each parameter, in the order of the file."""
        return dict(self.__pydantic_extra__)

    def values(self, parameter: str) -> Sequence[ParamValue] | None:
        """Return a parameter's values in the order of the file; None if the table has none."""
        return self.__pydantic_extra__.get(parameter)

    @model_validator(mode="after")
    def _check_values(self) -> "LoopSpace":
        if not self.choices:
            raise ValueError("expected at least one parameter with a list of values")
        for name, values in self.choices.items():
            if name in (REPLICATE, "seed", "seeds"):
                raise ValueError(f"has {name}: {explain_key(name, ())}")
            if len(set(values)) < len(values):  # Optuna takes True for 1, and 1 for 1.0
                raise ValueError(f"{name} = {values}: expected distinct values")
        return self


SpaceTable = Annotated[
    Annotated[Space, Tag("[network]")] | Annotated[LoopSpace, Tag("[loop]")],
    Discriminator(lambda raw: "[loop]" if isinstance(raw, LoopTable | LoopSpace) else "[network]"),
]


def explain_key(key: str, known: Iterable[str], others: Iterable[str] = ()) -> str:
    """Return what was expected in place of an unknown key of a study file's table.

    Args:
        key: the key, without its table.
        known: keys that the table has.
        others: dotted keys of all tables.
    """
    names = list(known)
    if key in ("replicate", "replicates", "seed", "seeds"):
        return (
            "several runs of each architecture are replicates = 3 in [space] or [refinement]; "
            "another seed for all runs is seed = 1 above the tables"
        )
    for other in others:
        if other.endswith(f".{key}"):
            return f"did you mean {other!r}? expected one of {', '.join(names)}"
    return expect_one_of(names, key)


def convert_value(parameter: str, value: ParamValue) -> ParamValue:
    """Return a value of a parameter as a grid has it.

    Raises:
        ValidationError: if no grid can have this value.
    """
    checked: ParamValue = _adapter(parameter if parameter in _TYPES else "").validate_python(value)
    return checked


@cache
def _adapter(parameter: str) -> TypeAdapter[Any]:
    return TypeAdapter(_TYPES.get(parameter, ParamValue), config=StrictModel.model_config)


def to_grid_value(parameter: str, value: ParamValue) -> ParamValue:
    """Return a value as a grid has it, 4 for 4.0, or as it is if none can have it."""
    whole = [int(value)] if isinstance(value, float) and value.is_integer() else []
    for candidate in (value, *whole):
        with suppress(ValidationError):  # explain_value says which
            return convert_value(parameter, candidate)
    return value


ParamValues = Annotated[
    dict[str, ParamValue],
    AfterValidator(lambda values: {name: to_grid_value(name, values[name]) for name in values}),
]
"""A value of each of some parameters."""


def explain_value(parameter: str, value: ParamValue, options: Options) -> str:
    """Return what a parameter is expected to be if it can never have a value; "" if it can."""
    if known := options.get(parameter):
        fits = any(option.fits(value) for option in known)
        return "" if fits else f"expected {known[0].description}"
    try:
        convert_value(parameter, value)
    except ValidationError as error:
        return first_message(error)
    return ""


def replicate_of(params: Mapping[str, Any]) -> int:
    """Return the number of the replicate of a trial."""
    return int(params.get(REPLICATE, 0))


def architecture_key(params: Mapping[str, Any], without: Collection[str] = ()) -> Hashable:
    """Return what the runs of an architecture share: parameters but the replicate and some more."""
    left_out = {*without, REPLICATE}
    return frozenset(item for item in params.items() if item[0] not in left_out)


def run_key(params: Mapping[str, Any]) -> Hashable:
    """Return what identifies a trial by its parameters, with or without a replicate 0."""
    return architecture_key(params), replicate_of(params)


def complete_params(params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a stored trial with the switches that its study was without: off."""
    is_gated = params.get(CELL, GATED_CELL) == GATED_CELL
    if is_gated and all(name in params or name in LATER_SWITCHES for name in GATED_PARAMS):
        return {**LATER_SWITCHES, **params}
    return params


def param_order(names: Iterable[str]) -> list[str]:
    """Return names of parameters in the order in which they are listed.

    Options of users' cells and of the task stand between the switches and ``block``, in the given
    order.
    """
    given = list(dict.fromkeys(names))
    options = [name for name in given if name not in BUILT_IN_PARAMS]
    place = BUILT_IN_PARAMS.index(BLOCK)
    ordered = (*BUILT_IN_PARAMS[:place], *options, *BUILT_IN_PARAMS[place:])
    return [name for name in ordered if name in given]


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


def contains_exact(values: Sequence[ParamValue], value: ParamValue) -> bool:
    """Return whether a value is among others; ``True`` is not 1."""
    return any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in values
    )


def _sort_key(value: ParamValue) -> tuple[int, ParamValue]:
    if isinstance(value, str):  # the longest window of a gradient comes after all numbers
        return (0, STATE_SOURCES.index(value)) if value in STATE_SOURCES else (2, value)
    return 1, value


# ------------------------------------------------------------------ refinements


class Refinement(StrictModel):
    """How a study's trials derive from another study's results."""

    source: str
    """Name of the study to derive from."""
    trial: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Number of one trial to run again, alone, with the same initial weights and data; `--trial`
    sets it."""
    top: Annotated[float, Field(gt=0, lt=1)] | PositiveInt = 0.1
    """Best architectures to derive from: how many, or which fraction of all."""
    variants: list[ParamValues] = [{}]
    """Changes of parameters, each applied to each of the best; `{}` changes nothing. A list of
    values stands for a variant with each of them."""
    replicates: PositiveInt = 1
    """Number of runs of each architecture, with other initial weights and another order of the
    data."""
    rank: Literal["task", "mean"] = "task"
    """With [several tasks](#several-tasks): derive from the best of each `task`, or in all tasks
    from the architectures of the best `mean` rank over the tasks."""
    margin: Annotated[PositiveFloat | dict[str, PositiveFloat], unit("bit/byte or nat/token")] = (
        DEFAULT_MARGIN
    )
    """With replicates: largest difference to the best that counts as none, or a table of one for
    each task. Required where the loss has no unit."""

    def at_task(self, name: str) -> "Refinement":
        """Return the refinement with its margin in one of several tasks."""
        return self.model_copy(update={"margin": of_task(self.margin, name, DEFAULT_MARGIN)})

    @property
    def has_replicates(self) -> bool:
        """Whether results are run more than once."""
        return self.replicates > 1

    @model_validator(mode="after")
    def _check_trial(self) -> "Refinement":
        if self.trial is not None and (self.variants != [{}] or self.has_replicates):
            raise ValueError("trial runs one trial as it was: expected no variants or replicates")
        return self

    @field_validator("variants", mode="before")
    @classmethod
    def _expand_lists(cls, variants: Any) -> Any:
        if not (isinstance(variants, list) and all(isinstance(v, dict) for v in variants)):
            return variants  # which is refused
        expanded = []
        for variant in variants:
            # An empty list is no value either, and refused as one.
            lists = [v if isinstance(v, list) and v else [v] for v in variant.values()]
            expanded += [dict(zip(variant, values, strict=True)) for values in product(*lists)]
        return expanded

    @field_validator("variants")
    @classmethod
    def _check_variants(cls, variants: list[dict[str, ParamValue]]) -> list[dict[str, ParamValue]]:
        if not variants:
            raise ValueError("expected at least one variant ({} is the unchanged architecture)")
        return variants
