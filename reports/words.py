"""What parameters and their values are called where a person reads them."""

from html import escape
from typing import Any

LOSS = "smoothed loss (nats a byte)"
"""A trial's value, on an axis."""


def parameter_word(parameter: str) -> str:
    """Return a parameter's name: ``input gate`` for ``input_gate``."""
    return parameter.replace("_", " ")


def value_word(value: Any) -> str:
    """Return a value's name: on and off for a switch."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def plain(text: object) -> str:
    """Return a text from a database such that plotly, which takes some HTML, shows it as it is."""
    return escape(str(text), quote=False)


def number_word(value: float | None, form: str) -> str:
    """Format a number; what is not there, or not a number, is nothing."""
    return "" if value is None or value != value else f"{value:{form}}"


def signed(value: float) -> str:
    """Return a difference in nats with its sign, and a minus that is as wide as a plus."""
    return f"{value:+.3f}".replace("-", "−")


def duration_word(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def count_word(count: int, singular: str, plural: str | None = None) -> str:
    """Return a count with its noun: ``1 pair``, ``1,200 pairs``."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
