"""Figures and tables → one self-contained HTML page."""

import os
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import jinja2
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from reports import figures
from reports.errors import ReportError
from reports.trials import Results, full_factorial_blocks, read_results
from studies.opening import read_storage

OUTPUT = Path(__file__).parent / "out"
"""Where pages land, unless another place is named."""

FEW = 100
"""Points below which an importance for the best tenth rests on a handful."""

_LONGEST_NAME = 200
"""Of a file, in characters; file systems take 255 bytes."""

BEST = 20
"""Rows of the table of best architectures."""

_BEGINNING = b"<!DOCTYPE html>"

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("reports"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def _number(value: float | None, form: str) -> str:
    """Format a number as the template wants it, and what is not there as nothing."""
    return "" if value is None or pd.isna(value) else f"{value:{form}}"


def _duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"


_TEMPLATES.filters["number"] = _number
_TEMPLATES.filters["duration"] = _duration


@dataclass(frozen=True)
class Drawing:
    """A figure on the page.

    Attributes:
        title: what it shows.
        html: the figure.
        note: how to read it.
    """

    title: str
    html: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A study's part of the page."""

    results: Results
    curves: Drawing
    explained: list[Drawing] = field(default_factory=list)
    below: list[Drawing] = field(default_factory=list)
    below_count: int = 0
    best: int = BEST


def write_report(storage_url: str, names: Sequence[str], output: Path | None = None) -> Path:
    """Write the report of one or several studies.

    Args:
        storage_url: where they are kept; opened for reading only.
        names: of the studies, in the order of the page.
        output: the file to write; by default one named after the studies in :data:`OUTPUT`.

    Returns:
        The file that was written.

    Raises:
        StudiesError: if a study or the storage is not there.
        ReportError: if a study has nothing to report, or the file cannot be written.
    """
    with closing(read_storage(storage_url)) as storage:
        sections = [section_of(read_results(storage, name)) for name in names]
    page = _TEMPLATES.get_template("report.html").render(
        title=", ".join(names),
        sections=sections,
        written=datetime.now().astimezone(),
        plotly_js=get_plotlyjs(),
    )
    path = output or OUTPUT / f"{_file_name(names)}.html"
    try:
        _write(page, path)
    except OSError as error:
        raise ReportError(
            f"the report cannot be written to {path} ({error.strerror}); name another --output"
        ) from error
    return path


def _write(page: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_bytes()[: len(_BEGINNING)] != _BEGINNING:
        raise ReportError(
            f"{path} is there and is no report; it was left as it is; name another --output"
        )
    # Beside and renamed: whoever has the page open never loads half of it.
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.write_text(page, encoding="utf-8")
    beside.replace(path)


def section_of(results: Results) -> Section:
    """Draw all that the page shows of a study."""
    complete = results.complete
    threshold = results.definition.threshold
    below = complete if threshold is None else complete[complete["value"] < threshold]
    curves = Drawing("Every training curve", _html(figures.curves(results)))
    return Section(
        results=results,
        curves=curves,
        explained=_explain(results, list(complete.index), "over all complete points")
        + _explain_blocks(results),
        below=_explain(results, list(below.index), f"below {threshold} nats")
        if threshold is not None and 0 < len(below) < len(complete)
        else [],
        below_count=0 if threshold is None else len(below),
    )


def _explain(
    results: Results, numbers: list[int], where: str, slices: bool = True
) -> list[Drawing]:
    """Draw what the parameters are worth among these trials, if they are enough to tell."""
    study = figures.substudy(results, numbers)
    if not figures.can_explain(study, results.parameters):
        return []
    parameters = figures.varying(study, results.parameters)
    where = f"{where} ({len(numbers)} points)"
    few = (
        f"The best tenth of {len(numbers)} points are {max(1, len(numbers) // 10)}: with so few, "
        "take it as a hint."
    )
    drawings = [
        Drawing(f"{question}, {where}", _html(figure), few if len(numbers) < FEW else "")
        for question, figure in figures.importances(study, parameters).items()
    ]
    if slices:
        figure = figures.slices(study, parameters)
        drawings.append(Drawing(f"Every trial's value over each parameter, {where}", _html(figure)))
    return drawings


def _explain_blocks(results: Results) -> list[Drawing]:
    note = (
        "The grid leaves combinations out, so that over all of it a parameter's importance is "
        "mixed with that of the parameters it excludes; within this block all are there."
    )
    blocks = full_factorial_blocks(results.table, results.parameters)
    complete = results.complete.index
    return [
        Drawing(drawing.title, drawing.html, f"{note} {drawing.note}")
        for name, block in blocks.items()
        for drawing in _explain(
            results, list(block.index.intersection(complete)), f"where {name}", slices=False
        )
    ]


def _html(figure: go.Figure) -> str:
    html: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"displaylogo": False, "responsive": True},
    )
    return html


def _file_name(names: Sequence[str]) -> str:
    return "+".join(re.sub(r"[^\w.-]+", "_", name) for name in names)[:_LONGEST_NAME]
