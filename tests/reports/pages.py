"""Pages of studies in memory, and what a reader sees of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reports.blocks import Block, Folded, Pair, Section, Table
from reports.charts.chart import Chart
from reports.findings import StudyFindings
from reports.formatting import to_plain
from reports.page.page import Part, find_all, list_parts, render_page
from reports.results import Results
from reports.sentences import list_answer


@dataclass(frozen=True)
class BuiltPage:
    """The page of one study or several: what it is built from, and its HTML."""

    parts: list[Part]
    findings: StudyFindings
    html: str

    @property
    def words(self) -> str:
        """The text of the page without markup."""
        main = self.html[self.html.index("<main>") : self.html.index("</main>")]
        lines = re.sub("</?(strong|small|span)[^>]*>", "", main)
        return " ".join(re.sub("<[^>]*>", " ", lines).split())

    @property
    def sections(self) -> dict[str, Section]:
        """The sections of its first part, by their names."""
        return {section.name: section for section in self.parts[0].sections}

    def chart(self, title: str) -> Chart:
        """Return the chart with a title."""
        (found,) = [chart for chart in self.charts if chart.title == title]
        return found

    @property
    def charts(self) -> list[Chart]:
        """The charts of its parts, those of the first screens first."""
        first = [part.chart for part in self.parts if part.chart is not None]
        return [*first, *(block for block in self._blocks if isinstance(block, Chart))]

    def table(self, name: str) -> Table:
        """Return the table whose name ends so."""
        tables = [block for block in self._blocks if isinstance(block, Table)]
        (found,) = [table for table in tables if table.name.endswith(name)]
        return found

    def read_column(self, table: str, title: str) -> list[str]:
        """Return what a column of a table shows, without intervals."""
        found = self.table(table)
        (column,) = [column for column in found.columns if column.title == title]
        return [to_plain(column.format(row)[0]) for row in found.rows]

    @property
    def _blocks(self) -> list[Block]:
        sections = [section for part in self.parts for section in part.sections]
        return _unfold([block for section in sections for block in section.blocks])


def _unfold(blocks: Sequence[Block]) -> list[Block]:
    """List blocks, and those within them."""
    found: list[Block] = []
    for block in blocks:
        if isinstance(block, Folded):
            found += _unfold(block.blocks)
        elif isinstance(block, Pair):
            found += block.charts
        else:
            found.append(block)
    return found


def build_from(*results: Results) -> BuiltPage:
    """Build the page about studies."""
    findings, across_tasks = find_all(results)
    parts = list_parts(findings, across_tasks)
    return BuiltPage(parts, findings[0], "".join(render_page(parts)))


def read_answer(findings: StudyFindings) -> list[str]:
    """Return the lines of the answer without emphasis."""
    return [to_plain(line) for line in list_answer(findings)]
