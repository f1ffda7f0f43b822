"""Files and storages that workers on other machines can reach."""

import os
import tempfile
from pathlib import Path
from uuid import uuid4

from search.errors import LaunchError
from search.launch.launcher import Marker
from studies.artifacts import ArtifactFolders
from studies.storage.engine import parse_url, redact

SHARED_VARIABLE = "RNN_SEARCH_SHARED"
"""Environment variable with the folders that all machines of a cluster share, separated by ``:``.

Needed only for those on a disk of this machine, as on the server of a network file system.
"""

MARKER_PREFIX = ".shared-"
"""Start of the random name of a file by which workers recognize the folder of checkpoints."""

ARTIFACTS_REMEDY = "expected --artifacts with a shared folder"


def require_server(storage: str) -> None:
    """Check that workers on other machines can use a storage.

    Raises:
        LaunchError: if it is a file, or its URL has a password.
        StorageError: if its URL is invalid.
    """
    url = parse_url(storage)
    if url.get_backend_name() == "sqlite":
        raise LaunchError(
            f"storage {redact(url)} is a file, which workers on other machines cannot share: "
            "expected a server, as in --storage postgresql+psycopg://USER@HOST/DATABASE"
        )
    if url.password or {"password", "sslpassword"} & url.query.keys():
        raise LaunchError(
            f"storage {redact(url)} has a password, which command lines of workers would show: "
            "expected it in PGPASSWORD or ~/.pgpass"
        )


def warn_of_loopback(storage: str) -> str:
    """Return a warning if a storage's address means another machine on each machine, or ""."""
    url = parse_url(storage)
    host = url.host or url.query.get("host") or os.environ.get("PGHOST", "")
    is_socket = not host or str(host).startswith("/")
    if not is_socket and host not in ("localhost", "127.0.0.1", "::1"):
        return ""
    return f"storage {redact(url)} is reached by workers on this machine only: name its host"


def mark_artifacts(artifacts: str | None, storage: str) -> Marker:
    """Return the marker in the folder of checkpoints, created by the first call.

    A type of file system does not say whether other machines have mounted the same folder.

    Raises:
        LaunchError: if it cannot be written.
    """
    folder = find_checkpoints(artifacts, storage).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = next(folder.glob(f"{MARKER_PREFIX}*"), folder / f"{MARKER_PREFIX}{uuid4().hex}")
        path.touch()
    except OSError as error:
        raise LaunchError(f"cannot write to the folder of checkpoints {folder}: {error}") from error
    message = f"folder of checkpoints {folder} is not the same on all machines: {ARTIFACTS_REMEDY}"
    return Marker(str(path), message)


def find_checkpoints(artifacts: str | None, storage: str) -> Path:
    """Return the folder of checkpoints.

    Raises:
        ArtifactsError: if it cannot be used.
    """
    return ArtifactFolders(artifacts, storage, read_only=True).root("checkpoints")


def require_shared(path: Path, what: str, remedy: str = "expected a shared file system") -> None:
    """Check that a file or folder is not in a place that only this machine has.

    It need not exist. ``what`` and ``remedy`` are parts of the message.

    Raises:
        LaunchError: if it is in the temporary folder or on a disk of this machine.
    """
    path = path.expanduser().resolve()
    folders = os.environ.get(SHARED_VARIABLE, "").split(os.pathsep)
    shared = [Path(folder).expanduser().resolve() for folder in folders if folder]
    if any(path.is_relative_to(folder) for folder in shared):
        return
    existing = next(each for each in (path, *path.parents) if each.exists())
    if path.is_relative_to(Path(tempfile.gettempdir()).resolve()):
        where = "in the temporary folder of this machine"
    elif os.major(existing.stat().st_dev):  # 0 on file systems that have no device, as on networks
        where = "on a disk of this machine"
    else:
        return
    raise LaunchError(
        f"{what} {path} is {where}, where other machines do not find it: {remedy}, or "
        f"{SHARED_VARIABLE}=FOLDER if all machines share the folder"
    )
