"""Files that are there as a whole or not at all."""

import os
from collections.abc import Iterable
from pathlib import Path


def write_beside(path: Path, content: Iterable[bytes]) -> None:
    """Write a file beside its place and put it there: who reads it never reads half of it.

    Args:
        path: its place.
        content: all that is to be in it, piece by piece.

    Raises:
        OSError: if it cannot be written; what was there stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name[:200]}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.writelines(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
