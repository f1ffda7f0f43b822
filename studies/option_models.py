"""Options of a command as a model, from which the command line and Python derive theirs.

A field of such a model says what an option means, which values it takes and what its default is. A
command makes its options of the fields, a function of the API checks its arguments by them.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from rnn.errors import UserError
from studies.messages import shorten
from studies.records import StrictModel, first_message


class Options(StrictModel):
    """Options of a command.

    Attributes:
        is_command: whether the options come from a command line, which messages then name.
    """

    is_command: bool = True


_Options = TypeVar("_Options", bound=Options)


def option(default: Any, text: str, **command_line: Any) -> Any:
    """Describe an option.

    Args:
        default: its default.
        text: what it means.
        command_line: what the command line has in addition, as in ``click.option``, and ``flag`` if
            it is not the field's name.
    """
    return Field(default=default, description=text, json_schema_extra=command_line)


def build_options(model: type[_Options], **values: Any) -> _Options:
    """Return options that a user gives.

    Raises:
        UserError: if one is invalid, in one line.
    """
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        shown = _words_of(model, name)[0] if values.get("is_command", True) else name
        message = first_message(error)
        raise UserError(f"{shown} is {shorten(repr(first['input']))}: {message}") from error


def flag_of(model: type[Options], name: str) -> str:
    """Return the option of the command line that sets a field, as click declares it."""
    field = model.model_fields[name]
    extra: Any = field.json_schema_extra or {}
    flag = str(extra.get("flag", f"--{name.replace('_', '-')}"))
    if field.annotation == bool | None and "/" not in flag:
        return f"{flag}/--no-{flag.removeprefix('--')}"
    return flag


def _words_of(model: type[Options], name: str) -> tuple[str, str]:
    """Return the words of the command line that turn a field on and off."""
    on, _, off = flag_of(model, name).partition("/")
    return on, off or f"--no-{on.removeprefix('--')}"


def to_words(options: Options, names: Iterable[str] | None = None) -> list[str]:
    """Return the words of a command line that state options, without those that are defaults.

    All options, or those of some names.
    """
    words: list[str] = []
    if names is None:
        names = [name for name in type(options).model_fields if name not in Options.model_fields]
    for name in names:
        field = type(options).model_fields[name]
        extra: Any = field.json_schema_extra or {}
        value = getattr(options, name)
        on, off = _words_of(type(options), name)
        if value == field.default:
            continue
        if isinstance(value, bool):
            is_on = value or on.startswith("--no-")
            words.append(on if is_on else off)
        elif isinstance(value, tuple) and extra.get("multiple", True):
            words += [word for item in value for word in (on, item)]
        elif isinstance(value, tuple):
            words += [on, ",".join(value)]
        else:
            words += [on, f"{value:f}s" if name == "until" else str(value)]
    return words
