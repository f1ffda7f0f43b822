"""Text of messages that commands and reports share."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rnn.errors import UserError

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~&#$!])")
"""Characters with a meaning in Markdown, in a line of text or a table."""

_UNPRINTABLE = re.compile("[^\n\t -~\xa0-\ud7ff\ue000-\U0010ffff]")


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, minutes, hours or days: ``45 s``, ``2.5 min``, ``30 h``."""
    value = seconds
    unit = "s"
    for name, length in (("min", 60), ("h", 3600), ("days", 86400)):
        if seconds >= 2 * length:
            value = seconds / length
            unit = name
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


def format_bytes(size: float) -> str:
    """Format a number of bytes: ``812 bytes``, ``12.3 MB``."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= length:
            return f"{size / length:.1f} {unit}"
    return f"{size:.0f} bytes"


def shorten(text: str, length: int = 80) -> str:
    """Cut text from the user for a message, with an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the question ``did you mean 'steps'? `` for a name that is close to a known one."""
    similar = difflib.get_close_matches(name, known, 1)
    return f"did you mean {similar[0]!r}? " if similar else ""


def expect_one_of(known: Iterable[str], name: str) -> str:
    """Return the part of a message that says which names were expected in place of another."""
    names = list(known)
    return f"{did_you_mean(name, names)}expected one of {', '.join(names)}"


def join(parts: Sequence[str]) -> str:
    """Join phrases: ``a``, ``a and b``, ``a, b and c``."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def to_line(text: str) -> str:
    """Return text as one line."""
    return " ".join(text.splitlines())


def escape_markdown(text: object) -> str:
    """Return a text as one line that Markdown shows literally, in tables as well."""
    return _MARKDOWN.sub(r"\\\1", " ".join(str(text).split()))


_MAX_RANGES = 20
"""Ranges of numbers of trials that a message lists."""


def format_trials(numbers: Iterable[int]) -> str:
    """Format the numbers of trials, in any order: ``trial 3`` or ``trials 0-31, 40``.

    Of more than 20 ranges the first are listed, and the total follows.
    """
    ranges: list[list[int]] = []
    count = 0
    for number in sorted(numbers):
        count += 1
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    shown = ", ".join("-".join(map(str, ends)) for ends in ranges[:_MAX_RANGES])
    others = f" and others, {count:,} in all" if len(ranges) > _MAX_RANGES else ""
    return f"trial{'s' * (count > 1)} {shown}{others}"


def to_printable(text: str | bytes) -> str:
    """Return text that is safe to show in a terminal or a page.

    Invalid UTF-8 and control characters except line breaks and tabs become U+FFFD.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    return _UNPRINTABLE.sub("\ufffd", text)


def study_name(value: str) -> str:
    """Return the name of a study, given its name or the path of its TOML file."""
    return Path(value).stem if value.endswith(".toml") else value


MAX_NAME_LENGTH = 200


def check_study_name(name: str) -> None:
    """Require a name that a storage can hold.

    Raises:
        UserError: if it is no text, too long or blank, or would name a study file.
    """
    if not isinstance(name, str):
        raise UserError(f"study name is {shorten(repr(name))}: expected a text")
    if len(name) > MAX_NAME_LENGTH:
        raise UserError(
            f"study name of {len(name)} characters is too long: expected at most {MAX_NAME_LENGTH}"
        )
    if not name.strip():
        raise UserError(f"study name {name!r} is blank: expected some characters")
    if name.endswith(".toml"):
        raise UserError(
            f"study name {name!r} ends in .toml, as the names of study files do: expected another"
        )


# ------------------------------------------------------------------ names and numbers

_CELLS = {"elman": "Elman", "gru": "GRU", "lstm": "LSTM"}

_HUGE = 1e7
"""Difference from which digits say nothing: of training that went astray without diverging."""


def format_param(name: str) -> str:
    """Format the name of a parameter: ``input gate`` for ``input_gate``."""
    return name.replace("_", " ")


def format_value(value: Any) -> str:
    """Format the value of a parameter: on and off for a switch, ``LSTM`` for ``lstm``.

    A missing value gives "". Numbers are shown as Python writes them: ``0.001``, ``1e-05``.
    """
    if is_missing(value):
        return ""
    if _is_bool(value):
        return "on" if value else "off"
    return _CELLS.get(value, str(value))


def _is_bool(value: Any) -> bool:
    """Return whether a value is a bool of Python or NumPy, which is slow to import."""
    return type(value).__name__ in ("bool", "bool_")


def is_missing(value: Any) -> bool:
    """Return whether a scalar of a frame is a missing value: None, NaN or ``pandas.NA``."""
    # To compare pandas.NA gives pandas.NA, which is not imported here: importing pandas is slow.
    is_unequal = value != value
    return value is None or not _is_bool(is_unequal) or bool(is_unequal)


def add_unit(name: str, unit: str) -> str:
    """Return a title with its unit in parentheses, if there is one."""
    return f"{name} ({unit})" if unit else name


def format_signed(value: float, spec: str = ".3f") -> str:
    """Format a difference with its sign, using a minus sign of the width of a plus."""
    spec = ".3g" if abs(value) >= _HUGE else spec
    return f"{value:+{spec}}".replace("-", "−")


def format_pairs(pairs: int, seeds: float = 1) -> str:
    """Format a number of pairs of architectures and of runs of each: ``8 pairs × 3 seeds``."""
    text = format_count(pairs, "pair")
    return text if seeds == 1 else f"{text} × {seeds:.3g} seeds"


def format_count(count: int, singular: str, plural: str | None = None) -> str:
    """Format a count with its noun: ``1 pair``, ``1,200 pairs``."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
