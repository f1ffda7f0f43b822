"""What a study stores about its task and a user's cell, and the base of all its models."""

import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from pathlib import PurePath
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from rnn.config import BUILT_IN_TASKS, BYTE_VOCAB_SIZE, CellFacts, ParamValue, TaskSpec
from studies.messages import shorten

TEXT = "text"
"""Source of the task of a study that names none: the next token of its corpus."""

NEXT_TOKEN: Final = "next token"
"""Loss of a text: the cross-entropy of the next token, which bits per byte compare."""

DEFAULT_MARGIN = 0.02
"""Nats that count as no difference: about the spread between runs of one architecture."""

UNITLESS_LOSSES = ("squared error", "own")
"""Losses of tasks that have no unit: their scale is not known."""

Direction = Literal["maximize", "minimize"]
TaskLoss = Literal[
    "next token", "cross-entropy", "squared error", "standardized squared error", "own"
]
OptionType = Literal["bool", "int", "float", "str"]

_Size = Annotated[int, Field(ge=1)]
_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def unit(name: str) -> Any:
    """Annotate a field with the unit of its value; its docstring says what it is."""
    return Field(json_schema_extra={"unit": name})


def with_bounds(kind: Any) -> Any:
    """Return a type of :mod:`rnn.config`, which needs no pydantic, with its bounds as a field."""
    bounds = {
        name: bound for part in getattr(kind, "__metadata__", ()) for name, bound in part.items()
    }
    return Annotated[kind.__origin__, Field(**bounds)] if bounds else kind


class StrictModel(BaseModel):
    """Strict, immutable model: no coercion, unknown keys rejected."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def first_message(error: ValidationError) -> str:
    """Return the message of the first mistake, as part of a line."""
    return message_of(error.errors()[0])


def message_of(error: ErrorDetails) -> str:
    """Return the message of a mistake, as part of a line."""
    if error["type"] == "model_type":  # pydantic names the class
        return "expected a table of settings"
    message = error["msg"].removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _strict(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=StrictModel.model_config)


_TYPES: dict[OptionType, tuple[TypeAdapter[Any], str]] = {
    "bool": (_strict(bool), "true or false"),
    "int": (_strict(Annotated[int, Field(ge=-(2**63), lt=2**63)]), "an integer of 64 bits"),
    "float": (_strict(float), "a number"),
    "str": (_strict(str), "a text"),
}
"""What accepts values of a type, and what it accepts."""


class CellOption(StrictModel):
    """A keyword option of the constructor of a cell or a task.

    Attributes:
        choices: its values, if its annotation is a ``Literal``; None for any of its type.
    """

    type: OptionType
    choices: list[ParamValue] | None = None
    default: ParamValue

    @property
    def description(self) -> str:
        """What the option takes."""
        if self.choices is not None:
            return f"one of {', '.join(map(repr, self.choices))}"
        return _TYPES[self.type][1]

    def check(self, subject: str, values: Sequence[Any]) -> None:
        """Require distinct values of the option's type, or among its choices.

        Raises:
            ValueError: if they are not; the message begins with the subject.
        """
        for value in values:
            if not self.fits(value):
                shown = shorten(repr(value))
                raise ValueError(f"{subject} = {shown}: expected {self.description}")
        if len(set(map(self.convert, values))) < len(values):
            raise ValueError(f"{subject} = {values}: expected distinct values")

    def fits(self, value: object) -> bool:
        """Return whether a value is of the option's type and among its choices."""
        try:
            _TYPES[self.type][0].validate_python(value)
        except ValidationError:
            return False
        return self.choices is None or value in self.choices

    def convert(self, value: ParamValue) -> ParamValue:
        """Return a value as the constructor takes it: a float where an integer is written."""
        return float(value) if self.type == "float" else value


