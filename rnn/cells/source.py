"""Source files of users' own cells, read but not executed.

A cell is named by a *spec*: ``path/to/file.py:Class``, or ``package.module:Class`` for a module
that is installed.
"""

import hashlib
import os
import stat
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import ModuleSpec
from pathlib import Path

from rnn.errors import CellError

MAX_SOURCE_BYTES = 2**20
"""Size above which a file is not read as the source of a cell; cells have some kilobytes."""


@dataclass(frozen=True)
class CellSource:
    """The source of a cell.

    Attributes:
        spec: where it came from, as it was given.
        name: name of the class.
        text: content of the file.
    """

    spec: str
    name: str
    text: str

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def compile(self, filename: str) -> object:
        """Compile the text to a code object.

        Raises:
            CellError: if it is not valid Python.
        """
        try:
            # Bytes, as Python reads a file: with a byte order mark or a declared encoding.
            return compile(self.text.encode(), filename, "exec", dont_inherit=True)
        except SyntaxError as error:
            line = f", line {error.lineno}" if error.lineno else ""
            reason = f"{error.msg}{line}"
        except (ValueError, RecursionError, MemoryError) as error:  # null bytes; nested too deeply
            reason = str(error)
        raise CellError(f"cell {self.spec!r} is not valid Python ({reason}): correct the file")


def read_cell_source(spec: str, folder: Path) -> CellSource:
    """Read the source of a cell; nothing is executed.

    Args:
        spec: ``path/to/file.py:Class`` or ``package.module:Class``.
        folder: folder that a path is relative to.

    Raises:
        CellError: if the spec is malformed, the file is missing, not regular, too large or not
            UTF-8, or its content is not valid Python.
    """
    place, _, name = spec.rpartition(":")
    is_path = place.endswith(".py")
    if not name.isidentifier() or not (is_path or all(map(str.isidentifier, place.split(".")))):
        raise CellError(
            f"cell {spec[:200]!r} not understood: expected path/to/file.py:Class or "
            "package.module:Class"
        )
    path = folder.absolute() / place if is_path else _find_module(spec, place)
    source = CellSource(spec, name, _read_text(spec, path))
    with warnings.catch_warnings(action="ignore"):  # shown when the text is executed
        source.compile(str(path))
    return source


def _find_module(spec: str, module: str) -> Path:
    """Return the source file of an installed module, without importing its packages."""
    folders: Sequence[str] | None = None
    found: ModuleSpec | None = None
    name = ""
    for part in module.split("."):
        if name and folders is None:
            raise _not_installed(spec, f"{name} is not a package")
        name = f"{name}.{part}" if name else part
        found = _find_spec(name, folders)
        if found is None:
            raise _not_installed(spec, f"no module {name}")
        folders = found.submodule_search_locations
    origin = found.origin if found is not None else None
    if origin is None or not origin.endswith(".py"):
        raise CellError(
            f"cell {spec!r} has no source file: expected {module} to be a module in Python"
        )
    return Path(origin)


def _find_spec(name: str, folders: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        found: ModuleSpec | None = find_spec(name, folders, None) if find_spec else None
        if found is not None:
            return found
    return None


def _not_installed(spec: str, reason: str) -> CellError:
    return CellError(
        f"cell {spec!r} not found ({reason}): expected an installed module, or a path that ends "
        "in .py"
    )


def _read_text(spec: str, path: Path) -> str:
    try:
        # A path may be a pipe: do not wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CellError(f"cell {spec!r}: {path} is not a regular file")
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(MAX_SOURCE_BYTES + 1)
    except FileNotFoundError as error:
        raise CellError(
            f"cell {spec!r} not found: expected a file {path}; check the path"
        ) from error
    except (OSError, ValueError) as error:  # a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise CellError(f"cell {spec!r}: {path} cannot be read ({reason})") from error
    if len(content) > MAX_SOURCE_BYTES:
        raise CellError(
            f"cell {spec!r}: {path} is too large, expected at most {MAX_SOURCE_BYTES:,} bytes"
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise CellError(f"cell {spec!r}: {path} is not UTF-8 ({error})") from error
