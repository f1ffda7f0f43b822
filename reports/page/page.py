"""Numbers, figures and words → one self-contained HTML page."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import plotly.io
from latex2mathml.converter import convert
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from reports.charts.chart import Chart
from reports.charts.effect_plots import effect_color
from reports.data.results import Results, read_results
from reports.errors import ReportError
from reports.formatting import (
    format_count,
    format_number,
    format_param,
    format_signed,
    format_stderr,
    format_value,
    load_templates,
    loss_unit,
    objective_name,
)
from reports.output import OUTPUT, choose_path, identity_tag, report_identity
from reports.page.headline import headline_of
from reports.page.sections import Section, sections_of
from rnn.codegen import generate_forward, generate_latex, generate_module
from studies.artifacts import atomic_write
from studies.storage.open import read_storage
from studies.text import format_duration, to_printable

_LONGEST_NAME = 180
"""Of a file, in bytes; file systems take 255, and others are added."""

_BEGINNING = b"<!DOCTYPE html>"

_THEMES = {"light": "plotly_white", "dark": "plotly_dark"}


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        path: the file.
        note: one line for the user if the file is not the one to be expected; else "".
        headline: the main result, in one line.
    """

    path: Path
    note: str
    headline: str


def write_report(
    storage_url: str, names: Sequence[str], output: Path | None = None, renewed: int | None = None
) -> Report:
    """Write the report of one or several studies.

    Args:
        storage_url: where they are kept; opened for reading only.
        names: of the studies, in the order of the page.
        output: the file to write; by default one named after the studies in :data:`OUTPUT`, see
            :func:`reports.output.choose_path`.
        renewed: seconds after which it is written anew, and loads itself again; None if it is not.

    Raises:
        StudiesError: if a study or the storage is not there.
        ReportError: if a study has nothing to report, the file cannot be written, or it exists and
            reports something else.
    """
    with closing(read_storage(storage_url)) as storage:
        results = [read_results(storage, name) for name in names]
    return write_page(results, output, renewed)


def write_page(
    results: Sequence[Results], output: Path | None = None, renewed: int | None = None
) -> Report:
    """Write the report of results that are read already; see :func:`write_report`."""
    identity = report_identity(each.identity for each in results)
    default = OUTPUT / f"{_file_name([each.name for each in results])}.html"
    path = output or default.absolute()
    sections = sections_of(results)
    try:
        path, note = choose_path(path, output is None, identity, _BEGINNING)
        # Piece by piece: a page of some megabytes would be there several times at once.
        atomic_write(path, (piece.encode() for piece in render(sections, renewed)))
    except OSError as error:
        raise ReportError(
            f"the report cannot be written to {path} ({error.strerror}); name another --output"
        ) from error
    return Report(path, note, headline_of(sections))


def render(sections: Sequence[Section], renewed: int | None = None) -> Iterator[str]:
    """Return the page as HTML, in pieces."""
    identity = report_identity(section.results.identity for section in sections)
    return (
        _templates()
        .get_template("report.html")
        .generate(
            identity_tag=Markup(identity_tag(identity)),
            title=", ".join(section.results.name for section in sections),
            sections=sections,
            written=datetime.now().astimezone(),
            renewed=renewed,
            next_id=itertools.count().__next__,
            plotly_js=Markup(get_plotlyjs()),
            themes=_embedded({name: _theme(template) for name, template in _THEMES.items()}),
        )
    )


@cache
def _templates() -> jinja2.Environment:
    environment = load_templates()
    environment.filters |= {
        "code": _code,
        "count": format_count,
        "duration": format_duration,
        "embedded": _embedded,
        "error": format_stderr,
        "figure": _figure,
        "math": lambda latex: Markup(convert(latex)),
        "nats": loss_unit,
        "number": format_number,
        "parameter": format_param,
        "readable": to_printable,
        "signed": format_signed,
        "objective_name": objective_name,
    }
    environment.globals |= {
        "code_styles": _code_styles(),
        "effect_color": effect_color,
        "equations": generate_latex,
        "layer_code": generate_forward,
        "module_code": generate_module,
        "format_value": format_value,
    }
    return environment


def _figure(drawing: Chart) -> Markup:
    """Return a figure as JSON; what all figures look like is said once, for light and for dark."""
    figure = json.loads(drawing.figure.to_json())
    figure["layout"].pop("template", None)
    return _embedded(figure)


def _embedded(value: Any) -> Markup:
    """Return a value as JSON that stays data within a script element, whatever texts are in it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c"))


def _theme(template: str) -> dict[str, Any]:
    theme: dict[str, Any] = plotly.io.templates[template].to_plotly_json()
    return theme


def _code(source: str) -> Markup:
    """Return Python with its words marked for colouring."""
    return Markup(highlight(source, PythonLexer(), HtmlFormatter(nowrap=True)))


def _code_styles() -> Markup:
    themes = {".code": "xcode", ':root[data-theme="dark"] .code': "github-dark"}
    styles: list[str] = [
        HtmlFormatter(style=style).get_style_defs(selector)  # type: ignore[no-untyped-call]
        for selector, style in themes.items()
    ]
    return Markup("\n".join(styles))


def _file_name(names: Sequence[str]) -> str:
    """Return a file's name for studies; two studies never get the same."""
    plain = "+".join(re.sub(r"[^\w.-]+", "_", name) for name in names)
    cut = plain.encode()[:_LONGEST_NAME].decode(errors="ignore")
    if cut == "+".join(names):
        return cut
    return f"{cut}-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]}"