class CellFactsRecord(StrictModel):
    """Measured facts of a user's cell with some values of its options.

    Attributes:
        options: what distinguishes these values, see :meth:`CellRecord.reduce_options`.
        parts, input_lag, sees_input: as of :class:`rnn.config.CellFacts`.
    """

    options: dict[str, ParamValue] = {}
    parts: dict[str, int | None]
    input_lag: int | None
    sees_input: bool


class CellRecord(StrictModel):
    """A user's cell.

    Attributes:
        spec: where its class is, as the study file states it: ``path/to/file.py:Class`` or
            ``package.module:Class``.
        sha256: hash of its source file.
        options: options of its constructor by name, in their order.
        has_sequence_form: whether it trains and is evaluated by many steps at once, where a task
            allows it.
        facts: what gradients reach in it, for each combination of options that was measured.
    """

    spec: str
    sha256: _Hash
    options: dict[str, CellOption] = {}
    has_sequence_form: bool = False
    facts: list[CellFactsRecord] = []

    def reduce_options(self, given: Mapping[str, ParamValue]) -> dict[str, ParamValue]:
        """Return what of the options' values can change which parts of the cell exist or matter.

        Of a number with decimals it is whether it is zero.
        """
        values = {name: given.get(name, option.default) for name, option in self.options.items()}
        is_decimal = {name: option.type == "float" for name, option in self.options.items()}
        return {name: value != 0 if is_decimal[name] else value for name, value in values.items()}

    def find_facts(self, given: Mapping[str, ParamValue]) -> CellFacts | None:
        """Return the facts of the cell with some options; None if they were not measured."""
        wanted = self.reduce_options(given)
        for found in self.facts:
            if found.options == wanted:
                return CellFacts(found.parts, found.input_lag, found.sees_input)
        return None


def read_options(cls: type) -> dict[str, CellOption]:
    """Return the options of a cell: the keyword arguments of its constructor, in their order.

    Raises:
        ValueError: if the constructor lacks ``input_size`` or ``state_size``, or has an argument
            that cannot be an option.
    """
    cell = f"cell {cls.__name__}"
    parameters = _list_parameters(cell, cls)
    for size in ("input_size", "state_size"):
        if parameters.pop(size, None) is None:
            raise ValueError(
                f"{cell} has no argument {size}: expected "
                "__init__(self, input_size, state_size, *, …)"
            )
    return {name: _read_option(cell, parameter) for name, parameter in parameters.items()}


def read_task_options(cls: Callable[..., Any]) -> tuple[dict[str, CellOption], bool]:
    """Return the options of a task, and whether its constructor has an argument ``folder``.

    Raises:
        ValueError: if the constructor has another argument that cannot be an option.
    """
    task = f"task {cls.__name__}"
    parameters = _list_parameters(task, cls)
    takes_folder = parameters.pop("folder", None) is not None
    options = {name: _read_option(task, parameter) for name, parameter in parameters.items()}
    return options, takes_folder


def _list_parameters(subject: str, cls: Callable[..., Any]) -> dict[str, Parameter]:
    try:
        parameters = dict(inspect.signature(cls, eval_str=True).parameters)
    except (Exception, SystemExit) as error:  # an annotation is any code
        raise ValueError(
            f"an annotation of the constructor of {subject} cannot be resolved ({error}): expected "
            "names that the file defines or imports"
        ) from error
    for parameter in parameters.values():
        if parameter.kind not in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
            raise ValueError(
                f"{subject} has an argument {parameter}: expected only keyword arguments with an "
                "annotation and a default"
            )
    return parameters


