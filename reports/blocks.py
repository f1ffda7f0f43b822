"""Blocks of which a page consists: text, facts, code, figures and tables.

``templates/blocks.html`` renders each kind. A table is one list of columns for HTML, and for the
CSV that a reader downloads; a column is its heading, what a row has in it, and the format of its
numbers. Columns that a study lacks are left out by their condition.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from html import escape
from typing import Any, Generic, TypeVar

from reports.charts.chart import Chart
from reports.formatting import format_number, strong, to_html
from studies.messages import is_missing

Row = TypeVar("Row")

TEXT = "s"
"""Format of values that are text already and stand under numbers, such as those of parameters."""

MARK = " *"
"""Follows an estimate that is significant."""

LONG = 30
"""Characters from which a text wants a wide column: it would make a row high in a narrow one."""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table.

    Attributes:
        title: heading for a reader.
        value: what a row has in it. None, NaN and infinity are missing.
        spec: format of its numbers, which are aligned to the right; "" for text.
        unit: unit of the numbers, or another remark about them.
        ends: ends of the interval of the value.
        note: what follows the value for a reader, such as a mark or a standard error.
        hint: more about a cell, which a page shows when a reader points at it.
    """

    title: str
    value: Callable[[Row], Any]
    spec: str = ""
    _: KW_ONLY
    unit: str = ""
    ends: Callable[[Row], tuple[float, float]] | None = None
    note: Callable[[Row], str] | None = None
    hint: Callable[[Row], Any] | None = None
    condition: object = True
    is_strong: bool = False

    def format(self, row: Row) -> tuple[str, str]:
        """Return a cell for a reader: the value, and its interval; "" for what is missing.

        It may have marks of :func:`reports.formatting.strong`.
        """
        text = _format(self.value(row), self.spec)
        ends = ""
        if self.ends:
            low, high = (_format(end, self.spec) for end in self.ends(row))
            ends = f" [{low}, {high}]" if low and high else ""
        text += self.format_note(row)
        if self.spec:
            text = text.replace("-", "−")
        return strong(text) if self.is_strong and text else text, ends.replace("-", "−")

    def format_note(self, row: Row) -> str:
        """Return what follows the value of a cell; "" where there is none."""
        return self.note(row) if self.note and _format(self.value(row), self.spec) else ""


def _format(value: Any, spec: str) -> str:
    if is_missing(value):
        return ""
    return str(value) if isinstance(value, str) or not spec else format_number(value, spec)


class Table(Generic[Row]):
    """Rows with columns.

    Attributes:
        name: what the table shows; also the name of the file when a reader downloads it.
        columns: the columns whose condition holds.
    """

    def __init__(self, name: str, rows: Iterable[Row], columns: Sequence[Column[Row]]) -> None:
        self.name = name
        self.rows = list(rows)
        self.columns = [column for column in columns if column.condition]

    def __html__(self) -> str:
        """Return the table as HTML that scrolls within its own width.

        The first column is the heading of its row if it is text. ``data-`` attributes hold full
        numbers, by which a page sorts, and which it writes as CSV: ``data-more`` is what this file
        has in further columns, the ends of an interval and what follows a value.
        """
        noted = [any(map(column.format_note, self.rows)) for column in self.columns]
        heads = "".join(map(_render_head, self.columns, noted))
        rows = "\n".join(f"<tr>{self._render_row(row, noted)}</tr>" for row in self.rows)
        return (
            f'<div class="scroll" tabindex="0">\n<table class="sortable">\n'
            f"<caption>{escape(self.name)}</caption>\n<thead><tr>{heads}</tr></thead>\n"
            f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n"
        )

    def _render_row(self, row: Row, noted: Sequence[bool]) -> str:
        cells = zip(self.columns, noted, strict=True)
        return "".join(
            _render_cell(column, row, index, is_noted)
            for index, (column, is_noted) in enumerate(cells)
        )


def _render_head(column: Column[Any], is_noted: bool) -> str:
    unit = f" <small>{escape(column.unit)}</small>" if column.unit else ""
    more = _render_more((["from", "to"] if column.ends else []) + (["note"] if is_noted else []))
    style = ' class="number"' if column.spec else ""
    return f'<th scope="col"{style}{more}><span>{escape(column.title)}</span>{unit}</th>'


def _render_more(fields: Sequence[str]) -> str:
    return f' data-more="{escape(",".join(fields))}"' if fields else ""


def _render_cell(column: Column[Row], row: Row, index: int, is_noted: bool) -> str:
    text, ends = (str(to_html(part)) for part in column.format(row))
    attributes = ""
    if column.spec:
        attributes += f' class="number" data-sort="{escape(_format(column.value(row), ".10g"))}"'
    elif len(text) > LONG:
        attributes += ' class="long"'
    more = [_format(end, ".10g") for end in column.ends(row)] if column.ends else []
    attributes += _render_more(more + ([column.format_note(row).strip()] if is_noted else []))
    if column.hint and (hint := _format(column.hint(row), "")):
        attributes += f' title="{escape(hint)}"'
    ends = f" <small>{ends.strip()}</small>" if ends else ""
    if index or column.spec:
        return f"<td{attributes}>{text}{ends}</td>"
    return f'<th scope="row"{attributes}>{text}</th>'


def estimate_column(
    title: str,
    estimate: Callable[[Any], Any],
    unit: str,
    spec: str,
    note: Callable[[Any], str] | None = None,
    condition: object = True,
) -> Column[Any]:
    """Return the column of an estimate with its interval, marked where it is significant.

    A row without an estimate has None. A note replaces the mark.
    """

    def get(row: Any, name: str) -> Any:
        return getattr(estimate(row), name) if estimate(row) else math.nan

    def mark(row: Any) -> str:
        return MARK if getattr(estimate(row), "is_significant", False) else ""

    return Column(
        title,
        lambda row: get(row, "mean"),
        spec,
        unit=unit,
        ends=lambda row: (get(row, "low"), get(row, "high")),
        note=note or mark,
        condition=condition,
    )


# ------------------------------------------------------------------ other blocks


@dataclass(frozen=True)
class Text:
    """A paragraph of sentences, which may have marks of :func:`reports.formatting.strong`.

    Attributes:
        is_note: whether it is set smaller, as a caption.
    """

    sentences: Sequence[str]
    is_note: bool = False


@dataclass(frozen=True)
class Facts:
    """Names and values, a line for each."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """Source code, or another text of fixed width, that a reader can copy.

    Attributes:
        language: ``python``, or ``text`` for one that is not highlighted.
    """

    text: str
    language: str = "python"


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown on request."""

    summary: str
    blocks: "Sequence[Block]"


@dataclass(frozen=True)
class Pair:
    """Figures side by side, where there is room."""

    charts: Sequence[Chart]


Block = Text | Facts | Code | Folded | Pair | Chart | Table[Any]


@dataclass(frozen=True)
class Section:
    """A section of a study's page.

    Attributes:
        name: end of its id, such as ``effects``.
    """

    name: str
    title: str
    blocks: Sequence[Block]
