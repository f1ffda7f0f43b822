"""The config of a study: the validated form of a ``*.toml`` file."""

from collections.abc import Iterable, Mapping
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from rnn.config import (
    BUILT_IN_CELLS,
    GATED_CELL,
    GateInputs,
    ParamValue,
)
from rnn.errors import UserError
from studies.errors import StudyFormatError
from studies.grid import Grid, NetworkGrid
from studies.messages import expect_one_of, shorten
from studies.records import (
    DEFAULT_MARGIN,
    TEXT,
    UNITLESS_LOSSES,
    CellOption,
    CellRecord,
    Direction,
    Options,
    StrictModel,
    TaskRecord,
    TaskSettings,
    format_toml,
    of_task,
    unit,
)
from studies.space import (
    BLOCK,
    CELL,
    GATED_PARAMS,
    TASK,
    LoopSpace,
    LoopTable,
    Refinement,
    Space,
    SpaceTable,
    explain_value,
)
from studies.stated_hypotheses import Hypothesis, check_hypotheses
from studies.study_settings import (
    TRAINING_PARAMS,
    WINDOW_PARAMS,
    CheckpointSettings,
    EvaluationSettings,
    ImportedResults,
    LeaseSettings,
    LoopSettings,
    MetricSettings,
    OutageSettings,
    PrecisionSetting,
    PruningSettings,
    TrainingLength,
    TrainingSettings,
    check_window,
    round_up_length,
)

# The held-out loss of averaged weights ranks one in seven pairs of single runs wrong, that of the
# last weights and the training loss one in four.
Objective = Literal["validation", "training", "training-mean"]
"""What a trial's value is, see :data:`studies.attributes.OBJECTIVE_NAMES`."""


def _list_tables(raw: Any) -> Any:
    """Return the tables of a union: one ``[space]``, or each ``[[space]]``."""
    if isinstance(raw, list | tuple):
        return tuple(raw)
    return (raw,)


_MARGIN_HINT = (
    "expected the largest difference that counts as none, because no unit of the value is known"
)


_LENGTH_HINT = "the task decides its length: set its options in [task] or [space.task]"

_TEXT_SETTINGS = {
    "task.corpus": "the task has its own data",
    "task.tokenizer": "the task has no text",
    "training.sequence_length": _LENGTH_HINT,
    "evaluation.window_length": _LENGTH_HINT,
}
"""Settings of the task `text` alone, and why another task has none."""

_NETWORK_SETTINGS = (
    "task", "objective", "eval_split", "keep_weights", "gate_inputs", "precision", "training",
    "evaluation",
)  # fmt: skip
"""Settings of networks, which a study with a loop has none of."""