def _read_option(subject: str, parameter: Parameter) -> CellOption:
    name = parameter.name
    annotation = parameter.annotation
    option = f"option {name} of {subject}"
    expected = "bool, int, float, str or Literal[…] of one of them"
    if annotation is Parameter.empty:
        raise ValueError(f"{option} has no annotation: expected {expected}")
    if parameter.default is Parameter.empty:
        raise ValueError(f"{option} has no default: expected one, as in {name}: … = value")
    is_listed = typing.get_origin(annotation) is Literal
    choices = list(typing.get_args(annotation)) if is_listed else None
    kinds: list[Any] = list(map(type, choices or ())) or [annotation]
    if kinds[0] not in (bool, int, float, str) or kinds.count(kinds[0]) < len(kinds):
        shown = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        raise ValueError(f"{option} is annotated {shorten(shown)}: expected {expected}")
    kind: OptionType = kinds[0].__name__
    described = CellOption(type=kind, choices=choices, default=False)
    described.check(f"choice of {option}", choices or ())
    described.check(f"default of {option}", [parameter.default])
    return CellOption(type=kind, choices=choices, default=described.convert(parameter.default))


class TaskEntry(StrictModel):
    """A task as a study file names it: its source, and values of its options.

    A list of tasks has such entries; one without options may be its source alone.
    """

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, ParamValue]

    source: str

    @model_validator(mode="before")
    @classmethod
    def _join_names(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        joined = {key: _join(value) for key, value in raw.items()}
        several = [f"{name} is {value}" for name, value in joined.items() if type(value) is list]
        if several:
            raise ValueError(f"{several[0]}: expected one value; write an entry for each")
        return joined

    @property
    def options(self) -> dict[str, ParamValue]:
        """Values of options by name."""
        return dict(self.__pydantic_extra__)

    @property
    def short_name(self) -> str:
        """Name without options: that of a user's class, or ``series:FILE.csv``.

        It is the same wherever the files of the task are.
        """
        place, _, name = self.source.rpartition(":")
        if place in BUILT_IN_TASKS:
            return f"{place}:{name.rpartition('/')[2]}"
        return name

    @property
    def name(self) -> str:
        """Name with the options that are stated, in their order: ``mqar(length=32, pairs=4)``."""
        stated = [f"{name}={format_toml(value)}" for name, value in sorted(self.options.items())]
        return f"{self.short_name}({', '.join(stated)})" if stated else self.short_name

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: str) -> str:
        if not source:
            raise ValueError(
                "expected text, a built-in task such as adding:50, or the class of a task of your "
                "own, as in my_task.py:Adding"
            )
        return source

    @model_validator(mode="after")
    def _check_options(self) -> "TaskEntry":
        if self.source == TEXT and self.options:
            raise ValueError(
                f"the task text has no option {next(iter(self.options))}: expected corpus or "
                "tokenizer in [task], or the source of another task"
            )
        return self


def _join(value: Any) -> Any:
    """Return a list of names as a text with commas, another value unchanged."""
    if not isinstance(value, list) or not value:
        return value
    are_names = all(isinstance(name, str) and "," not in name for name in value)
    return ",".join(value) if are_names else value


def format_toml(value: ParamValue) -> str:
    """Return a value as a study file states it."""
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _read_entry(raw: Any) -> Any:
    """Return an entry of a list of tasks as a table; a text is the source of one."""
    if isinstance(raw, str):
        return {"source": raw}
    if isinstance(raw, Mapping | TaskEntry):
        return raw
    raise ValueError('expected a task such as "copy:10", or { source = "mqar", pairs = 4 }')


NamedTask = Annotated[TaskEntry, BeforeValidator(_read_entry)]
"""An entry of a list of tasks."""


def of_task(value: Any, task: str = "", default: Any = None) -> Any:
    """Return a number in one task; it may be a table of one for each of several tasks."""
    return value.get(task, default) if isinstance(value, dict) else value


