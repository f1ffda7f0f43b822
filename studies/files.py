"""Reading of files that users name: regular files only, of a bounded size."""

import errno
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, BinaryIO

MAX_TOML_BYTES = 2**20
"""Size above which a file is not read as TOML; the largest study files have some kilobytes."""

MAX_DEPTH = 32
"""Maximum number of nested tables and arrays in TOML; study files have four."""

_TOO_DEEP = f"expected at most {MAX_DEPTH} nested tables and arrays"
_TOO_LARGE = "expected integers of at most 64 bits"

_LONG_KEY = re.compile(rf"""(\.[ \t]*([\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*){{{MAX_DEPTH}}}""")


def require_regular(path: Path) -> None:
    """Check that a path is a regular file, if it exists.

    Raises:
        OSError: if it is a folder, a pipe, a socket or a device, or cannot be examined.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Opening a pipe would wait for its other end, and reading a device might never end.

    Raises:
        OSError: if it does not exist, cannot be read or is not a regular file.
    """
    require_regular(path)
    # The path may have become a pipe since: do not wait for its other end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        OSError: if it cannot be read or is not a regular file.
        ValueError: if it is too large or not TOML.
    """
    with open_regular(path) as file:
        content = file.read(MAX_TOML_BYTES + 1)
    if len(content) > MAX_TOML_BYTES:
        raise ValueError(f"expected at most {MAX_TOML_BYTES:,} bytes")
    return parse_toml(content.decode())


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        TOMLDecodeError: if it is not TOML.
        ValueError: if it is nested too deeply or has an integer of more than 64 bits.
    """
    # The parser takes time and memory that grow with the square of a key's parts.
    if _LONG_KEY.search(text):
        raise ValueError(f"expected keys of at most {MAX_DEPTH} parts")
    try:
        parsed = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # an integer of more digits than Python converts
        raise ValueError(_TOO_LARGE) from error
    _check_values(parsed, MAX_DEPTH)
    return parsed


def _check_values(value: Any, depth: int) -> None:
    if isinstance(value, dict | list):
        if not depth:
            raise ValueError(_TOO_DEEP)
        for item in value.values() if isinstance(value, dict) else value:
            _check_values(item, depth - 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:  # as TOML has them
        raise ValueError(_TOO_LARGE)
