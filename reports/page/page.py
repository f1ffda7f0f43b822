"""Render studies as one self-contained HTML page and write it."""

import base64
import gzip
from collections.abc import Iterator, Mapping, Sequence
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

from reports.blocks import Block, Section, Text
from reports.charts.chart import MARGIN, Chart
from reports.findings import StudyFindings, TaskComparison, compare_across_tasks
from reports.formatting import to_html, to_sentence
from reports.page.first_screen import Fact, choose_chart, choose_title, list_facts
from reports.page.study_sections import list_sections
from reports.results import Results
from reports.sentences import list_agreement, list_answer, list_headline, list_warnings
from reports.study_reader import read_studies
from reports.study_tables import tabulate_across_tasks
from rnn.errors import UserError
from studies.atomic_files import atomic_write, default_report, require_regular
from studies.storage.open import read_storage

MAX_TITLES = {"xaxis": 28, "yaxis": 32}
"""Characters of the title of an axis. The unit of a longer one is in a second line."""

INK = "#1b1f24"
"""Color of text, in figures as in the style sheet."""


@dataclass(frozen=True)
class Report:
    """Written report.

    Attributes:
        headline: lines of the answer and the warnings, for a terminal.
    """

    path: Path
    headline: list[str]


@dataclass(frozen=True)
class Part:
    """A part of the page: a study, one of its tasks, or what the tasks have in common.

    Attributes:
        prefix: beginning of its ids.
        name: its name in the contents.
        warnings: what a reader of the answer must know.
        chart: figure of its first screen; None for none.
        facts: numbers that limit the answer.
    """

    prefix: str
    name: str
    title: str
    answer: Sequence[str]
    warnings: Sequence[str] = ()
    chart: Chart | None = None
    facts: Sequence[Fact] = ()
    sections: Sequence[Section] = ()


def write_report(storage_url: str, names: Sequence[str], output: Path | None = None) -> Report:
    """Write the report of one or several studies.

    Args:
        storage_url: URL of the storage, which is opened read-only.
        names: names of the studies, in the order of the page.
        output: file to write or to replace; by default that of
            :func:`studies.atomic_files.default_report`.

    Raises:
        UserError: if the storage or a study does not exist.
        UserError: if a study has no complete trial, or the file cannot be written.
    """
    with closing(read_storage(storage_url)) as storage:
        results = read_studies(storage, names, drawn_only=True)
    return write_page(results, output)


def write_page(results: Sequence[Results], output: Path | None = None) -> Report:
    """Write the report of results in memory; see :func:`write_report`."""
    path = output or default_report([study.name for study in results])
    findings, across_tasks = find_all(results)
    try:
        require_regular(path)
        with threadpool_limits(limits=1):  # threads would wait for each other: matrices are small
            # Rendered first: a process that is killed meanwhile leaves no part of a file behind.
            parts = list_parts(findings, across_tasks)
            pieces = [piece.encode() for piece in render_page(parts)]
        atomic_write(path, pieces)
    except OSError as error:
        raise UserError(
            f"cannot write the report to {path} ({error.strerror}); choose another path"
        ) from error
    return Report(path, list_headline(findings, across_tasks))


def find_all(
    results: Sequence[Results],
) -> tuple[list[StudyFindings], dict[str, TaskComparison]]:
    """Return the findings of studies, of several tasks those of each, and their comparisons."""
    found = [StudyFindings(part) for study in results for part in study.split_tasks()]
    comparisons = {}
    for study in results:
        of_study = [findings for findings in found if findings.results.name == study.name]
        comparison = compare_across_tasks(of_study)
        if comparison is not None:
            comparisons[study.name] = comparison
    return found, comparisons


def list_parts(
    findings: Sequence[StudyFindings], across_tasks: Mapping[str, TaskComparison]
) -> list[Part]:
    """List the parts of a page; the comparison of several tasks precedes them."""
    parts: list[Part] = []
    compared: set[str] = set()
    for found in findings:
        name = found.results.name
        if name in across_tasks and name not in compared:
            compared.add(name)
            parts.append(_compare_tasks(f"s{len(parts) + 1}", across_tasks[name]))
        parts.append(_show_study(f"s{len(parts) + 1}", found))
    return parts


def _compare_tasks(prefix: str, comparison: TaskComparison) -> Part:
    note = (
        "The mean difference over the same pairs in each task, with its 95% interval. * marks "
        "those significant after correction for all changes in all tasks. Losses of different "
        "tasks do not compare: their signs do."
    )
    blocks: list[Block] = []
    if comparison.contrasts:
        blocks = [tabulate_across_tasks(comparison), Text([note], is_note=True)]
    section = Section("tasks", "Effects by task", blocks)
    title = f"{comparison.name}, across tasks"
    return Part(prefix, title, "Across tasks", list_agreement(comparison), sections=[section])


def _show_study(prefix: str, findings: StudyFindings) -> Part:
    results = findings.results
    chart = choose_chart(findings)
    return Part(
        prefix,
        results.title,
        choose_title(results),
        list_answer(findings),
        list_warnings(findings),
        chart,
        list_facts(findings),
        list_sections(findings, chart),
    )


def render_page(parts: Sequence[Part]) -> Iterator[str]:
    """Render the page; yield its HTML in pieces."""
    return (
        _templates()
        .get_template("report.html")
        .generate(
            title=", ".join(part.name for part in parts),
            parts=parts,
            written=datetime.now().astimezone(),
            figures=_Figures(),
            plotly_js=_compress_plotly(),
        )
    )


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "code": lambda source: Markup(highlight(source, PythonLexer(), HtmlFormatter(nowrap=True))),
        "marked": to_html,
        "sentence": to_sentence,
    }
    environment.globals["code_styles"] = _code_styles()
    return environment


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
            limit = MAX_TITLES.get(name[:5])
            title = axis.get("title", {}) if limit else {}
            if limit and len(title.get("text", "")) > limit:
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
    return Markup(base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode("ascii"))


@cache
def _build_template() -> dict[str, Any]:
    template: dict[str, Any] = plotly.io.templates["plotly_white"].to_plotly_json()
    layout = template["layout"]
    layout |= {
        "font": {"family": "system-ui, sans-serif", "color": INK, "size": 13},
        "margin": MARGIN,
        # At the side of a figure, a legend or the title of a color bar leaves no room on a phone.
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    }
    for axis in ("xaxis", "yaxis"):
        layout[axis]["title"] = layout[axis].get("title", {}) | {"font": {"size": 13}}
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
    styles: str = HtmlFormatter(style="xcode").get_style_defs(".code")  # type: ignore[no-untyped-call]
    return Markup(styles)
