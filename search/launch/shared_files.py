"""Files and storages that workers on other machines can reach."""

import os
import tempfile
from pathlib import Path

import psutil

from search.errors import LaunchError
from studies.artifacts import AtomicFileStore, open_store
from studies.storage.engine import parse_url, redact

SHARED_VARIABLE = "RNN_SEARCH_SHARED"
"""Environment variable with the folders that all machines of a cluster share, separated by ``:``.

Needed only where that cannot be seen on this machine, as on the server of a network file system.
"""

_NETWORK_FILE_SYSTEMS = {
    "9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "orangefs",
    "panfs", "pvfs2", "quobyte", "smb3", "smbfs", "wekafs",
}  # fmt: skip

_LOCAL_FUSE = {"fuse.fuse-overlayfs", "fuse.portal", "fuse.gvfsd-fuse", "fuse.lxcfs", "fuseblk"}


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


def require_shared_artifacts(artifacts: str | None, storage: str) -> None:
    """Check that workers on other machines find each other's checkpoints.

    Raises:
        LaunchError: if they are written to a disk of this machine.
        ArtifactsError: if they cannot be written.
    """
    store = open_store(artifacts, storage, "checkpoints", read_only=True)
    if isinstance(store, AtomicFileStore):
        require_shared(
            store.path,
            "folder of checkpoints",
            "expected --artifacts with a shared folder or s3://BUCKET",
        )


def require_shared(path: Path, what: str, remedy: str = "") -> None:
    """Check that a file or folder is on a file system that other machines share.

    Args:
        path: file or folder, which need not exist.
        what: what it is, for the message.
        remedy: what else was expected, for the message.

    Raises:
        LaunchError: if it is not.
    """
    path = path.expanduser().resolve()
    if any(path.is_relative_to(folder) for folder in _shared_folders()):
        return
    if path.is_relative_to(Path(tempfile.gettempdir()).resolve()):
        where = "in the temporary folder of this machine"
    elif (kind := _file_system(path)) and not _is_on_network(kind):
        where = f"on a disk of this machine ({kind})"
    else:
        return
    remedies = f"{remedy}, or " if remedy else "expected a shared file system, or "
    raise LaunchError(
        f"{what} {path} is {where}, where other machines do not find it: {remedies}"
        f"{SHARED_VARIABLE}=FOLDER if all machines share the folder"
    )


def _shared_folders() -> list[Path]:
    folders = os.environ.get(SHARED_VARIABLE, "").split(os.pathsep)
    return [Path(folder).expanduser().resolve() for folder in folders if folder]


def _file_system(path: Path) -> str:
    """Return the type of the file system of a path; "" if it is unknown."""
    found, kind = Path(), ""
    for partition in psutil.disk_partitions(all=True):
        mount = Path(partition.mountpoint)
        # The last of those mounted on one folder hides the others.
        if path.is_relative_to(mount) and len(mount.parts) >= len(found.parts):
            found, kind = mount, partition.fstype
    return kind


def _is_on_network(kind: str) -> bool:
    return kind in _NETWORK_FILE_SYSTEMS or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE)
