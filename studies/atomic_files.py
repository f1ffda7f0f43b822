"""Files that appear whole or not at all.

A file is written under a temporary name first. The temporary files of killed writers are removed
by later ones. Optuna's ``FileSystemArtifactStore`` writes in place: half a file stays of a writer
that is killed.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from uuid import uuid4

REPORTS = Path("reports/out")
"""Default folder for reports, relative to the working directory."""

STALE_SECONDS = 3600
"""Age after which a temporary file is removed; a younger one may be of a writer at work."""

_NAME = re.compile(r"(.+)\.[0-9a-f]{32}\.part(-wal|-shm|-journal)?", re.DOTALL)
"""Name of a temporary file: of the final file, random, and what SQLite appends."""

_SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal")

_MAX_NAME_BYTES = 200
"""Bytes of the final name in a temporary one; file systems allow 255 for the whole name."""

_MAX_STEM_BYTES = 180
"""Bytes of the name of a report without its suffix."""


def require_regular(path: Path) -> None:
    """Check that a path is a file, if it exists.

    Raises:
        OSError: if it is a folder or a device.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def atomic_write(path: Path, content: Iterable[bytes]) -> None:
    """Write a file atomically: readers see the old or the new content, never a part.

    Its folder is created. The content comes in chunks.

    Raises:
        OSError: if it cannot be written; an existing file stays unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_temporary_files_of(path)
    with temporary_file(path) as temporary:
        with temporary.open("wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def compress(pieces: Iterable[bytes], level: int = 6) -> Iterator[bytes]:
    """Compress a text in pieces, as gzip does without a name and a time."""
    compressor = zlib.compressobj(level, wbits=zlib.MAX_WBITS | 16)
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()


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
            if not match or not is_final(match[1]):
                continue
            with contextlib.suppress(OSError):  # removed by another process
                if min_age is not None and time.time() - path.lstat().st_mtime < min_age:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def remove_temporary_files_of(path: Path, min_age: float | None = STALE_SECONDS) -> None:
    """Remove the temporary files of one final path, as :func:`remove_temporary_files` does."""
    remove_temporary_files(path.parent, _stem(path).__eq__, min_age)


def _stem(path: Path) -> str:
    return os.fsencode(path.name)[:_MAX_NAME_BYTES].decode(errors="ignore")


def default_report(names: Sequence[str]) -> Path:
    """Return the file in :data:`REPORTS` for the report of some studies: a name for these alone."""
    plain = "+".join(re.sub(r"[^\w.-]+", "_", name) for name in names)
    stem = plain.encode()[:_MAX_STEM_BYTES].decode(errors="ignore")
    if stem != "+".join(names):
        stem += f"-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]}"
    return (REPORTS / f"{stem}.html").absolute()
