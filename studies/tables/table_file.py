"""Files of a table, CSV or compressed CSV: read with bounds, and written at once or not at all."""

import contextlib
import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from studies.artifacts import atomic_write
from studies.errors import TableError
from studies.files import open_regular, require_regular
from studies.text import format_bytes, shorten

MAX_BYTES = 2**28
"""Size above which a file is not read, when it is unpacked."""

MAX_LINE_BYTES = 2**24
"""Length above which a line is not read."""

_GZIP = b"\x1f\x8b"

SUFFIXES = (".csv.gz", ".csv")
"""Ends of the names of files that are written."""


def require_table_name(path: Path) -> None:
    """Check that a file to write has the name of a table.

    Raises:
        TableError: if it has not.
    """
    if not path.name.endswith(SUFFIXES):
        raise TableError(f"{path} is not a table: expected a name ending in .csv.gz or .csv")


def write_table(path: Path, first_line: str, rows: Iterable[Sequence[str]]) -> int:
    """Write a table, compressed if its name ends in ``.gz``; return the size of the file.

    Equal tables are equal files: nothing in them says when or by whom they were written.

    Raises:
        TableError: if it cannot be written; an existing file stays unchanged.
    """
    require_table_name(path)
    lines = _format_lines(first_line, rows)
    try:
        require_regular(path)
        atomic_write(path, _compress(lines) if path.name.endswith(".gz") else lines)
        return path.stat().st_size
    except OSError as error:
        raise TableError(f"cannot write {path}: {error.strerror}") from error


def _format_lines(first_line: str, rows: Iterable[Sequence[str]]) -> Iterator[bytes]:
    yield f"{first_line}\n".encode()
    for row in rows:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow(row)
        yield buffer.getvalue().encode()


def _compress(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Compress as gzip does, without a name and a time."""
    compressor = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()


@contextlib.contextmanager
def open_table(path: Path) -> Iterator[Iterator[str]]:
    """Open a table for reading, compressed or not, as an iterator of its lines.

    Lines keep their ends. The iterator raises a :class:`TableError` for what cannot be read.

    Raises:
        TableError: if the file does not exist or cannot be opened.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise TableError(f"{path} does not exist: expected a file of a table") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise TableError(f"{path} cannot be read ({reason}): expected a file") from error
    with file:
        is_compressed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        yield _read_lines(path, gzip.GzipFile(fileobj=file) if is_compressed else file)


def _read_lines(path: Path, file: Iterable[bytes] | gzip.GzipFile) -> Iterator[str]:
    size = row = 0
    while line := _read_line(path, file, row):
        row += 1
        size += len(line)
        if len(line) > MAX_LINE_BYTES or size > MAX_BYTES:
            limit = MAX_LINE_BYTES if len(line) > MAX_LINE_BYTES else MAX_BYTES
            what = "a line" if limit == MAX_LINE_BYTES else "a file"
            raise TableError(f"{path}, row {row}: expected {what} of at most {format_bytes(limit)}")
        try:
            yield line.decode("utf-8-sig" if row == 1 else "utf-8")
        except UnicodeDecodeError as error:
            shown = shorten(repr(line[error.start : error.start + 8]))
            raise TableError(f"{path}, row {row}: {shown} is not UTF-8 text") from error


def _read_line(path: Path, file: object, row: int) -> bytes:
    assert isinstance(file, io.BufferedIOBase)
    try:
        return file.readline(MAX_LINE_BYTES + 1)
    except EOFError as error:
        raise TableError(
            f"{path} is cut off after row {row}: expected the rest; copy the file again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise TableError(
            f"{path} is damaged after row {row} ({error}): copy the file again"
        ) from error
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}") from error


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
