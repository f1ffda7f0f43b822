"""Where a report is written, and which existing file it may replace.

A page holds the identity of what it reports in its first bytes. A file of another identity is never
replaced: it may be the only record of a study that has been deleted since.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sqlalchemy.engine import URL

from reports.errors import OutputTakenError

OUTPUT = Path("reports/out")
"""Default folder for reports, relative to the working directory."""

_HEAD = 1024
"""Bytes of an existing file that are read: its first line and its identity lie within them."""

_IDENTITY = re.compile(rb'name="rnn-search-identity" content="([0-9a-f]+)"')


def study_identity(url: URL, name: str, folder: str | None) -> str:
    """Return a hash that is equal for two reports of the same study.

    Args:
        url: of the storage; the password does not count, and an SQLite file counts by its
            absolute path.
        name: of the study.
        folder: the study's unique folder, which differs if a study is deleted and made again.
    """
    if url.get_backend_name() == "sqlite":
        database = str(url.database)
        if database.startswith("file:"):  # as studies.storage.engine.read_only writes it
            database = unquote(database.removeprefix("file:"))
        storage: list[Any] = [str(Path(database).resolve())]
    else:
        query = sorted(item for item in url.query.items() if "pass" not in item[0].lower())
        storage = [url.username, url.host, url.port, url.database, query]
    return _hash([storage, name, folder])


def report_identity(studies: Iterable[str]) -> str:
    """Return the identity of a report of several studies, given theirs in the report's order."""
    return _hash(list(studies))


def identity_tag(identity: str) -> str:
    """Return the element that marks a page, for HTML and Markdown."""
    return f'<meta name="rnn-search-identity" content="{identity}">'


def choose_path(path: Path, is_default: bool, identity: str, beginning: bytes) -> tuple[Path, str]:
    """Choose the file that a report is written to.

    Args:
        path: the file to write if it does not exist or is a report of this identity.
        is_default: whether another name may be chosen: one with a part of the identity.
        identity: of the report.
        beginning: the first bytes of every report of this kind.

    Returns:
        The file, and one line for the user if another name was chosen; else "".

    Raises:
        OutputTakenError: if the file exists and is not a report of this identity.
    """
    try:
        _require_replaceable(path, identity, beginning)
    except OutputTakenError:
        if not is_default:
            raise
        chosen = path.with_stem(f"{path.stem}-{identity[:8]}")
        _require_replaceable(chosen, identity, beginning)
        return chosen, (
            f"{path} reports other studies or another storage, or is no report; it was left as it "
            "is"
        )
    return path, ""


def _require_replaceable(path: Path, identity: str, beginning: bytes) -> None:
    if not path.exists():
        return
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head.startswith(beginning):
        raise OutputTakenError(
            f"{path} exists and is not such a report; it was left as it is; name another --output"
        )
    found = _IDENTITY.search(head)
    if found is None or found[1].decode() != identity:
        raise OutputTakenError(
            f"{path} reports other studies, another storage, or was written by an older version; "
            "it was left as it is; remove it or name another --output"
        )


def _hash(value: list[Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
