"""Rows of a table in CSV, with errors that name the file, the row and the column."""

import csv
from collections.abc import Iterator, Sequence
from typing import NoReturn

from studies.errors import TableError
from studies.tables.table_file import MAX_LINE_BYTES
from studies.text import shorten


class TableRows:
    """Rows of a table; they are counted from 1, as an editor or a spreadsheet does.

    Args:
        path: name of the file, for messages.
        lines: its lines after the first ones.
        skipped: number of lines before these.
    """

    def __init__(self, path: str, lines: Iterator[str], skipped: int = 0) -> None:
        csv.field_size_limit(MAX_LINE_BYTES)
        self._path = path
        self._rows = csv.reader(lines, strict=True)
        self._skipped = skipped

    def read(self, length: int | None = None) -> list[str] | None:
        """Read the next row that is not empty; None at the end.

        Args:
            length: number of its cells; None for any.

        Raises:
            TableError: if it is not CSV, or has another number of cells.
        """
        try:
            for cells in self._rows:
                if cells:
                    if length not in (None, len(cells)):
                        self.reject(f"{len(cells)} cells, expected {length}")
                    return cells
        except csv.Error as error:
            self.reject(f"{error}, expected CSV", error)
        return None

    def reject(self, message: str, cause: BaseException | None = None) -> NoReturn:
        """Reject the last row that was read.

        Raises:
            TableError: always.
        """
        raise TableError(
            f"{self._path}, row {self._rows.line_num + self._skipped}: {message}"
        ) from cause

    def reject_cell(
        self, column: str, text: str, expected: str, cause: BaseException | None = None
    ) -> NoReturn:
        """Reject a cell of the last row that was read.

        Raises:
            TableError: always.
        """
        row = self._rows.line_num + self._skipped
        raise TableError(
            f"{self._path}, row {row}, column {shorten(column)}: {shorten(repr(text))}, expected "
            f"{expected}"
        ) from cause


def find_repeated(names: Sequence[str]) -> str | None:
    """Return the first name that an earlier one equals; None if all differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
