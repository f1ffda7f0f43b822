"""Artifact stores of a study, in a folder or an S3-compatible bucket, and atomic file writes."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import urlsplit
from uuid import uuid4

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from studies.errors import ArtifactsError
from studies.files import open_regular
from studies.storage.engine import parse_url

ArtifactKind = Literal["checkpoints", "artifacts", "weights"]
"""Kind of file: checkpoints of running trials, files for the dashboard, or weights of the best
networks."""

DEFAULT_PARENT = Path("studies")
"""Parent of the default folders of studies on a server, relative to the working directory."""

_TMP_SUFFIX = ".part"


class AtomicFileStore(FileSystemArtifactStore):
    """Optuna's file system store with atomic writes.

    Args:
        path: folder of the store; created by the first write.
        remove_when_empty: whether to remove the folder when it becomes empty.
    """

    def __init__(self, path: Path, remove_when_empty: bool = False) -> None:
        super().__init__(path)
        self.path = path
        self.remove_when_empty = remove_when_empty

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an artifact atomically."""
        atomic_write(Path(self._get_filepath(artifact_id)), content_body)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact for reading; a pipe or a device in its place is refused."""
        try:
            return open_regular(Path(self._get_filepath(artifact_id)))
        except FileNotFoundError as error:
            raise ArtifactNotFound("not found") from error

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact and the temporary files that killed writers left."""
        path = Path(self._get_filepath(artifact_id))
        for temporary in path.parent.glob(f"{path.name}.*{_TMP_SUFFIX}"):
            temporary.unlink(missing_ok=True)
        super().remove(artifact_id)

    def purge(self, folder: str, suffix: str) -> None:
        """Remove files with a suffix from a subfolder, and the subfolder if it becomes empty."""
        inside = self.path / folder
        for pattern in (f"*{suffix}", f"*{suffix}.*{_TMP_SUFFIX}"):
            for path in inside.glob(pattern):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # missing or not empty
            inside.rmdir()
            if self.remove_when_empty:
                self.path.rmdir()


Store = AtomicFileStore | Boto3ArtifactStore
"""An artifact store, also usable by Optuna and its dashboard."""


def list_files(store: Store, folder: str) -> list[str]:
    """Return the names of the files in a folder of a store."""
    if isinstance(store, AtomicFileStore):
        inside = store.path / folder
        return [path.name for path in inside.iterdir()] if inside.is_dir() else []
    prefix = f"{folder}/"
    paginator = store.client.get_paginator("list_objects_v2")
    pages = paginator.paginate(Bucket=store.bucket, Prefix=prefix)
    return [file["Key"].removeprefix(prefix) for page in pages for file in page.get("Contents", ())]


def store_location(store: Store, folder: str) -> str:
    """Return the location of a folder of a store: a path or ``s3://BUCKET/FOLDER``."""
    if isinstance(store, AtomicFileStore):
        return str(store.path / folder)
    return f"s3://{store.bucket}/{folder}"


def open_store(
    artifacts: str | None, storage: str, kind: ArtifactKind, read_only: bool = False
) -> Store:
    """Open the artifact store for files of a kind, without creating anything.

    Args:
        artifacts: a folder or ``s3://BUCKET`` for all kinds; None for one folder per kind, next to
            the SQLite file, or in :data:`DEFAULT_PARENT` for studies on a server.
        storage: URL of the storage.
        kind: kind of the files.
        read_only: whether the store need not be writable.

    Raises:
        ArtifactsError: if it cannot be used.
    """
    if artifacts is None:
        url = parse_url(storage)
        is_file = url.get_backend_name() == "sqlite"
        default = Path(f"{url.database}.{kind}") if is_file else DEFAULT_PARENT / kind
        return AtomicFileStore(default, remove_when_empty=True)
    parts = urlsplit(artifacts)
    if parts.scheme == "s3":
        return _open_bucket(artifacts, parts.netloc, parts.path)
    path = Path(artifacts)
    try:
        existing = path if path.exists() else path.parent
        is_writable = existing.is_dir() and (read_only or os.access(existing, os.W_OK))
    except OSError:  # a name too long, a folder without permission
        is_writable = False
    if "://" in artifacts or not is_writable:
        raise ArtifactsError(
            f"--artifacts {artifacts} is not writable: expected a folder, a new folder in an "
            "existing one, or s3://BUCKET"
        )
    return AtomicFileStore(path)


def _open_bucket(artifacts: str, bucket: str, path: str) -> Boto3ArtifactStore:
    if not bucket or path.strip("/"):
        raise ArtifactsError(f"--artifacts {artifacts} is not a bucket: expected s3://BUCKET")
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise ArtifactsError(
            f"--artifacts {artifacts} needs boto3; install it with pip install boto3"
        ) from error
    # Short timeouts, so that a worker can shut down while the bucket does not answer.
    config = Config(connect_timeout=2, read_timeout=3, retries={"total_max_attempts": 1})
    try:
        client = boto3.client("s3", config=config)
        client.head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError) as error:
        raise ArtifactsError(
            f"--artifacts {artifacts} cannot be used ({error}): expected an existing, writable "
            "bucket; check the name, AWS_ENDPOINT_URL and the credentials"
        ) from error
    return Boto3ArtifactStore(bucket, client)


def atomic_write(path: Path, content: Iterable[bytes]) -> None:
    """Write a file atomically: readers see the old or the new content, never a part.

    Args:
        path: file to write; its folder is created.
        content: the new content, in chunks.

    Raises:
        OSError: if it cannot be written; an existing file stays unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name[:200]}.{uuid4().hex}{_TMP_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
