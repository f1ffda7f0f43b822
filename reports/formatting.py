"""Emphasis, names of changes and estimates as text, and the templates.

What is emphasised is marked by :func:`strong`; :func:`to_plain` and :func:`to_html` render marks.
"""

import math
from collections.abc import Sequence
from html import escape

import markupsafe

from reports.stats.design import Contrast
from reports.stats.differences import PairedDifference
from reports.stats.effects import Effect
from reports.stats.shares import SolvedRuns
from studies.measure import Measure
from studies.messages import format_param, format_value, join

_OPEN = "\ufdd0"
_CLOSE = "\ufdd1"
"""Marks around what is emphasised: noncharacters, which no text contains (Unicode 23.7)."""


def strong(text: str) -> str:
    """Mark a text as emphasised."""
    return f"{_OPEN}{text}{_CLOSE}"


def to_plain(text: str) -> str:
    """Return a marked text without emphasis."""
    return text.replace(_OPEN, "").replace(_CLOSE, "")


def to_html(text: str) -> markupsafe.Markup:
    """Return a marked text as HTML."""
    html = str(markupsafe.escape(text))
    html = html.replace(_OPEN, "<strong>").replace(_CLOSE, "</strong>")
    return markupsafe.Markup(html)  # escaped above


def to_sentence(clause: str) -> str:
    """Return a clause with an upper-case first letter and a full stop."""
    start = len(_OPEN) if clause.startswith(_OPEN) else 0
    return f"{clause[:start]}{clause[start : start + 1].upper()}{clause[start + 1 :]}."


def join_params(names: Sequence[str]) -> str:
    """Join the names of parameters, for a reader: ``learning rate and momentum``."""
    return join([format_param(name) for name in names])


def label_change(contrast: Contrast) -> str:
    """Name a change: by its short name, the switch that is turned on, or both values."""
    if contrast.name:
        return contrast.name
    if contrast.after is True:
        return format_param(contrast.parameter)
    before = format_value(contrast.before)
    return f"{format_param(contrast.parameter)} {before} → {format_value(contrast.after)}"


def describe_change(effect: Effect) -> str:
    """Name the parameter and both of its values, and which of them is the best of several."""
    sides = []
    values = (effect.contrast.after, effect.contrast.before)
    for value, variants in zip(values, reversed(effect.variants), strict=True):
        best = f" (best of {variants})" if variants > 1 else ""
        sides.append(f"{format_value(value)}{best}")
    return f"{format_param(effect.contrast.parameter)}: {sides[0]} against {sides[1]}"


def format_estimate(difference: PairedDifference, measure: Measure) -> str:
    """Format a mean difference with its unit and interval: ``−0.399 nats [−0.404, −0.393]``."""
    if math.isnan(difference.mean):
        return "no pair"
    interval = measure.format_interval(difference.low, difference.high)
    return f"{measure.format_difference(difference.mean)}{interval}"


def format_shares(effect: Effect) -> str:
    """Format the shares of runs that are solved before and after a change: ``17% → 75%``."""
    after = effect.solved_before + effect.mean
    return f"{effect.solved_before:.0%} → {after:.0%}"


def format_solved(solved: SolvedRuns) -> str:
    """Format how many runs are solved, with the interval of their share: ``2 of 3 [21%, 94%]``."""
    low, high = solved.interval
    return f"{solved.solved} of {solved.runs} [{low:.0%}, {high:.0%}]"


def shorten_labels(labels: Sequence[str]) -> dict[str, str]:
    """Shorten labels to what differs: without the parts, between commas, that all of them have.

    The first part, with the size of a network, stays.
    """
    parts = [label.split(", ") for label in labels]
    common = set(parts[0][1:]).intersection(*parts) if parts else set()
    return {
        label: ", ".join([first, *(part for part in others if part not in common)])
        for label, (first, *others) in zip(labels, parts, strict=True)
    }


def escape_html(text: object) -> str:
    """Escape a text for Plotly, which renders some HTML."""
    return escape(str(text), quote=False)


def format_number(value: float | None, spec: str) -> str:
    """Format a number by a format specification; None, NaN and infinity give ""."""
    return "" if value is None or not math.isfinite(value) else f"{value:{spec}}"


def format_stderr(error: float | None, spec: str) -> str:
    """Format a standard error to follow its estimate; None and NaN give ""."""
    text = format_number(error, spec)
    return text and f" ± {text}"
