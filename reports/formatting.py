"""Names, texts and units as pages and notes show them, and the templates that use them."""

import math
from html import escape

import jinja2

from reports.stats.scale import add_unit
from studies.config import StudyConfig
from studies.measure import find_measure


def objective_name(config: StudyConfig) -> str:
    """Return the name of the loss that a study minimises, or of an imported value."""
    measure = find_measure(config)
    return f"minimum {measure.name}" if config.objective == "training" else measure.name


def value_axis_title(config: StudyConfig) -> str:
    """Return the title of an axis of trial values."""
    return add_unit(objective_name(config), find_measure(config).unit)


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


def load_templates() -> jinja2.Environment:
    """Create a Jinja environment with the templates of this package."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
