"""The grid of a study: the combinations of all its tables ``[space]``."""

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from rnn.config import BLOCKS, BUILT_IN_CELLS, GATED_CELL, OPTIMIZERS, ParamValue
from studies.messages import expect_one_of
from studies.records import CellRecord, TaskRecord
from studies.space import (
    BLOCK,
    BPTT_STEPS,
    CELL,
    REPLICATE,
    SWITCHES,
    TASK,
    LoopSpace,
    Params,
    SearchSpace,
    Space,
    cell_name,
    contains_exact,
    explain_key,
    param_order,
)
from studies.study_settings import (
    SEQUENCE,
    TRAINING_PARAMS,
    UPDATE_EVERY,
    TrainingSettings,
    used_params,
    uses_setting,
)

MAX_COMBINATIONS = 1_000_000
"""Maximum number of combinations of a grid, including excluded ones."""


Table = Space | LoopSpace
"""A table ``[space]``."""

_T = TypeVar("_T", bound=Table)


def name_tables(tables: Sequence[_T]) -> dict[str, _T]:
    """Return tables by the names that messages give them.

    Raises:
        ValueError: if there is none.
    """
    if not tables:
        raise ValueError("space has no table: expected at least one [space]")
    if len(tables) == 1:
        return {"space": tables[0]}
    return {f"space {number}": table for number, table in enumerate(tables, 1)}


