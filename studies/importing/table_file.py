"""Text tables: CSV with commas, semicolons or tabs, compressed or not, as other programs write."""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from studies.errors import TableError
from studies.files import open_regular
from studies.text import shorten, to_line

MAX_BYTES = 256 * 2**20
"""Size above which a table is refused, unpacked."""

MAX_ROWS = 200_000
"""Number of rows above which a table is refused."""

MAX_COLUMNS = 10_000
"""Number of columns above which a table is refused; curves have a column for each step."""

_GZIP = b"\x1f\x8b"

_OTHER_FORMATS = {
    b"PK\x03\x04": ("an Excel workbook or another archive", "save the sheet as CSV"),
    b"PAR1": ("a Parquet file", "write it with pandas.read_parquet(FILE).to_csv(FILE.csv)"),
    b"SQLite format 3": ("an SQLite file", "import a study of Optuna as sqlite:///FILE"),
    b"%PDF": ("a PDF file", "export the table as CSV"),
}
"""What a file is that begins with these bytes, and what to do."""

_DELIMITERS = (",", ";", "\t")

_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")


@dataclass(frozen=True)
class TextTable:
    """A table of texts.

    Attributes:
        name: name of the file.
        header: name of each column, without duplicates.
        rows: (row number, cells) of each row; as in a spreadsheet, the header is row 1. Each has a
            cell for each column, without surrounding spaces.
    """

    name: str
    header: Sequence[str]
    rows: Sequence[tuple[int, Sequence[str]]]

    def column(self, name: str) -> list[str]:
        """Return the cells of a column."""
        place = self.header.index(name)
        return [cells[place] for _, cells in self.rows]

    def error(self, row: int, column: str, found: str, expected: str) -> TableError:
        """Return the error about a cell."""
        return TableError(
            f"{self.name}, row {row}, column {shown(column)}: {found}: expected {expected}"
        )


def shown(text: str) -> str:
    """Return a name or a cell as a message shows it."""
    return repr(to_line(shorten(text, 60)))


def read_table(path: Path) -> TextTable:
    """Read a table; ``FILE.csv.gz`` as well as ``FILE.csv``.

    Raises:
        TableError: if it cannot be read, or is no table; the message names the row.
    """
    name = to_line(path.name)
    text = _decode(name, _read_bytes(path, name))
    delimiter = _find_delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines = _number_rows(name, reader)
    header = _check_header(name, next(lines, (1, []))[1])
    rows = []
    for row, cells in lines:
        if len(cells) != len(header):
            if not any(cells):
                continue
            raise TableError(
                f"{name}, row {row}: {len(cells)} cells: expected {len(header)}, as the header "
                "has; quote cells that contain the delimiter"
            )
        if any(cells):
            rows.append((row, cells))
        if len(rows) > MAX_ROWS:
            raise TableError(f"{name}: more than {MAX_ROWS:,} rows: expected a smaller table")
    if not rows:
        raise TableError(f"{name}: no row below the header: expected one or more")
    table = TextTable(name, header, rows)
    return table if delimiter == "," else _convert_decimal_commas(table)


def _read_bytes(path: Path, name: str) -> bytes:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
            if content.startswith(_GZIP):
                file.seek(0)
                content = gzip.GzipFile(fileobj=file).read(MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TableError(f"{name}: the compressed file is damaged ({error})") from error
    except OSError as error:
        raise TableError(f"{to_line(str(path))} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise TableError(
            f"{name}: more than {MAX_BYTES // 2**20} MiB: expected a smaller table; leave out "
            "columns of curves"
        )
    for beginning, (what, hint) in _OTHER_FORMATS.items():
        if content.startswith(beginning):
            raise TableError(f"{name} is {what}: expected a table as CSV; {hint}")
    return content


def _decode(name: str, content: bytes) -> str:
    encoding = "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise TableError(
            f"{name}, row {row}: byte {content[error.start]:#04x} is not UTF-8: expected text; "
            'save the table as "CSV UTF-8"'
        ) from error
    if "\0" in text:
        row = text[: text.index("\0")].count("\n") + 1
        raise TableError(f"{name}, row {row}: a NUL character: expected a table as CSV")
    return text


def _find_delimiter(text: str) -> str:
    """Return the delimiter that occurs most in the header, outside of quotes."""
    header = re.sub(r'"[^"]*"', "", text.lstrip("\r\n").splitlines()[0] if text.strip() else "")
    return max(_DELIMITERS, key=header.count)


def _number_rows(name: str, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with its number; blank ones before the header are skipped."""
    row, is_header = 0, True
    while True:
        row += 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            raise TableError(f"{name}, row {row} is not valid CSV ({error})") from error
        if len(cells) > MAX_COLUMNS:
            raise TableError(f"{name}, row {row}: more than {MAX_COLUMNS:,} cells")
        if any(cells) or not is_header:
            is_header = False
            yield row, cells


def _check_header(name: str, cells: Sequence[str]) -> list[str]:
    """Require a name for each column, the first aside: tables of pandas have their index there."""
    if not cells:
        raise TableError(f"{name} is empty: expected a table with a header")
    header: list[str] = []
    for place, cell in enumerate(cells, 1):
        if not cell and place > 1:
            raise TableError(f"{name}, row 1, column {place}: no name: expected one")
        if cell in header:
            raise TableError(f"{name}, row 1: two columns {shown(cell)}: expected distinct names")
        header.append(cell)
    return header


def _convert_decimal_commas(table: TextTable) -> TextTable:
    """Write numbers with a decimal comma with a point, in columns that have no other numbers."""
    columns: list[list[str]] = []
    for name in table.header:
        cells = table.column(name)
        is_comma: Callable[[str], bool] = lambda cell: bool(_DECIMAL_COMMA.fullmatch(cell))  # noqa: E731
        others = [cell for cell in cells if cell and not is_comma(cell)]
        if any(map(is_comma, cells)) and not any("." in cell for cell in others):
            cells = [cell.replace(",", ".") if is_comma(cell) else cell for cell in cells]
        columns.append(cells)
    rows = [
        (row, list(cells))
        for (row, _), cells in zip(table.rows, zip(*columns, strict=True), strict=True)
    ]
    return TextTable(table.name, table.header, rows)
