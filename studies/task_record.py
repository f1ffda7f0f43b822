"""What a study file states about its task, and what its study stores about one that is no text."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from rnn.config import ParamValue, TaskSpec
from studies.cell_record import CellOption
from studies.strict_model import StrictModel

TEXT = "text"
"""Source of the task of a study that names none: the next token of its corpus."""

Direction = Literal["maximize", "minimize"]

UNITLESS_LOSSES = ("squared error", "own")
"""Losses of tasks that have no unit: their scale is not known."""

_Size = Annotated[int, Field(ge=1)]


class TaskSettings(StrictModel):
    """What networks learn: the table ``[task]``. Keys that are no field are options of the task."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, ParamValue]

    source: str = TEXT
    """`text`, a built-in task such as `adding:50`, or your own as `FILE.py:Class`, relative to the
    study file. Options of the task are further keys of this table."""

    @property
    def options(self) -> dict[str, ParamValue]:
        """Values of options by name."""
        return dict(self.__pydantic_extra__)

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: str) -> str:
        if not source or not source.isprintable():
            raise ValueError(
                "expected text, a built-in task such as adding:50, or the class of a task of your "
                "own, as in my_task.py:Adding"
            )
        return source

    @model_validator(mode="after")
    def _check_options(self) -> "TaskSettings":
        if self.source == TEXT and self.options:
            raise ValueError(
                f"the task text has no option {next(iter(self.options))}: expected source only, or "
                "the source of another task"
            )
        return self


class TaskRecord(StrictModel):
    """A task other than text.

    Attributes:
        source: where its class is, as the study file states it: ``path/to/file.py:Class``,
            ``package.module:Class``, or a built-in task such as ``adding:50``.
        sha256: hash of the source file of a user's own class; None for a built-in task.
        data_sha256: hash of the files that the task reads; None if it reads none.
        version: version that the class states.
        options: options of its constructor by name, in their order.
        values: values of the options that the study sets; the others have their defaults.
        inputs: number of tokens of the vocabulary, or of real numbers of a step.
        outputs: number of classes, or of real numbers to predict.
        reads_tokens: whether a step is a token.
        predicts_classes: whether a target is a class.
        steps: number of steps of a training sequence.
        loss: what a trial's value is: the cross-entropy in nats, the squared error, the squared
            error of standardized numbers, or the task's own loss.
        metrics: what networks are measured by besides, and whether more or less is better.
        eval_lengths: further lengths at which networks are evaluated.
        folder: absolute path of the folder in which the task finds its files.
        held_out: a few sums over the data of validation and test.
    """

    source: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    data_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    version: int = 0
    options: dict[str, CellOption] = {}
    values: dict[str, ParamValue] = {}
    inputs: _Size
    outputs: _Size
    reads_tokens: bool
    predicts_classes: bool
    steps: _Size
    loss: Literal["cross-entropy", "squared error", "standardized squared error", "own"]
    metrics: dict[str, Direction] = {}
    eval_lengths: list[_Size] = []
    folder: str = ""
    held_out: list[float] = []

    @property
    def name(self) -> str:
        """Short name of the task: that of the class, or the built-in task as it is stated."""
        return self.source.rpartition(":")[2] if self.sha256 else self.source

    @property
    def spec(self) -> TaskSpec:
        """What networks read and predict; not whether every step has a target."""
        classes = self.predicts_classes
        return TaskSpec(self.inputs, self.outputs, self.reads_tokens, classes, is_dense=False)

    @property
    def kind(self) -> str:
        """Name that is the same wherever the task's files are: without the path of a data file."""
        return self.source.partition(":")[0] if not self.sha256 and self.data_sha256 else self.name

    def identity(self) -> dict[str, Any]:
        """Return what makes results comparable, wherever the files of the task are."""
        places = {"source", "options", "folder", "held_out"}
        return {"name": self.kind, **self.model_dump(mode="json", exclude=places)}

    def value(self, option: str) -> ParamValue:
        """Return the value of an option: the study's, or its default."""
        return self.values.get(option, self.options[option].default)

    @property
    def loss_name(self) -> str:
        """Name of the loss, as in "validation cross-entropy"."""
        return {"standardized squared error": "squared error", "own": "loss"}.get(
            self.loss, self.loss
        )

    @property
    def loss_unit(self) -> str:
        """Unit of the loss; "" for one without a unit."""
        units = {"cross-entropy": "nat/target", "standardized squared error": "variance"}
        return units.get(self.loss, "")


class Floors(StrictModel):
    """Validation losses and metrics that need no memory, by which those of networks are judged.

    Attributes:
        constant: of the best constant prediction: the most frequent class, or the mean.
        last_value: of the forecast that repeats the last value; None where there is none.
        memoryless: of a small network whose states are set to the initial ones before every step.
        recurrent: of the same network, trained alike, that keeps its states.
    """

    constant: Mapping[str, float]
    last_value: Mapping[str, float] | None = None
    memoryless: Mapping[str, float]
    recurrent: Mapping[str, float]
