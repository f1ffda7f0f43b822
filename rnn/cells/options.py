"""Options of a cell: the annotated keyword arguments of its constructor."""

import inspect
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Literal

from rnn.config import RESERVED_OPTION_NAMES, ParamValue
from rnn.errors import CellError

OptionType = Literal["bool", "int", "float", "str"]

_TYPES: dict[type, OptionType] = {bool: "bool", int: "int", float: "float", str: "str"}
_INT_LIMIT = 2**63
"""Integers of study files have 64 bits."""

_SIZES = ("input_size", "state_size")
_EXPECTED_TYPES = "bool, int, float, str or Literal[…] of one of them"


@dataclass(frozen=True)
class CellOption:
    """An option of a cell.

    Attributes:
        type: name of the type of its values.
        choices: its values if they are listed, as by ``Literal``; None for any value of the type.
        default: its value where none is given.
    """

    type: OptionType
    choices: tuple[ParamValue, ...] | None
    default: ParamValue

    @property
    def description(self) -> str:
        """What the option takes, for messages."""
        if self.choices is None:
            return "int of 64 bits" if self.type == "int" else self.type
        return f"one of {', '.join(map(_shorten, self.choices))}"

    def convert(self, value: object) -> ParamValue | None:
        """Return a value as one of this option, an integer as a float; None if it is not one."""
        if self.type == "float" and type(value) is int:
            try:
                value = float(value)
            except OverflowError:
                return None
        if type(value) not in _TYPES or _TYPES[type(value)] != self.type:
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if type(value) is int and not -_INT_LIMIT <= value < _INT_LIMIT:
            return None
        if isinstance(value, str) and not _is_unicode(value):
            return None
        if self.choices is not None and value not in self.choices:
            return None
        return typing.cast(ParamValue, value)


def _is_unicode(text: str) -> bool:
    """Return whether a text can be stored; half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def cell_options(cls: type) -> dict[str, CellOption]:
    """Return the options of a cell, in the order of its constructor.

    Raises:
        CellError: if the constructor lacks ``input_size`` or ``state_size``, or has an argument
            that cannot be an option.
    """
    name = cls.__name__
    constructor = cls.__init__  # type: ignore[misc]
    parameters = dict(list(inspect.signature(constructor).parameters.items())[1:])  # without self
    for size in _SIZES:
        if size not in parameters or parameters[size].kind in _VARIADIC:
            raise CellError(
                f"cell {name} has no argument {size}: expected "
                "__init__(self, input_size, state_size, *, …)"
            )
    try:
        hints = typing.get_type_hints(constructor)
    except (Exception, SystemExit) as error:  # an annotation is any code
        raise CellError(
            f"an annotation of the constructor of cell {name} cannot be resolved ({error}): "
            "expected names that the file defines or imports"
        ) from error
    return {
        option: _read_option(name, parameter, hints)
        for option, parameter in parameters.items()
        if option not in _SIZES
    }


_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def _read_option(name: str, parameter: Parameter, hints: Mapping[str, Any]) -> CellOption:
    option = parameter.name
    if parameter.kind in (*_VARIADIC, Parameter.POSITIONAL_ONLY):
        raise CellError(
            f"cell {name} has an argument {parameter}: expected only keyword arguments with an "
            "annotation and a default"
        )
    if option in RESERVED_OPTION_NAMES:
        raise CellError(
            f"cell {name} has an option {option}, which is the name of another parameter or result "
            "of a trial: rename the option"
        )
    if option not in hints:
        raise CellError(
            f"option {option} of cell {name} has no annotation: expected {_EXPECTED_TYPES}"
        )
    if parameter.default is Parameter.empty:
        raise CellError(
            f"option {option} of cell {name} has no default: expected one, as in "
            f"{option}: … = value"
        )
    kind, choices = _read_type(hints[option])
    if kind is None:
        raise CellError(
            f"option {option} of cell {name} is annotated {_describe_type(hints[option])}: "
            f"expected {_EXPECTED_TYPES}"
        )
    described = CellOption(kind, choices, False)
    default = described.convert(parameter.default)
    if default is None:
        raise CellError(
            f"default of option {option} of cell {name} is {_shorten(parameter.default)}: "
            f"expected {described.description}"
        )
    return CellOption(kind, choices, default)


def _read_type(hint: Any) -> tuple[OptionType | None, tuple[ParamValue, ...] | None]:
    """Return the name of an annotation's type and its choices; None if it is not supported."""
    if isinstance(hint, type) and hint in _TYPES:
        return _TYPES[hint], None
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        kinds = {type(choice) for choice in choices}
        if len(kinds) == 1 and (kind := kinds.pop()) in _TYPES:
            return _TYPES[kind], choices
    return None, None


def check_option_values(
    name: str, options: Mapping[str, CellOption], values: Mapping[str, object]
) -> dict[str, ParamValue]:
    """Check the values of a cell's options.

    Args:
        name: name of the class.
        options: its options.
        values: values by option; the others keep their defaults.

    Returns:
        The values, integers of float options as floats.

    Raises:
        CellError: if an option does not exist or a value is of another type.
    """
    checked = {}
    for option, value in values.items():
        if option not in options:
            expected = ", ".join(f"{each} ({options[each].description})" for each in options)
            raise CellError(
                f"cell {name} has no option {option}: expected {expected or 'none, it has none'}"
            )
        converted = options[option].convert(value)
        if converted is None:
            raise CellError(
                f"option {option} of cell {name} is {_shorten(value)}: "
                f"expected {options[option].description}"
            )
        checked[option] = converted
    return checked


def _describe_type(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)[:100]


def _shorten(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # of a user's object, or too many digits
        text = f"<{type(value).__name__}>"
    return " ".join(text[:100].split())