class TaskSettings(TaskEntry):
    """What networks learn: the table ``[task]``. Keys that are no field are options of the task."""

    source: str = TEXT
    """`text`, another [built-in task](tasks.md#built-in-tasks) such as `adding:50`, or your own as
    `FILE.py:Class`, or a [dataset of PyTorch](tasks.md#datasets-of-pytorch) as `FILE.py:name`.
    Further keys of this table are options of the task."""
    corpus: str = "stdlib"
    """Of text: `stdlib` (the source code of Python's library), `enwik8`, or the path of a file.
    Each worker holds it in memory."""
    tokenizer: str = "bytes"
    """Of text: `bytes`, or `bpe:N`, byte-pair encoding with at most N tokens (257 to 65,536), which
    is learned from the training split."""

    @field_validator("tokenizer")
    @classmethod
    def _check_tokenizer(cls, tokenizer: str) -> str:
        kind, _, size = tokenizer.partition(":")
        if tokenizer == "bytes":
            return tokenizer
        is_number = size.isascii() and size.isdecimal()
        if kind != "bpe" or not is_number or not 256 < int(size) <= 2**16:
            raise ValueError(
                'expected "bytes", or "bpe:N" with a size N from 257 to 65536, as in bpe:1024'
            )
        return f"bpe:{int(size)}"


class TextRecord(StrictModel):
    """The text of a study, and what is learned from it.

    Attributes:
        corpus: name of the corpus, or absolute path of its file where the study was created.
        length: number of bytes.
        split: byte offsets at which the validation and the test split start.
        bytes_per_token: mean over the training split.
        tokenizer: tokenizer as :mod:`rnn.tasks.tokenizer` serializes it; None for bytes, and before
            it is learned.
    """

    corpus: str
    sha256: str
    length: Annotated[int, Field(ge=0)]
    split: Annotated[tuple[int, int], Field(strict=False)]  # a list in JSON
    bytes_per_token: Annotated[float, Field(gt=0)] = 1.0
    tokenizer: str | None = None