class StudyConfig(StrictModel):
    """A study: a grid to search, trials derived from another study, or imported results.

    It has one of ``space``, ``refinement`` and ``results``. ``cells`` holds the users' cells that
    the grid, or a source study, names, and ``task_record`` the task, or ``task_records`` the tasks
    by name if the grid crosses several. ``lengths`` holds what the training of each task is rounded
    up to, and ``loop_parameters`` names the parameters of a study with a loop. The program fills
    these and ``results``, which is judged by the descriptive settings alone.
    """

    question: str = ""
    """What the study asks. The report shows it."""
    report_threshold: Annotated[float | dict[str, float] | None, unit("the unit of the loss")] = (
        None
    )
    """Loss below which a network counts as [solved](../statistics.md#solved-networks), or a table
    of one for some of [several tasks](#several-tasks). Of a loop or an import: the value."""
    untrained: Literal["exclude", "include"] = "exclude"
    """Whether effects are also over pairs of networks that
    [cannot show them](../statistics.md#what-networks-can-show): blind ones, and those in which the
    parts that a change adds are never trained."""
    told: Literal["exclude", "include"] = "exclude"
    """Whether trials count whose value this program [did not train](../reliability.md#told-values),
    as after `study.tell` of Optuna. `exclude`: counted apart; `include`: as any complete trial."""
    task: TaskSettings = TaskSettings()
    objective: Objective = "validation"
    """Loss that is a trial's value. `validation`: on held-out data, at the end; `training`: the
    minimum of the smoothed training loss; `training-mean`: its mean over the last quarter."""
    eval_split: Literal["validation", "test"] = "validation"
    """`test`: evaluate on the test split as well, at the end of each run; in a refinement with
    replicates only."""
    keep_weights: Annotated[int, Field(ge=0, le=1000)] = 10
    """Number of best networks whose weights are kept."""
    gate_inputs: GateInputs = "state"
    """What the state gate and the forget gate of the [gated cell](../gated-cell.md) read: the
    layer's input and old state, or the candidate as well."""
    precision: PrecisionSetting = "auto"
    """Precision of matrix products, fixed when the study is created. `auto`: `bf16` if every
    network [trains faster in it](../benchmarks.md#precision) on the machine that creates the study,
    else `fp32`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the initial weights and of the order of the data."""
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    pruning: PruningSettings = PruningSettings()
    lease: LeaseSettings = LeaseSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    outage: OutageSettings = OutageSettings()
    nuisance: list[str] = []
    """[Parameters](#nuisance-parameters) that are tuned for each architecture, not studied."""
    hypothesis: list[Hypothesis] = []
    """[Hypotheses](#hypotheses) to test, as tables `[[hypothesis]]`."""
    cells: dict[str, CellRecord] = {}
    task_record: TaskRecord | None = None
    task_records: dict[str, TaskRecord] = {}
    lengths: dict[str, TrainingLength] = {}
    loop: LoopSettings | None = None
    loop_parameters: list[str] = []
    space: Annotated[tuple[SpaceTable, ...], BeforeValidator(_list_tables)] | None = None
    refinement: Refinement | None = None
    results: ImportedResults | None = None

    @property
    def has_networks(self) -> bool:
        """Whether the trials are networks of this program."""
        return self.own_metric is None

    @property
    def is_imported(self) -> bool:
        """Whether another program recorded the results."""
        return self.results is not None

    @property
    def own_metric(self) -> MetricSettings | None:
        """What the value of trials is that are no networks of this program."""
        return self.loop or self.results

    @property
    def direction(self) -> Direction:
        """Whether a lower or a higher value is better."""
        return "minimize" if self.own_metric is None else self.own_metric.direction

    @property
    def network_tables(self) -> tuple[Space, ...]:
        """The tables ``[space]`` of a grid of networks."""
        return tuple(table for table in self.space or () if isinstance(table, Space))

    @property
    def grid(self) -> Grid | None:
        """The grid of the tables ``[space]``."""
        if self.space is None:
            return None
        if self.loop is not None:
            tables = [table for table in self.space if isinstance(table, LoopSpace)]
            return Grid(tables, [(table, table.choices) for table in tables])
        return NetworkGrid(
            self.network_tables, self.training, self.cells, self.task_record, self.task_records
        )

    @property
    def replicates(self) -> int:
        """Number of runs of each architecture, at most."""
        if self.refinement is not None:
            return self.refinement.replicates
        return max((table.replicates for table in self.space or ()), default=1)

    def at_task(self, name: str) -> "StudyConfig":
        """Return the config of a study of one of the tasks alone; itself for ``""``, the only one.

        Raises:
            StudyFormatError: if the study does not know the task.
        """
        if not name or not self.task_records:
            return self
        if name not in self.task_records:
            raise StudyFormatError(
                f"a trial has the task {shorten(repr(name))}, which its study does not know: "
                "restore the storage from a backup, or choose another study"
            )
        record = self.task_records[name]
        task = self.task
        if record.source != TEXT:
            task = TaskSettings.model_validate({"source": record.source, **record.values})
        tables = [table.at_task(name) for table in self.network_tables]
        return self.model_copy(
            update={
                "task": task,
                "task_record": record,
                "task_records": {},
                "lengths": {"": self.lengths[name]} if name in self.lengths else {},
                "report_threshold": of_task(self.report_threshold, name),
                "hypothesis": [hypothesis.at_task(name) for hypothesis in self.hypothesis],
                "refinement": self.refinement and self.refinement.at_task(name),
                "space": self.space and tuple(table for table in tables if table is not None),
            }
        )

    @property
    def task_names(self) -> list[str]:
        """Names of several tasks, in the order of their choices; none of one, and of one trial."""
        if self.refinement is not None and self.refinement.trial is None:
            return list(self.task_records)
        return list(
            dict.fromkeys(name for table in self.network_tables for name in table.task_names)
        )

    def choose_task(self, study: str, task: str) -> str:
        """Return the task that a user names; "" in a study of one.

        Raises:
            UserError: if the study does not have it, or has several and none is named.
        """
        names = self.task_names
        if task and task not in names:
            expected = expect_one_of(names, task) if names else "it has one task"
            raise UserError(f"study {study!r} has no task {shorten(repr(task))}: {expected}")
        if names and not task:
            raise UserError(
                f"study {study!r} has several tasks, each with its best network: name one with "
                f"--task, in Python with at_task: {', '.join(names)}"
            )
        return task

    def list_tasks(self) -> dict[str, TaskRecord]:
        """Return the records of all tasks by name, of the only one as ``""``."""
        return self.task_records or ({"": self.task_record} if self.task_record else {})

    @property
    def solvable_task(self) -> TaskRecord | None:
        """The record of a task with the bounds from which a network has solved it.

        Where the task states none, a ``report_threshold`` of its validation loss is the bound. None
        if there is none, and for a text.
        """
        task = self.task_record
        if task is None or task.steps is None:  # a text
            return None
        threshold = of_task(self.report_threshold)
        if not task.solved and threshold is not None and self.objective == "validation":
            return task.model_copy(update={"solved": {"loss": threshold}})
        return task if task.solved else None

    def of_trial(self, params: Mapping[str, Any]) -> "StudyConfig":
        """Return the config of a study of a trial's task alone."""
        return self.at_task(str(params.get(TASK))) if self.task_records else self

    def task_of(self, params: Mapping[str, Any]) -> str:
        """Return the task of a trial, of several ones; "" in a study of one."""
        return str(params[TASK]) if self.task_names else ""

    def length_of(self, params: Mapping[str, Any] = MappingProxyType({})) -> TrainingLength:
        """Return how long a trial trains; without parameters, each one of a study of one task."""
        if self.loop is not None:
            return TrainingLength(steps=self.loop.steps, log_every=self.loop.log_every)
        task = str(params.get(TASK)) if self.task_records else ""
        return self.lengths.get(task, self.training.length)

    def varies(self, setting: str) -> bool:
        """Return whether a training setting has several values in the grid; True without one."""
        default = getattr(self.training, setting)
        tables = [table.values(setting) or [default] for table in self.network_tables]
        return self.space is None or len(set(chain(*tables))) > 1

    @property
    def token_name(self) -> str:
        """Name of what a network reads in a step, see :attr:`TaskRecord.token_name`."""
        return self.task_record.token_name if self.task_record else "step"

    @model_validator(mode="before")
    @classmethod
    def _add_text(cls, raw: Any) -> Any:
        """Add the record of a text, which is read later; mark the tables of a loop."""
        if not isinstance(raw, Mapping):
            return raw
        if raw.get("loop") is not None and raw.get("space") is not None:
            tables = _list_tables(raw["space"])
            marked = [LoopTable(table) if isinstance(table, dict) else table for table in tables]
            return {**raw, "space": marked}
        if any(raw.get(name) for name in ("task_record", "task_records", "results", "loop")):
            return raw
        try:
            task = TaskSettings.model_validate(raw.get("task", {}))
        except ValidationError:  # reported with the other settings
            return raw
        if task.source != TEXT:
            return raw
        return {**raw, "task_record": TaskRecord.of_text(task.tokenizer)}

    @model_validator(mode="after")
    def _check_task(self) -> "StudyConfig":
        if any(table.task_names for table in self.network_tables) and self.task.source != TEXT:
            raise ValueError(
                f"has the task {self.task.source!r} and a list of tasks in space.task: expected "
                "the list alone"
            )
        record = self.task_record
        is_text = record is not None and record.source == TEXT
        if not self.has_networks or (is_text and self.task.source == TEXT):
            return self
        has_text = any(task.source == TEXT for task in self.task_records.values())
        if (record is None or is_text or self.task.source == TEXT) and not self.task_records:
            raise ValueError(f"has the task {self.task.source!r}, which is not loaded")
        task = f"the task {record.name}" if record else "tasks in space.task"
        defaults = type(self).model_construct()
        given = []
        if not has_text:
            given = [k for k in _TEXT_SETTINGS if attrgetter(k)(self) != attrgetter(k)(defaults)]
        if any(table.values("sequence_length") for table in self.network_tables):
            given.append("space.training.sequence_length")
        if given:
            raise ValueError(
                f"has {given[0]} and {task}: expected no {given[0]}, "
                f"because {_TEXT_SETTINGS[given[0].removeprefix('space.')]}"
            )
        return self

    @model_validator(mode="after")
    def _check_loop(self) -> "StudyConfig":
        if self.loop is None:
            return self
        defaults = type(self).model_construct()
        for name in _NETWORK_SETTINGS:
            if getattr(self, name) != getattr(defaults, name):
                raise ValueError(
                    f"has {name} and [loop]: expected no {name}, because the loop trains, and not "
                    "this program; a setting of the loop is a parameter of [space]"
                )
        if self.pruning.enabled and 2 * self.loop.log_every > self.loop.steps:
            raise ValueError(
                f"has pruning.enabled and no log point before the last: loop.log_every is "
                f"{self.loop.log_every} and loop.steps {self.loop.steps}, expected log_every of at "
                "most half of steps"
            )
        return self

    @model_validator(mode="after")
    def _check_margins(self) -> "StudyConfig":
        """Require margins where the value has no unit, or any, so that no default suits it."""
        for number, hypothesis in enumerate(self.hypothesis, 1):
            is_stated = "margin" in hypothesis.model_fields_set
            self._check_margin(f"hypothesis {number} has", hypothesis.margin, is_stated)
        refinement = self.refinement
        if refinement is not None and refinement.has_replicates:
            is_stated = "margin" in refinement.model_fields_set
            self._check_margin("refinement has", refinement.margin, is_stated)
        self._check_numbers("has report_threshold", self.report_threshold)
        return self

    def _check_margin(self, subject: str, margin: Any, is_stated: bool) -> None:
        tasks = self.list_tasks().items()
        needed = [name for name, task in tasks if task.loss in UNITLESS_LOSSES]
        if not self.has_networks:
            needed = [""]
        stated = needed if is_stated else []
        if isinstance(margin, dict):
            stated = list(margin)
        if missing := [name for name in needed if name not in stated]:
            of = f" for the task {missing[0]}" if missing[0] else ""
            raise ValueError(f"{subject} no margin{of}: {_MARGIN_HINT}")
        if margin != DEFAULT_MARGIN:  # a stored config states it
            self._check_numbers(f"{subject} margin", margin)

    def _check_numbers(self, subject: str, value: Any) -> None:
        """Check a number of losses, or a table of one for each task."""
        tasks = self.list_tasks()
        if isinstance(value, dict):
            for name in value.keys() - self.task_records.keys():
                known = expect_one_of(tasks, name) if self.task_records else "expected a number"
                raise ValueError(f"{subject} for the task {name!r}: {known}")
        elif value is not None and len({_find_scale(*task) for task in tasks.items()}) > 1:
            raise ValueError(
                f"{subject} = {value} for tasks whose losses have several units: expected a table "
                f"of a number for each, as in {{ {format_toml(next(iter(tasks)))} = {value} }}"
            )

    @model_validator(mode="after")
    def _check_contradictions(self) -> "StudyConfig":
        refinement = self.refinement
        for name, task in self.list_tasks().items():
            threshold = of_task(self.report_threshold, name)
            if task.loss != "own" and threshold is not None and threshold <= 0:
                raise ValueError(
                    f"report_threshold is {threshold}: expected a number above 0, because no "
                    f"{task.loss_name} of the task {name or task.name} is lower"
                )
        if self.eval_split == "test" and not (refinement and refinement.has_replicates):
            raise ValueError(
                'has eval_split = "test": expected a refinement with replicates of 2 or more, '
                "because a split that guides a search is no test"
            )
        is_imported = self.is_imported and self.space is None and refinement is None
        if (self.space is None) == (refinement is None) and not is_imported:
            given = "neither" if self.space is None else "both"
            raise ValueError(f"has {given} of [space] and [refinement]: expected one of them")
        if self.task_records and TASK in self.nuisance:
            tasks = ", ".join(self.task_records)
            raise ValueError(
                f"nuisance names {TASK!r} of several tasks ({tasks}), whose losses do not compare: "
                "expected other parameters"
            )
        task_options = self.task_record.options if self.task_record else {}
        for name, cell in self.cells.items():
            for option in cell.options.keys() & task_options.keys():
                raise ValueError(
                    f"option {option} of cell {name} has the name of an option of the task: rename "
                    "one of them"
                )
        return self

    @model_validator(mode="after")
    def _check_grid(self) -> "StudyConfig":
        grid = self.grid  # refuses tables that contradict each other or the other settings
        if repeated := [name for name in self.nuisance if self.nuisance.count(name) > 1]:
            raise ValueError(f"nuisance names {repeated[0]} twice: expected distinct parameters")
        self._check_params("nuisance", [name for name in self.nuisance if name != CELL])
        if grid is None:  # its trials have the best values of the source's nuisance parameters
            return self
        for name in grid.find_constant(self.nuisance):
            # One of a single value is no contradiction: an override may have pinned it.
            if len(grid.search_space[name]) > 1:
                raise ValueError(
                    f"nuisance names {name!r}, which has one value for each architecture: expected "
                    "several values for the same other parameters"
                )
        if self.task_record is not None and self.task_record.steps is None:
            self.round_up_length("", ((params, None) for params in grid.project(WINDOW_PARAMS)))
        return self

    @model_validator(mode="after")
    def _check_hypotheses(self) -> "StudyConfig":
        # Whether a derived study tunes one again is not known before its trials.
        nuisance = [] if self.refinement else self.nuisance
        # Each hypothesis is tested in each task.
        names = [name for name in self.list_params() if name != TASK]
        options: Options | None = None
        if self.has_networks:
            cells: list[ParamValue] = [*BUILT_IN_CELLS, *self.cells]
            cell = CellOption(type="str", choices=cells, default=GATED_CELL)
            names = [CELL, *names]
            options = {CELL: [cell], **self.options}
        check_hypotheses(self.hypothesis, names, options, nuisance)
        return self

    @model_validator(mode="after")
    def _check_variants(self) -> "StudyConfig":
        """Check the trials of a derived study, as far as the file alone decides."""
        for variant in self.refinement.variants if self.refinement else ():
            self._check_params("refinement.variants: a variant", variant)
            if not self.has_networks:
                continue
            for name, value in variant.items():
                if expected := explain_value(name, value, self.options):
                    raise ValueError(
                        f"refinement.variants: a variant has {name} = {shorten(repr(value))}: "
                        f"{expected}"
                    )
            settings = training_settings(variant, self)
            if settings.warmup_steps > settings.steps:
                raise ValueError(
                    f"training.warmup_steps is {settings.warmup_steps} and training.steps "
                    f"{settings.steps}: expected warmup_steps of at most steps"
                )
            if {"bptt_steps", "update_every"} <= variant.keys():
                check_window(settings)
        return self

    def _check_params(self, subject: str, names: Iterable[str]) -> None:
        known = self.list_params()
        for name in names:
            if name not in known:
                raise ValueError(f"{subject} names {name!r}: {expect_one_of(known, name)}")

    @property
    def options(self) -> Options:
        """Options of the users' cells and of the task, by name."""
        options: dict[str, list[CellOption]] = {}
        own = self.task_record.options if self.task_record else {}
        for known in (*(cell.options for cell in self.cells.values()), own):
            for name, option in known.items():
                options.setdefault(name, []).append(option)
        return options

    def list_params(self) -> list[str]:
        """List the parameters that a trial can have, the name of the cell aside."""
        if self.results is not None:
            return self.results.parameters
        if self.loop is not None:
            stated = [name for table in self.space or () for name in table.model_extra or ()]
            return list(dict.fromkeys([*self.loop_parameters, *stated]))
        tasks = [TASK] if self.task_records else []
        own = (*GATED_PARAMS, BLOCK, *self.options)
        return list(dict.fromkeys((*tasks, *own, *TRAINING_PARAMS)))

    def round_up_length(
        self, task: str, trials: Iterable[tuple[Mapping[str, Any], int | None]]
    ) -> TrainingLength:
        """Return how long the trials of a task train, ``""`` for the only one.

        Args:
            task: name of the task.
            trials: parameters of each trial, and the number of steps of its sequences; None where
                ``training.sequence_length`` decides.

        Raises:
            ValueError: as of :func:`studies.study_settings.round_up_length`, or if pruning has no
                log point before the last.
        """
        stated = self.length_of({TASK: task})
        settings = [(training_settings(params, self), steps) for params, steps in trials]
        length = round_up_length(
            stated,
            [(training, steps or training.sequence_length - 1) for training, steps in settings],
        )
        if self.pruning.enabled and 2 * length.log_every > length.steps:
            raise ValueError(
                f"has pruning.enabled and no log point before the last: log_every is "
                f"{length.log_every} and steps {length.steps}, expected log_every of "
                "at most half of steps"
            )
        return length


def _find_scale(name: str, task: TaskRecord) -> str:
    """Return what losses have in common that may be compared with one number: nats, or a unit."""
    return "nat" if task.loss_unit.startswith("nat/") else task.loss_unit or name


def select_params(
    params: Mapping[str, Any], names: Iterable[str]
) -> tuple[tuple[str, ParamValue], ...]:
    """Return the names and values of some parameters, of those that a trial has."""
    return tuple((name, params[name]) for name in names if name in params)


def training_settings(params: Mapping[str, Any], config: StudyConfig) -> TrainingSettings:
    """Return the training settings of a trial: its study's, with its own parameters over them."""
    varied: dict[str, Any] = dict(select_params(params, TRAINING_PARAMS))
    if config.lengths:
        varied |= config.length_of(params)
    return config.training.model_copy(update=varied) if varied else config.training
