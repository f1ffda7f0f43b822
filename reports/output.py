"""Output files: default names, and which existing files may be replaced.

A report holds the identity of its studies in its first bytes. A file of another identity is never
replaced: it may be the only record of a deleted study.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sqlalchemy.engine import URL

from reports.errors import OutputTakenError
from studies.files import open_regular

OUTPUT = Path("reports/out")
"""Default folder for reports, relative to the working directory."""

_MAX_NAME_BYTES = 180
"""Maximum length of a file name's stem; file systems allow 255 bytes for the whole name."""

_HEAD = 8192
"""Number of bytes of an existing file that contain its first line and its identity."""

_IDENTITY = re.compile(rb'name="rnn-search-identity" content="([0-9a-f]+)"')

_FOLDERS = re.compile(rb'name="rnn-search-studies" content="([\w -]*)"')


def study_identity(url: URL, name: str, folder: str | None) -> str:
    """Return a hash that identifies a study.

    Args:
        url: URL of the storage; passwords are ignored, and SQLite files compare by absolute path.
        name: name of the study.
        folder: artifact folder of the study, which changes if the study is deleted and recreated.
    """
    if url.get_backend_name() == "sqlite":
        database = str(url.database)
        if database.startswith("file:"):  # form of a read-only URL
            database = unquote(database.removeprefix("file:"))
        storage: list[Any] = [str(Path(database).resolve())]
    else:
        query = sorted(item for item in url.query.items() if "pass" not in item[0].lower())
        storage = [url.username, url.host, url.port, url.database, query]
    return _hash([storage, name, folder])


def report_identity(studies: Iterable[str]) -> str:
    """Return the identity of a report, given those of its studies in order."""
    return _hash(list(studies))


def identity_tags(identity: str, folders: Iterable[str]) -> str:
    """Return the HTML elements that store what a report is about, for HTML and Markdown.

    Args:
        identity: identity of the report.
        folders: artifact folders of its studies, which keep their names when one is renamed.
    """
    tags = {"identity": identity, "studies": " ".join(folders)}
    return "".join(f'<meta name="rnn-search-{key}" content="{text}">' for key, text in tags.items())


def default_path(names: Sequence[str]) -> Path:
    """Return the file in :data:`OUTPUT` for the report of some studies: a name for these alone."""
    plain = "+".join(re.sub(r"[^\w.-]+", "_", name) for name in names)
    stem = plain.encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
    if stem != "+".join(names):
        stem += f"-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]}"
    return (OUTPUT / f"{stem}.html").absolute()


def find_reports(folder: str | None) -> list[Path]:
    """Return the reports in :data:`OUTPUT` about a study, under whatever name it had.

    Args:
        folder: artifact folder of the study, which may have been deleted.
    """
    found = []
    for path in sorted(OUTPUT.absolute().glob("*")):
        with contextlib.suppress(OSError), open_regular(path) as file:
            match = _FOLDERS.search(file.read(_HEAD))
            if match and str(folder) in match[1].decode().split():
                found.append(path)
    return found


def choose_path(path: Path, is_default: bool, identity: str, prefix: bytes) -> tuple[Path, str]:
    """Choose the file to write a report to.

    Args:
        path: file to write if it does not exist or is a report of this identity.
        is_default: whether to fall back to a name that contains part of the identity.
        identity: identity of the report.
        prefix: first bytes of every report of this kind.

    Returns:
        The file, and a note for the user if it is the fallback; else "".

    Raises:
        OutputTakenError: if the file exists and is not a report of this identity.
    """
    try:
        _require_replaceable(path, identity, prefix)
    except OutputTakenError:
        if not is_default:
            raise
        chosen = path.with_stem(f"{path.stem}-{identity[:8]}")
        _require_replaceable(chosen, identity, prefix)
        return chosen, (
            f"{path} is not a report of these studies in this storage and was not replaced"
        )
    return path, ""


def _require_replaceable(path: Path, identity: str, prefix: bytes) -> None:
    if not path.exists():
        return
    with open_regular(path) as file:
        head = file.read(_HEAD)
    if not head.startswith(prefix):
        raise OutputTakenError(f"{path} exists and is not a report; choose another path")
    found = _IDENTITY.search(head)
    if found is None or found[1].decode() != identity:
        raise OutputTakenError(
            f"{path} is a report of other studies, of another storage or of an older version; "
            "remove it or choose another path"
        )


def _hash(value: list[Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
