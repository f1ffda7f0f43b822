"""What parameters and their values are called where a person reads them."""
# TODO-MERGE How templates are read: for the page, the note and the picture alike.

import re
from html import escape
from typing import Any

import jinja2

from studies.config import StudyConfig

_OBJECTIVES = {"training": "least smoothed training loss", "validation": "loss on held-out text"}

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~&#$!])")
"""Characters with a meaning in Markdown, in a line of text or a table."""

_CELLS = {"elman": "Elman", "gru": "GRU", "lstm": "LSTM"}


def value_name(config: StudyConfig) -> str:
    """Return what a trial's value is, by the study's objective."""
    return _OBJECTIVES[config.objective]


def nats_word(config: StudyConfig) -> str:
    """Return the unit of a loss: ``nats a byte``, or ``nats a token``."""
    return f"nats a {config.token_name}"


def loss_axis(config: StudyConfig) -> str:
    """Return what stands at an axis of trials' values."""
    return f"{value_name(config)} ({nats_word(config)})"


def curve_axis(config: StudyConfig) -> str:
    """Return what stands at an axis of curves, which are of the training whatever the objective."""
    return f"smoothed training loss ({nats_word(config)})"


def worth_title(is_gated: bool) -> str:
    """Return the title of what stands for the worth of each change."""
    return f"What each {'switch' if is_gated else 'choice'} is worth"


def parameter_word(parameter: str) -> str:
    """Return a parameter's name: ``input gate`` for ``input_gate``."""
    return parameter.replace("_", " ")


def value_word(value: Any) -> str:
    """Return a value's name: on and off for a switch, ``LSTM`` for ``lstm``."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return _CELLS.get(value, str(value))


def plain(text: object) -> str:
    """Return a text from a database such that plotly, which takes some HTML, shows it as it is."""
    return escape(str(text), quote=False)


def escape_markdown(text: object) -> str:
    """Return a text as one line that Markdown shows literally, in tables as well."""
    return _MARKDOWN.sub(r"\\\1", " ".join(str(text).split()))


def number_word(value: float | None, form: str) -> str:
    """Format a number; what is not there, or not a number, is nothing."""
    return "" if value is None or value != value else f"{value:{form}}"


def error_word(error: float | None, form: str) -> str:
    """Return a standard error as it stands behind a number; nothing where there is none."""
    word = number_word(error, form)
    return word and f" ± {word}"


def signed(value: float, digits: int = 3) -> str:
    """Return a difference with its sign, and a minus that is as wide as a plus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def count_word(count: int, singular: str, plural: str | None = None) -> str:
    """Return a count with its noun: ``1 pair``, ``1,200 pairs``."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def templates(escaping: bool = True) -> jinja2.Environment:
    """Return a new environment of this package's templates, to be filled with what they use.

    Args:
        escaping: texts for HTML and SVG; not so where the template makes neither.
    """
    return jinja2.Environment(
        loader=jinja2.PackageLoader("reports"),
        autoescape=escaping,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