class Grid:
    """The combinations of all tables ``[space]`` of a study, each once.

    Where there are several tables, a combination lacks the parameters that its table does not have.
    Where one has replicates, every combination has the number of its replicate.

    Args:
        tables: the tables.
        blocks: the values of each parameter in a table, or in parts of it.

    Attributes:
        search_space: each parameter's values, in the order of the file.

    Raises:
        ValueError: if a table excludes what it does not have, or all that it has.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        blocks: Sequence[tuple[Table, dict[str, Sequence[ParamValue]]]],
    ) -> None:
        self._tables = tables
        self._blocks = blocks
        if any(table.replicates > 1 for table in tables):
            for table, values in blocks:
                values[REPLICATE] = range(table.replicates)
        size = sum(math.prod(map(len, values.values())) for _, values in blocks)
        if size > MAX_COMBINATIONS:
            raise ValueError(
                f"space has {size:,} combinations: expected at most {MAX_COMBINATIONS:,}, "
                "including excluded ones"
            )
        for name, table in name_tables(tables).items():
            self._check_exclusions(name, table)
        found: dict[str, dict[ParamValue, None]] = {}
        for _, values in blocks:
            for name, choices in values.items():
                found.setdefault(name, {}).update(dict.fromkeys(choices))
        self.search_space: SearchSpace = {name: list(found[name]) for name in self._sort(found)}

    def count(self) -> int:
        """Count the combinations that are not excluded."""
        return sum(1 for _ in self.combinations())

    def combinations(self) -> Iterator[Params]:
        """Yield the combinations that are not excluded, the last parameter varying fastest."""
        seen: set[frozenset[tuple[str, ParamValue]]] = set()
        for params in self._all_combinations():
            key = frozenset(params.items())
            if key not in seen:
                seen.add(key)
                yield params

    def project(self, names: Collection[str]) -> list[Params]:
        """List the combinations of some parameters that occur, each once.

        Like :meth:`find_constant`, it takes no longer for a large grid than for a small one.
        """
        values = self._representatives(())
        values |= {
            name: set(choices) for name, choices in self.search_space.items() if name in names
        }
        found: dict[frozenset[tuple[str, ParamValue]], Params] = {}
        for params in self._all_combinations(values):
            chosen = {name: value for name, value in params.items() if name in names}
            found.setdefault(frozenset(chosen.items()), chosen)
        return list(found.values())

    def find_constant(self, names: Collection[str]) -> list[str]:
        """List those of some parameters that have one value wherever all other parameters agree.

        A combination that lacks a parameter has no value of it. The answer for a large grid takes
        no longer than for a small one: of the values that no exclusion names and that occur in the
        same tables and cells, a few represent all.
        """
        constant = [name for name in self.search_space if name in names]
        found: dict[frozenset[tuple[str, ParamValue]], Params] = {}
        for params in self._all_combinations(self._representatives(names)):
            others = frozenset(item for item in params.items() if item[0] not in names)
            first = found.setdefault(others, {})
            for name in [name for name in constant if name in params]:
                if first.setdefault(name, params[name]) != params[name]:
                    constant.remove(name)
            if not constant:
                break
        return constant

    def _representatives(self, names: Collection[str]) -> dict[str, set[ParamValue]]:
        """Return values of each parameter that represent all of its values.

        Exchanging two values everywhere in the grid changes nothing if no exclusion names them and
        they occur in the same tables and cells. Of such values, two represent a parameter in
        ``names``, and one any other.
        """
        blocks = [
            {name: set(choices) for name, choices in values.items()} for _, values in self._blocks
        ]
        exclusions = [exclusion for table in self._tables for exclusion in table.exclude]
        named = {item for exclusion in exclusions for item in exclusion.items()}
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

    def _all_combinations(
        self, given: Mapping[str, Collection[ParamValue]] | None = None
    ) -> Iterator[Params]:
        """Yield the combinations of all tables, of the given values only; some may occur twice."""
        for space, values in self._blocks:
            if given is not None:
                values = {
                    name: [value for value in choices if value in given[name]]
                    for name, choices in values.items()
                }
            yield from self._block_combinations(space, values)

    def _block_combinations(
        self, space: Table, values: Mapping[str, Sequence[ParamValue]]
    ) -> Iterator[Params]:
        for combination in itertools.product(*values.values()):
            params = self._select_used(dict(zip(values, combination, strict=True)))
            if not any(exclusion.items() <= params.items() for exclusion in space.exclude):
                yield params

    def _select_used(self, params: Params) -> Params:
        """Return the parameters of a combination that apply to it."""
        return params

    def _sort(self, names: Iterable[str]) -> list[str]:
        """Return parameters in the order in which they are listed."""
        others = [name for name in names if name != REPLICATE]
        return [*others, *(name for name in names if name == REPLICATE)]

    def _check_exclusions(self, table: str, space: Table) -> None:
        blocks = [values for owner, values in self._blocks if owner is space]
        known: dict[str, list[ParamValue]] = {}
        for values in blocks:
            for name, choices in values.items():
                known.setdefault(name, []).extend(choices)
        known.pop(REPLICATE, None)
        for exclusion in space.exclude:
            if not exclusion:
                raise ValueError(f"{table} has exclude = {{}}, which excludes every combination")
            for name, value in exclusion.items():
                if name not in known:
                    expected = expect_one_of(self._sort(known), name)
                    raise ValueError(f"{table} excludes {name!r}: {expected}")
                if not contains_exact(known[name], value):
                    expected = ", ".join(map(repr, dict.fromkeys(known[name])))
                    raise ValueError(
                        f"{table} excludes {name} = {value!r}: expected one of {expected}"
                    )
        if not any(next(self._block_combinations(space, block), None) for block in blocks):
            raise ValueError(
                f"{table} has no combination that exclude leaves: expected at least one"
            )


class NetworkGrid(Grid):
    """The grid of a study of networks.

    A combination lacks the parameters that do not apply to it: switches belong to the gated cell,
    options to the users' cells that have them, some training settings to some optimizers, and
    ``update_every`` to gradients that do not go back to the start of a sequence. Where there are
    several tables, a parameter that one of them varies has the study's value, or the default, in
    the others.

    Args:
        spaces: the tables.
        training: training settings of the study.
        cells: users' cells by name.
        task: record of the task; None if there are several.
        tasks: records of several tasks by name.

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
        tasks: Mapping[str, TaskRecord] | None = None,
    ) -> None:
        self._spaces = spaces
        self._training = training
        self._cells = cells
        self._task = task
        self._tasks = tasks or {}
        self._has_cell = any(space.cell is not None for space in spaces)
        self._varied = {
            name
            for space in spaces
            for name in (BLOCK, *TRAINING_PARAMS, *space.options, *space.task_options)
            if space.values(name) is not None
        }
        tables = name_tables(spaces)
        for table, space in tables.items():
            self._check_cells(table, space)
            self._check_options(table, space)
            self._check_task(table, space)
            self._check_tasks(table, space)
        self._check_sources(tables)
        self._check_use(tables)
        self._check_types()
        super().__init__(
            spaces,
            [(space, self._values(space, cell)) for space in spaces for cell in space.cell_names],
        )
        trained = {params.get(TASK) for params in self.project([TASK])}
        if excluded := [name for name in self.search_space.get(TASK, ()) if name not in trained]:
            raise ValueError(
                f"space has no combination of task {excluded[0]} that exclude leaves: expected one"
            )

    def _select_used(self, params: Params) -> Params:
        return used_params(params, self._training)

    def _sort(self, names: Iterable[str]) -> list[str]:
        return param_order(names)

    def _values(self, space: Space, cell: str) -> dict[str, Sequence[ParamValue]]:
        values: dict[str, Sequence[ParamValue]] = {}
        if space.task_names:
            values[TASK] = space.task_names
        if self._has_cell:
            values[CELL] = [cell]
        if cell == GATED_CELL:
            values |= {name: getattr(space, name) for name in SWITCHES}
        options = self._cells[cell].options if cell in self._cells else {}
        defaults = [(name, option, option.default) for name, option in options.items()]
        if self._task is not None:
            options = self._task.options
            defaults += [(name, options[name], self._task.value(name)) for name in options]
        for name, option, default in defaults:
            if name in self._varied:
                values[name] = list(map(option.convert, space.values(name) or [default]))
        if BLOCK in self._varied:
            values[BLOCK] = space.block or BLOCKS[:1]
        values |= {name: getattr(space, name) for name in ("layers", "state_size")}
        for name in TRAINING_PARAMS:
            if name in self._varied:
                values[name] = self._setting(space, name)
        return values

    def _setting(self, space: Space, name: str) -> Sequence[ParamValue]:
        """Return the values of a training setting in a table: its own, or the study's."""
        return space.values(name) or [getattr(self._training, name)]

    def _check_cells(self, table: str, space: Space) -> None:
        for spec in space.cell or ():
            if spec in BUILT_IN_CELLS:
                continue
            name = cell_name(spec)
            if name not in self._cells:
                raise ValueError(f"{table} has the cell {spec!r}, which is not loaded")
            if self._cells[name].spec != spec:
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
        cells = {
            name: self._cells[name].options for name in space.cell_names if name in self._cells
        }
        for name in space.options:
            for cell, options in cells.items():
                if name in options:
                    options[name].check(f"{table}: {cell} has {name}", space.values(name) or ())
            if any(name in options for options in cells.values()):
                continue
            if name in TRAINING_PARAMS:
                raise ValueError(f"{table} has {name}: expected it in [space.training]")
            if self._task and name in self._task.options:
                raise ValueError(f"{table} has {name}: expected it in [space.task]")
            known = dict.fromkeys(itertools.chain(Space.model_fields, *cells.values()))
            raise ValueError(f"{table} has the unknown key {name}: {explain_key(name, known)}")

    def _check_task(self, table: str, space: Space) -> None:
        task = self._task.name if self._task else "text"
        known = self._task.options if self._task else {}
        for name, values in space.task_options.items():
            if name not in known:
                expected = expect_one_of(known, name) if known else "it has none"
                raise ValueError(
                    f"{table} has the option task.{name} of the task {task}: {expected}"
                )
            known[name].check(f"{table}: task {task} has {name}", values)

    def _check_tasks(self, table: str, space: Space) -> None:
        if bool(self._tasks) != bool(space.task_names):
            raise ValueError(
                f"{table} has no list of tasks, but another table has: expected one in each table, "
                "and no options of a task as axes"
            )
        for task in space.tasks:
            if task.name not in self._tasks:
                raise ValueError(f"{table} has the task {task.source!r}, which is not loaded")

    def _check_sources(self, tables: Mapping[str, Space]) -> None:
        """Require that tasks whose names differ by options alone have one source."""
        sources: dict[str, str] = {}
        for table, space in tables.items():
            for task in space.tasks:
                other = sources.setdefault(task.short_name, task.source)
                if other != task.source:
                    raise ValueError(
                        f"{table} has the task {task.source!r}, but {other!r} is named "
                        f"{task.short_name} as well: expected distinct names"
                    )

    def _check_types(self) -> None:
        """Require one type of an option's values in all cells: equal values are one choice."""
        found: dict[str, tuple[str, str]] = {}
        cells = {cell for space in self._spaces for cell in space.cell_names}
        for cell, record in self._cells.items():
            for name, option in record.options.items():
                if name not in self._varied or cell not in cells:
                    continue
                first, kind = found.setdefault(name, (cell, option.type))
                if kind != option.type:
                    raise ValueError(
                        f"space varies {name}, of type {kind} in {first} and {option.type} in "
                        f"{cell}: expected one type, or a study for each"
                    )

    def _check_use(self, tables: Mapping[str, Space]) -> None:
        """Require that a trial uses each training setting that is stated."""
        for table, space in tables.items():
            for name in TRAINING_PARAMS:
                if space.values(name) is not None:
                    self._require_use(f"{table} has training.{name}", name, [space])
        for name in TRAINING_PARAMS:
            value = getattr(self._training, name)
            if value != TrainingSettings.model_fields[name].default:
                self._require_use(f"training.{name} is {value}", name, self._spaces)

    def _require_use(self, subject: str, setting: str, spaces: Sequence[Space]) -> None:
        optimizers, windows = (
            dict.fromkeys(value for space in spaces for value in self._setting(space, name))
            for name in ("optimizer", BPTT_STEPS)
        )
        if any(uses_setting(str(name), setting, w) for name in optimizers for w in windows):
            return
        if setting == UPDATE_EVERY:
            raise ValueError(
                f'{subject}, which bptt_steps = "{SEQUENCE}" does not use: expected a number of '
                f"bptt_steps, or no {setting}"
            )
        using = [optimizer for optimizer in OPTIMIZERS if uses_setting(optimizer, setting)]
        verb = "does" if len(optimizers) == 1 else "do"
        raise ValueError(
            f"{subject}, which {' and '.join(map(str, optimizers))} {verb} not use: expected the "
            f"optimizer {' or '.join(using)}"
        )
