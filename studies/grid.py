"""The grid of a study: the combinations of all its tables ``[space]``."""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

from rnn.config import OPTIMIZERS, ParamValue
from studies.records import CellOption, CellRecord, TaskRecord, cell_name
from studies.space import (
    BPTT_STEPS,
    BUILT_IN_CELLS,
    CELL,
    GATED_CELL,
    SWITCHES,
    Params,
    SearchSpace,
    Space,
    contains_exact,
    explain_key,
    param_order,
)
from studies.text import expect_one_of
from studies.training import (
    SEQUENCE,
    TRAINING_PARAMS,
    UPDATE_EVERY,
    TrainingSettings,
    uses_setting,
)

MAX_COMBINATIONS = 1_000_000
"""Maximum number of combinations of a grid, including excluded ones."""


class Grid:
    """The combinations of all tables ``[space]`` of a study, each once.

    A combination lacks the parameters that do not apply to it: switches belong to the gated cell,
    options to the users' cells that have them, some training settings to some optimizers, and
    ``update_every`` to gradients that do not go back to the start of a sequence. Where there are
    several tables, a parameter that one of them varies has the study's value, or the default, in
    the others.

    Args:
        spaces: the tables.
        training: training settings of the study.
        cells: users' cells by name.
        task: record of the task; None for a text.

    Raises:
        ValueError: if the tables contradict each other, the training settings, the cells or the
            task.
    """

    def __init__(
        self,
        spaces: Sequence[Space],
        training: TrainingSettings,
        cells: Mapping[str, CellRecord],
        task: TaskRecord | None = None,
    ) -> None:
        self._spaces = spaces
        self._training = training
        self._cells = cells
        self._task = task
        self._has_cell = any(space.cell is not None for space in spaces)
        self._varied = {
            name
            for space in spaces
            for name in (*TRAINING_PARAMS, *space.options, *space.task)
            if space.values(name) is not None
        }
        if not spaces:
            raise ValueError("space has no table: expected at least one [space]")
        for table, space in self._tables():
            self._check_cells(table, space)
            self._check_options(table, space)
            self._check_task(table, space)
            self._check_optimizer(table, space)
        self._check_training()
        self._check_types()
        self._check_size()
        for table, space in self._tables():
            self._check_exclusions(table, space)

    def _tables(self) -> Iterator[tuple[str, Space]]:
        """Yield each table with its name in messages."""
        for number, space in enumerate(self._spaces, 1):
            yield "space" if len(self._spaces) == 1 else f"space {number}", space

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

    def project(self, names: Collection[str]) -> list[Params]:
        """List the combinations of some parameters that occur, each once.

        Like :meth:`find_constant`, it takes no longer for a large grid than for a small one.
        """
        values = self._representatives(())
        values |= {name: set(each) for name, each in self.search_space.items() if name in names}
        found: dict[frozenset[tuple[str, ParamValue]], Params] = {}
        for space in self._spaces:
            for params in self._space_combinations(space, values):
                chosen = {name: value for name, value in params.items() if name in names}
                found.setdefault(frozenset(chosen.items()), chosen)
        return list(found.values())

    def find_constant(self, names: Collection[str]) -> list[str]:
        """List those of some parameters that have one value wherever all other parameters agree.

        A combination that lacks a parameter has no value of it. The answer for a large grid takes
        no longer than for a small one: of the values that no exclusion names and that occur in the
        same tables and cells, a few represent all.
        """
        constant = [name for name in self.parameters if name in names]
        values = self._representatives(names)
        found: dict[frozenset[tuple[str, ParamValue]], Params] = {}
        for space in self._spaces:
            for params in self._space_combinations(space, values):
                others = frozenset(item for item in params.items() if item[0] not in names)
                first = found.setdefault(others, {})
                for name in [name for name in constant if name in params]:
                    if first.setdefault(name, params[name]) != params[name]:
                        constant.remove(name)
                if not constant:
                    return []
        return constant

    def _representatives(self, names: Collection[str]) -> dict[str, set[ParamValue]]:
        """Return values of each parameter that represent all of its values.

        Exchanging two values everywhere in the grid changes nothing if no exclusion names them and
        they occur in the same tables and cells. Of such values, two represent a parameter in
        ``names``, and one any other.
        """
        blocks = [
            {name: set(values) for name, values in self._values(space, cell).items()}
            for space in self._spaces
            for cell in space.cell_names
        ]
        named = {item for space in self._spaces for each in space.exclude for item in each.items()}
        kept: dict[str, set[ParamValue]] = {}
        for parameter, values in self.search_space.items():
            seen: dict[tuple[object, ...], int] = {}
            for value in values:
                # An optimizer and "sequence" decide which parameters there are.
                is_unique = parameter == "optimizer" or value == SEQUENCE
                is_unique |= (parameter, value) in named
                where = (value in block.get(parameter, ()) for block in blocks)
                kind = ((value,) if is_unique else None, *where)
                seen[kind] = seen.get(kind, 0) + 1
                if seen[kind] <= (2 if parameter in names else 1):
                    kept.setdefault(parameter, set()).add(value)
        return kept

    def _space_combinations(
        self, space: Space, given: Mapping[str, Collection[ParamValue]] | None = None
    ) -> Iterator[Params]:
        """Yield the combinations of one table, of the given values only; some may occur twice."""
        for cell in space.cell_names:
            values = self._values(space, cell)
            if given is not None:
                values = {
                    name: [value for value in each if value in given[name]]
                    for name, each in values.items()
                }
            for combination in itertools.product(*values.values()):
                params = dict(zip(values, combination, strict=True))
                optimizer = str(params.get("optimizer", self._training.optimizer))
                window = params.get(BPTT_STEPS, self._training.bptt_steps)
                params = {
                    name: value
                    for name, value in params.items()
                    if uses_setting(optimizer, name, window)
                }
                if not any(exclusion.items() <= params.items() for exclusion in space.exclude):
                    yield params

    def _own_options(self, cell: str) -> dict[str, CellOption]:
        """Return the options of a user's cell that the grid varies; {} for a built-in cell."""
        options = self._cells[cell].options if cell in self._cells else {}
        return {name: option for name, option in options.items() if name in self._varied}

    def _values(self, space: Space, cell: str) -> dict[str, Sequence[ParamValue]]:
        """Return the values of the parameters that one cell of a table has."""
        values: dict[str, Sequence[ParamValue]] = {CELL: [cell]} if self._has_cell else {}
        for name in SWITCHES if cell == GATED_CELL else ():
            values[name] = getattr(space, name)
        for name, option in self._own_options(cell).items():
            given = space.values(name)
            values[name] = [option.default] if given is None else list(map(option.convert, given))
        if self._task is not None:
            for name, option in self._task.options.items():
                if name in self._varied:
                    given = space.task.get(name, [self._task.value(name)])
                    values[name] = list(map(option.convert, given))
        values |= {"layers": space.layers, "state_size": space.state_size}
        for name in TRAINING_PARAMS:
            if name in self._varied:
                values[name] = space.values(name) or [getattr(self._training, name)]
        return values

    def _check_cells(self, table: str, space: Space) -> None:
        for spec in space.cell or ():
            name = cell_name(spec)
            if spec not in BUILT_IN_CELLS and name not in self._cells:
                raise ValueError(f"{table} has the cell {spec!r}, which is not loaded")
            if name in self._cells and self._cells[name].spec != spec:
                raise ValueError(
                    f"{table} has the cell {spec!r}, but {self._cells[name].spec!r} is named "
                    f"{name} as well: expected distinct class names"
                )
        if GATED_CELL not in space.cell_names and space.varied_switches:
            raise ValueError(
                f"{table} has {', '.join(space.varied_switches)} and no gated cell: expected "
                '"gated" in cell, or no switches'
            )

    def _check_options(self, table: str, space: Space) -> None:
        own = [self._cells[name] for name in space.cell_names if name in self._cells]
        for name in space.options:
            known = [cell for cell in own if name in cell.options]
            if not known:
                if name in TRAINING_PARAMS:
                    raise ValueError(f"{table} has {name}: expected it in [space.training]")
                if self._task and name in self._task.options:
                    raise ValueError(f"{table} has {name}: expected it in [space.task]")
                options = [option for cell in own for option in cell.options]
                expected = explain_key(name, dict.fromkeys([*Space.model_fields, *options]))
                raise ValueError(f"{table} has the unknown key {name}: {expected}")
            values = space.values(name) or ()
            for cell in known:
                subject = f"{table}: {cell_name(cell.spec)} has {name}"
                cell.options[name].check(subject, values)
                if len(set(map(cell.options[name].convert, values))) < len(values):
                    raise ValueError(f"{subject} = {values}: expected distinct values")

    def _check_task(self, table: str, space: Space) -> None:
        for name, values in space.task.items():
            if self._task is None or name not in self._task.options:
                task = self._task.name if self._task else "text"
                known = self._task.options if self._task else ()
                expected = expect_one_of(known, name) if known else "it has none"
                raise ValueError(
                    f"{table} has the option task.{name} of the task {task}: {expected}"
                )
            option = self._task.options[name]
            option.check(f"{table}: task {self._task.name} has {name}", values)
            if len(set(map(option.convert, values))) < len(values):
                raise ValueError(f"{table} has task.{name} = {values}: expected distinct values")

    def _check_types(self) -> None:
        """Require one type of an option's values in all cells: equal values are one choice."""
        found: dict[str, tuple[str, str]] = {}
        for space in self._spaces:
            for cell in space.cell_names:
                for name, option in self._own_options(cell).items():
                    first, kind = found.setdefault(name, (cell, option.type))
                    if kind != option.type:
                        raise ValueError(
                            f"space varies {name}, of type {kind} in {first} and {option.type} in "
                            f"{cell}: expected one type, or a study for each"
                        )

    def _optimizers(self, space: Space) -> list[str]:
        return [str(name) for name in space.values("optimizer") or [self._training.optimizer]]

    def _windows(self, space: Space) -> Sequence[ParamValue]:
        return space.values(BPTT_STEPS) or [self._training.bptt_steps]

    def _check_optimizer(self, table: str, space: Space) -> None:
        for name in TRAINING_PARAMS:
            if space.values(name) is not None:
                subject = f"{table} has training.{name}"
                _require_use(subject, name, self._optimizers(space), self._windows(space))

    def _check_training(self) -> None:
        optimizers = dict.fromkeys(
            name for space in self._spaces for name in self._optimizers(space)
        )
        windows = [window for space in self._spaces for window in self._windows(space)]
        for name in TRAINING_PARAMS:
            value = getattr(self._training, name)
            if value != TrainingSettings.model_fields[name].default:
                _require_use(f"training.{name} is {value}", name, list(optimizers), windows)

    def _check_size(self) -> None:
        size = sum(
            math.prod(map(len, self._values(space, cell).values()))
            for space in self._spaces
            for cell in space.cell_names
        )
        if size > MAX_COMBINATIONS:
            raise ValueError(
                f"space has {size:,} combinations: expected at most {MAX_COMBINATIONS:,}, "
                "including excluded ones"
            )

    def _check_exclusions(self, table: str, space: Space) -> None:
        values: dict[str, list[ParamValue]] = {}
        for cell in space.cell_names:
            for name, each in self._values(space, cell).items():
                values.setdefault(name, []).extend(each)
        for exclusion in space.exclude:
            if not exclusion:
                raise ValueError(f"{table} has exclude = {{}}, which excludes every combination")
            for name, value in exclusion.items():
                if name not in values:
                    expected = expect_one_of(param_order(values), name)
                    raise ValueError(f"{table} excludes {name!r}: {expected}")
                if not contains_exact(values[name], value):
                    expected = ", ".join(map(repr, dict.fromkeys(values[name])))
                    raise ValueError(
                        f"{table} excludes {name} = {value!r}: expected one of {expected}"
                    )
        if next(self._space_combinations(space), None) is None:
            raise ValueError(
                f"{table} has no combination that exclude leaves: expected at least one"
            )


def _require_use(
    subject: str, setting: str, optimizers: Sequence[str], windows: Sequence[ParamValue]
) -> None:
    """Require that a training setting is used with some optimizers and values of ``bptt_steps``."""
    if any(uses_setting(*each) for each in itertools.product(optimizers, [setting], windows)):
        return
    if setting == UPDATE_EVERY:
        raise ValueError(
            f'{subject}, which bptt_steps = "{SEQUENCE}" does not use: expected a number of '
            f"bptt_steps, or no {setting}"
        )
    using = [optimizer for optimizer in OPTIMIZERS if uses_setting(optimizer, setting)]
    verb = "does" if len(optimizers) == 1 else "do"
    raise ValueError(
        f"{subject}, which {' and '.join(optimizers)} {verb} not use: expected the optimizer "
        f"{' or '.join(using)}"
    )
