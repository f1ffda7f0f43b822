"""What a study stores about a user's cell: its source file, its hash and its options."""

import inspect
import typing
from collections.abc import Sequence
from inspect import Parameter
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from rnn.config import BASELINE_CELLS, ParamValue
from studies.strict_model import StrictModel
from studies.text import shorten

OptionType = Literal["bool", "int", "float", "str"]


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
        type: name of its type.
        choices: its values, if its annotation is a ``Literal``; None for any of its type.
        default: its default.
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

    def check(self, subject: str, values: Sequence[object]) -> None:
        """Require values of the option's type, or among its choices.

        Raises:
            ValueError: if one is not; the message begins with the subject.
        """
        for value in values:
            if not self.fits(value):
                shown = shorten(repr(value))
                raise ValueError(f"{subject} = {shown}: expected {self.description}")

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


class CellRecord(StrictModel):
    """A user's cell.

    Attributes:
        spec: where its class is, as the study file states it: ``path/to/file.py:Class`` or
            ``package.module:Class``.
        sha256: hash of its source file.
        options: options of its constructor by name, in their order.
    """

    spec: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    options: dict[str, CellOption] = {}


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


def read_task_options(cls: type) -> tuple[dict[str, CellOption], bool]:
    """Return the options of a task, and whether its constructor has an argument ``folder``.

    Raises:
        ValueError: if the constructor has another argument that cannot be an option.
    """
    task = f"task {cls.__name__}"
    parameters = _list_parameters(task, cls)
    takes_folder = parameters.pop("folder", None) is not None
    options = {name: _read_option(task, parameter) for name, parameter in parameters.items()}
    return options, takes_folder


def _list_parameters(subject: str, cls: type) -> dict[str, Parameter]:
    """Return the arguments of a class's constructor."""
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
    name, annotation = parameter.name, parameter.annotation
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


def cell_name(spec: str) -> str:
    """Return the name of a cell: that of a built-in cell, or of a user's class.

    Raises:
        ValueError: if the cell is neither.
    """
    if spec == "gated" or spec in BASELINE_CELLS:
        return spec
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name.isidentifier() or not spec.isprintable():
        expected = ", ".join(("gated", *BASELINE_CELLS))
        raise ValueError(
            f"{spec[:80]!r} is no cell: expected {expected}, or the class of a cell of your own, "
            "as in my_cells.py:MinGRU"
        )
    if name == "gated" or name in BASELINE_CELLS:
        raise ValueError(f"{spec[:80]!r} has the name of a built-in cell: rename the class")
    return name
