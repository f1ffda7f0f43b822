"""Render sections as one self-contained HTML page and write it."""

import base64
import gzip
import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import plotly.io
from markupsafe import Markup
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from threadpoolctl import threadpool_limits

from reports import narrative, phrases, tables
from reports.charts import comparison_plots
from reports.charts.chart import Chart
from reports.errors import ReportError
from reports.formatting import (
    format_number,
    load_templates,
    objective_name,
)
from reports.narrative import write_headline
from reports.page import first_screen, page_tables
from reports.page.section import Section, build_sections
from reports.phrases import to_html, to_sentence
from reports.results import Results
from reports.stats.scale import format_count, format_param, format_value
from reports.study_reader import read_studies
from rnn.source_code import generate_module
from studies.files import atomic_write, default_report, require_regular
from studies.storage.open import read_storage
from studies.text import format_duration, to_printable

MAX_TITLE = 20
"""Characters of the title of a horizontal axis. The unit of a longer one is in a second line."""

INK = "#1b1f24"
"""Color of text, in figures as in the style sheet."""


@dataclass(frozen=True)
class Report:
    """Written report.

    Attributes:
        path: path of the file.
        headline: main result in one line, and a line for each warning about it.
    """

    path: Path
    headline: str


def write_report(storage_url: str, names: Sequence[str], output: Path | None = None) -> Report:
    """Write the report of one or several studies.

    Args:
        storage_url: URL of the storage, which is opened read-only.
        names: names of the studies, in the order of the page.
        output: file to write or to replace; by default that of
            :func:`studies.files.default_report`.

    Raises:
        StudiesError: if the storage or a study does not exist.
        ReportError: if a study has no complete trial, or the file cannot be written.
    """
    with closing(read_storage(storage_url)) as storage:
        results = read_studies(storage, names, drawn_only=True)
    return write_page(results, output)


def write_page(results: Sequence[Results], output: Path | None = None) -> Report:
    """Write the report of results in memory; see :func:`write_report`."""
    path = output or default_report([study.name for study in results])
    sections = build_sections(results)
    try:
        require_regular(path)
        with threadpool_limits(limits=1):  # threads would wait for each other: matrices are small
            # Rendered first: a process that is killed meanwhile leaves no part of a file behind.
            pieces = [piece.encode() for piece in render_page(sections)]
        atomic_write(path, pieces)
    except OSError as error:
        raise ReportError(
            f"cannot write the report to {path} ({error.strerror}); choose another path"
        ) from error
    findings = [section.findings for section in sections]
    return Report(path, write_headline(findings, sections[0].across_tasks))


def render_page(sections: Sequence[Section]) -> Iterator[str]:
    """Render the page; yield its HTML in pieces."""
    return (
        _templates()
        .get_template("report.html")
        .generate(
            title=", ".join(dict.fromkeys(section.results.name for section in sections)),
            sections=sections,
            written=datetime.now().astimezone(),
            contents=_Contents(),
            figures=_Figures(),
            plotly_js=_compress_plotly(),
        )
    )


@cache
def _templates() -> jinja2.Environment:
    environment = load_templates()
    environment.filters |= {
        "code": lambda source: Markup(highlight(source, PythonLexer(), HtmlFormatter(nowrap=True))),
        "count": format_count,
        "duration": format_duration,
        "number": format_number,
        "parameter": format_param,
        "shell": shlex.quote,
        "printable": to_printable,
        "value": format_value,
        "objective_name": objective_name,
        "marked": to_html,
        "sentence": to_sentence,
    }
    environment.globals |= {
        "code_styles": _code_styles(),
        "module_code": generate_module,
        "first_screen": first_screen,
        "narrative": narrative,
        "phrases": phrases,
        "tables": tables,
        "page_tables": page_tables,
        "comparison_plots": comparison_plots,
    }
    return environment


class _Contents:
    """Headings of a page, in the order in which its sections are rendered."""

    def __init__(self) -> None:
        self.headings: defaultdict[str, dict[str, str]] = defaultdict(dict)

    def add(self, prefix: str, name: str, title: str) -> str:
        """Add a heading of the section whose ids have a prefix; return its id."""
        self.headings[prefix][f"{prefix}-{name}"] = title
        return f"{prefix}-{name}"


class _Figures:
    """Figures of a page, which follow its text as one compressed block."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def add(self, chart: Chart) -> int:
        """Add the figure of a chart and return its place in the block."""
        figure = chart.figure.to_dict()
        figure["layout"]["template"] = _build_template()
        figure["layout"].pop("width", None)  # a figure is as wide as its place
        for name, axis in figure["layout"].items():
            title = axis.get("title", {}) if name.startswith("xaxis") else {}
            if len(title.get("text", "")) > MAX_TITLE:
                title["text"] = title["text"].replace(" (", "<br>(")
        self._texts.append(to_json_plotly(figure))
        return len(self._texts) - 1

    def compress(self) -> Markup:
        """Return all figures added so far as a compressed JSON list."""
        return _compress(f"[{','.join(self._texts)}]")


@cache
def _compress_plotly() -> Markup:
    return _compress(get_plotlyjs())


def _compress(text: str) -> Markup:
    """Return a text as gzip in Base64, which ``report.js`` reads."""
    return Markup(base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode("ascii"))


@cache
def _build_template() -> dict[str, Any]:
    """Return the template of all figures of the page."""
    template: dict[str, Any] = plotly.io.templates["plotly_white"].to_plotly_json()
    layout = template["layout"]
    layout |= {
        "font": {"family": "system-ui, sans-serif", "color": INK, "size": 13},
        "margin": {"l": 60, "r": 20, "t": 10, "b": 60},
        # At the side of a figure, a legend or the title of a color bar leaves no room on a phone.
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    }
    # A name at an axis touches its bar otherwise.
    layout["yaxis"] |= {"ticklabelstandoff": 4}
    styles = template["data"]
    # Plotly chooses the wrong text color on half-transparent cells.
    styles["heatmap"][0]["textfont"] = {"color": INK}
    bar = {"title": {"side": "right"}, "thickness": 14}
    markers = styles["scatter"][0].setdefault("marker", {})
    for style in (styles["heatmap"][0], markers):
        style["colorbar"] = style.get("colorbar", {}) | bar
    return template


@cache
def _code_styles() -> Markup:
    """Return the style sheet of source code."""
    styles: str = HtmlFormatter(style="xcode").get_style_defs(".code")  # type: ignore[no-untyped-call]
    return Markup(styles)
