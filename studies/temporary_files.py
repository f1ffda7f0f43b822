"""Temporary files: their names, and removal of those that killed writers left."""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

STALE_SECONDS = 3600
"""Age after which a temporary file is removed; a younger one may be of a writer at work."""

_NAME = re.compile(r"(.+)\.[0-9a-f]{32}\.part(-wal|-shm|-journal)?", re.DOTALL)
"""Name of a temporary file: of the final file, random, and what SQLite appends."""

_SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal")

_MAX_NAME_BYTES = 200
"""Bytes of the final name in a temporary one; file systems allow 255 for the whole name."""


def temporary_path(path: Path) -> Path:
    """Return a new path for a temporary file or folder, next to the final path."""
    return path.with_name(f"{_stem(path)}.{uuid4().hex}.part")


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Create an empty temporary file next to a path; remove it at the end, unless it was renamed.

    Its mode follows from the umask.

    Raises:
        OSError: if it cannot be created.
    """
    temporary = temporary_path(path)
    try:
        temporary.open("xb").close()
        yield temporary
    finally:
        for suffix in _SQLITE_SUFFIXES:
            temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)


def remove_temporary_files(
    folder: Path, is_final: Callable[[str], object], min_age: float | None = STALE_SECONDS
) -> None:
    """Remove temporary files that killed writers left; those that cannot be removed stay.

    Args:
        folder: folder of the files.
        is_final: whether this project writes a final file of that name there.
        min_age: seconds since a temporary file was last written; None for any age.
    """
    with contextlib.suppress(OSError):  # a folder that does not exist
        for path in list(folder.iterdir()):
            match = _NAME.fullmatch(path.name)
            if match and is_final(match[1]):
                with contextlib.suppress(OSError):  # removed by another process
                    _remove(path, min_age)


def remove_temporary_files_of(path: Path, min_age: float | None = STALE_SECONDS) -> None:
    """Remove the temporary files of one final path, as :func:`remove_temporary_files` does."""
    remove_temporary_files(path.parent, _stem(path).__eq__, min_age)


def _stem(path: Path) -> str:
    return os.fsencode(path.name)[:_MAX_NAME_BYTES].decode(errors="ignore")


def _remove(path: Path, min_age: float | None) -> None:
    if min_age is not None and time.time() - path.lstat().st_mtime < min_age:
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