class TaskRecord(StrictModel):
    """A task.

    Attributes:
        source: where its class is, as the study file states it: ``path/to/file.py:Class``,
            ``package.module:Class``, or a built-in task such as ``adding:50`` or ``text``.
        sha256: hash of the source file of a user's own class or dataset; None for a built-in task.
        data_sha256: hash of the files that the task reads, or of the items of a dataset; None if
            it reads neither.
        version: version that the class states.
        options: options of its constructor by name, in their order.
        values: values of the options that the study sets; the others have their defaults.
        inputs: number of tokens of the vocabulary, or of real numbers of a step.
        outputs: number of classes, or of real numbers to predict.
        reads_tokens: whether a step is a token.
        predicts_classes: whether a target is a class.
        steps: number of steps of a training sequence; None where ``training.sequence_length``
            decides, and ``evaluation.window_length`` that of held-out windows.
        loss: what a trial's value is: the cross-entropy in nats, of the next token or of classes,
            the squared error, the squared error of standardized numbers, or the task's own loss.
        metrics: what networks are measured by besides, and whether more or less is better.
        eval_lengths: further lengths at which networks are evaluated.
        solved: bounds from which a network has solved the task, of metrics or of ``loss``; empty
            for a task that is not solved or unsolved.
        unit: unit of a loss that has no fixed one; "" for none.
        resets_often: whether cells read it one step at a time; see :class:`rnn.config.TaskSpec`.
        needs_input: whether a target may need the input of its own step.
        folder: absolute path of the folder in which the task finds its files.
        held_out: a few sums over the data of validation and test; empty for a text.
        text: the text that networks read; None in other tasks, and before it is read.
    """

    source: str
    sha256: _Hash | None = None
    data_sha256: _Hash | None = None
    version: int = 0
    options: dict[str, CellOption] = {}
    values: dict[str, ParamValue] = {}
    inputs: _Size
    outputs: _Size
    reads_tokens: bool
    predicts_classes: bool
    steps: _Size | None
    loss: TaskLoss
    metrics: dict[str, Direction] = {}
    eval_lengths: list[_Size] = []
    solved: dict[str, float] = {}
    unit: str = ""
    resets_often: bool = False
    needs_input: bool = True
    folder: str = ""
    held_out: list[float] = []
    text: TextRecord | None = None

    @classmethod
    def of_text(
        cls, tokenizer: str, text: TextRecord | None = None, size: int = BYTE_VOCAB_SIZE
    ) -> "TaskRecord":
        """Return the record of a text.

        Args:
            tokenizer: ``bytes`` or ``bpe:N``.
            text: the text; None before it is read.
            size: V, the number of tokens; that of bytes before the tokenizer is learned.
        """
        return cls(
            source=TEXT,
            values={"tokenizer": tokenizer},
            inputs=size,
            outputs=size,
            reads_tokens=True,
            predicts_classes=True,
            steps=None,
            loss=NEXT_TOKEN,
            text=text,
        )

    @property
    def name(self) -> str:
        """Short name of the task: that of the class, or the built-in task as it is stated."""
        return self.source.rpartition(":")[2] if self.sha256 else self.source

    @property
    def entry(self) -> TaskEntry:
        """The task as a study file names it."""
        return TaskEntry(source=self.source, **({} if self.source == TEXT else self.values))

    @property
    def spec(self) -> TaskSpec:
        """What networks read and predict; not whether every step has a target."""
        classes = self.predicts_classes
        is_dense = self.loss == NEXT_TOKEN
        return TaskSpec(self.inputs, self.outputs, self.reads_tokens, classes, is_dense)

    @property
    def kind(self) -> str:
        """Name that is the same wherever the task's files are: without the path of a data file."""
        return self.source.partition(":")[0] if not self.sha256 and self.data_sha256 else self.name

    def identity(self) -> dict[str, Any]:
        """Return what makes results comparable, wherever the files of the task are."""
        places = {"source", "options", "folder", "held_out", "solved", "unit", "text"}
        places.add("needs_input")  # of reports alone
        if self.loss == NEXT_TOKEN:
            places |= {"inputs", "outputs"}  # learned from the text
        identity = {"name": self.kind, **self.model_dump(mode="json", exclude=places)}
        if self.text is not None:
            kept = {"sha256", "length", "split"}
            identity["corpus"] = self.text.model_dump(mode="json", include=kept)
        return identity

    def has_solved(self, measured: Mapping[str, float]) -> bool:
        """Return whether metrics, and the ``loss``, of a network reach the bounds of the task."""
        return all(
            measured[name] >= bound
            if self.metrics.get(name) == "maximize"
            else measured[name] <= bound
            for name, bound in self.solved.items()
        )

    @property
    def solved_text(self) -> str:
        """When a network has solved the task: ``accuracy of at least 0.99``; "" if it cannot."""
        bounds = (
            f"{self.loss_name if name == 'loss' else name} of at "
            f"{'least' if self.metrics.get(name) == 'maximize' else 'most'} {bound:g}"
            for name, bound in self.solved.items()
        )
        return " and ".join(bounds)

    def value(self, option: str) -> ParamValue:
        """Return the value of an option: the study's, or its default."""
        return self.values.get(option, self.options[option].default)

    @property
    def loss_name(self) -> str:
        """Name of the loss, as in "validation cross-entropy"."""
        names = {
            NEXT_TOKEN: "loss",
            "standardized squared error": "squared error",
            "own": "loss",
        }
        return names.get(self.loss, self.loss)

    @property
    def loss_unit(self) -> str:
        """Unit of the loss; "" for one without a unit."""
        units = {
            NEXT_TOKEN: f"nat/{self.token_name}",
            "cross-entropy": "nat/target",
            "standardized squared error": "variance",
        }
        return units.get(self.loss, self.unit)

    @property
    def token_name(self) -> str:
        """Name of what a network reads in a step: ``byte``, ``token``, or ``step``."""
        if self.loss != NEXT_TOKEN:
            return "step"
        return "byte" if self.values["tokenizer"] == "bytes" else "token"

    @property
    def data_name(self) -> str:
        """Name of the corpus, without the folder of a file, or of another task."""
        return self.name if self.text is None else PurePath(self.text.corpus).name


Options = Mapping[str, Sequence[CellOption]]
"""Options of users' cells and of the task, by name."""


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
