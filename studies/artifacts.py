"""Artifact stores of a study, in a folder or an S3-compatible bucket, and atomic file writes."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import urlsplit

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from studies.attributes import FOLDER_NAME
from studies.errors import ArtifactsError
from studies.files import open_regular
from studies.storage.engine import parse_url
from studies.temporary_files import (
    STALE_SECONDS,
    remove_temporary_files,
    remove_temporary_files_of,
    temporary_file,
)

ArtifactKind = Literal["checkpoints", "artifacts", "weights", "cells"]
"""Kind of file: checkpoints of running trials, files for the dashboard, weights of the best
networks, or source files of users' own cells and tasks."""

DEFAULT_PARENT = Path("studies")
"""Parent of the default folders of studies on a server, relative to the working directory."""

UNOWNED = "unowned"
"""Folder, next to those of the studies' checkpoints, of the records of folders that no study owns;
see :mod:`studies.study_files`."""

_FILE_NAMES = {
    "checkpoints": re.compile(rf"{FOLDER_NAME}/trial-[0-9]+\.[a-z]+|{UNOWNED}/{FOLDER_NAME}"),
    "weights": re.compile(rf"{FOLDER_NAME}/trial-[0-9]+\.[a-z]+"),
    "artifacts": re.compile(FOLDER_NAME),
    "cells": re.compile(rf"{FOLDER_NAME}/(cell|task)-\w+\.py"),
}
"""Names of the files in a store, by kind. They are made of what a database says, which others may
have changed, and must not lead to other files."""


def _require_name(pattern: re.Pattern[str] | str, name: str) -> None:
    if not re.fullmatch(pattern, name):
        raise ArtifactsError(
            f"{name!r} is not a valid name of an artifact: another program changed the database; "
            "use another study"
        )


class AtomicFileStore(FileSystemArtifactStore):
    """Optuna's file system store with atomic writes, confined to its folder.

    Args:
        path: folder of the store; created by the first write.
        kind: kind of the files, which determines their names.
        remove_when_empty: whether to remove the folder when it becomes empty.
    """

    def __init__(self, path: Path, kind: ArtifactKind, remove_when_empty: bool = False) -> None:
        super().__init__(path)
        self.path = path
        self.remove_when_empty = remove_when_empty
        self._names = _FILE_NAMES[kind]

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an artifact atomically; remove old temporary files of killed writers."""
        path = self._locate_file(artifact_id)
        prefix = artifact_id[: artifact_id.rfind("/") + 1]
        self._remove_temporary_files(path.parent, prefix, STALE_SECONDS)
        atomic_write(path, content_body)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact for reading; a pipe or a device in its place is refused."""
        try:
            return open_regular(self._locate_file(artifact_id))
        except FileNotFoundError as error:
            raise ArtifactNotFound("not found") from error

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact and the temporary files that killed writers left."""
        path = self._locate_file(artifact_id)
        remove_temporary_files_of(path, min_age=None)
        super().remove(artifact_id)

    def list_names(self, folder: str) -> list[str]:
        """Return the names of the files in a subfolder."""
        inside = self._locate_folder(folder)
        return [path.name for path in inside.iterdir()] if inside.is_dir() else []

    def remove_temporary_files(self, folder: str) -> None:
        """Remove the temporary files that killed writers left in a subfolder."""
        self._remove_temporary_files(self._locate_folder(folder), f"{folder}/", min_age=None)

    def purge(self, folder: str, suffix: str) -> None:
        """Remove trials' files with a suffix and all temporary files from a subfolder.

        The subfolder is removed if it becomes empty.
        """
        self.remove_temporary_files(folder)
        for name in self.list_names(folder):
            if name.endswith(suffix) and self._names.fullmatch(f"{folder}/{name}"):
                with contextlib.suppress(ArtifactNotFound):  # removed by another process
                    self.remove(f"{folder}/{name}")
        self.remove_if_empty(folder)

    def remove_if_empty(self, folder: str | None = None) -> None:
        """Remove a subfolder, and with it the folder of the store, if they are empty."""
        with contextlib.suppress(OSError):  # missing or not empty
            if folder is not None:
                self._locate_folder(folder).rmdir()
            if self.remove_when_empty:
                self.path.rmdir()

    def age(self, artifact_id: str) -> float:
        """Return the seconds since an artifact was written."""
        return time.time() - self._locate_file(artifact_id).stat().st_mtime

    def _remove_temporary_files(self, folder: Path, prefix: str, min_age: float | None) -> None:
        remove_temporary_files(folder, lambda file: self._names.fullmatch(prefix + file), min_age)

    def _locate_file(self, artifact_id: str) -> Path:
        _require_name(self._names, artifact_id)
        return self._require_inside(self.path / artifact_id)

    def _locate_folder(self, folder: str) -> Path:
        _require_name(FOLDER_NAME, folder)
        return self._require_inside(self.path / folder)

    def _require_inside(self, path: Path) -> Path:
        try:
            resolved = path.resolve()
        except RuntimeError:  # a loop of links
            resolved = None
        if resolved is None or not resolved.is_relative_to(self.path.resolve()):
            raise ArtifactsError(
                f"{path} is a link that leads out of {self.path}: remove it, or move what it links "
                "to there"
            )
        return path


class BucketStore(Boto3ArtifactStore):
    """Optuna's store in an S3-compatible bucket, confined to the names of its files.

    Args:
        bucket: name of the bucket.
        client: client of the service.
        kind: kind of the files, which determines their names.
    """

    def __init__(self, bucket: str, client: Any, kind: ArtifactKind) -> None:
        super().__init__(bucket, client)
        self._names = _FILE_NAMES[kind]

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact for reading."""
        _require_name(self._names, artifact_id)
        return super().open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an artifact."""
        _require_name(self._names, artifact_id)
        super().write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact."""
        _require_name(self._names, artifact_id)
        super().remove(artifact_id)

    def list_names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder."""
        _require_name(FOLDER_NAME, folder)
        prefix = f"{folder}/"
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix
        )
        return [
            file["Key"].removeprefix(prefix) for page in pages for file in page.get("Contents", ())
        ]

    def age(self, artifact_id: str) -> float:
        """Return the seconds since an artifact was written, by the clock of the service."""
        _require_name(self._names, artifact_id)
        answer = self.client.head_object(Bucket=self.bucket, Key=artifact_id)
        sent = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
        seconds: float = (parsedate_to_datetime(sent) - answer["LastModified"]).total_seconds()
        return seconds


Store = AtomicFileStore | BucketStore
"""An artifact store, also usable by Optuna and its dashboard."""


def store_errors() -> tuple[type[Exception], ...]:
    """Return what stores raise if a folder or a bucket cannot be used or lacks a file."""
    errors = (ArtifactNotFound, ArtifactsError, OSError)
    if "boto3" not in sys.modules:
        return errors
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    return (*errors, Boto3Error, BotoCoreError, ClientError)


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
        return AtomicFileStore(default, kind, remove_when_empty=True)
    parts = urlsplit(artifacts)
    if parts.scheme == "s3":
        return _open_bucket(artifacts, parts.netloc, parts.path, kind)
    path = Path(artifacts)
    try:
        existing = path if _lexists(path) else path.parent
        is_writable = existing.is_dir() and (read_only or os.access(existing, os.W_OK))
    except OSError:  # a name too long, a folder without permission
        is_writable = False
    if "://" in artifacts or not is_writable:
        raise ArtifactsError(
            f"--artifacts {artifacts} is not writable: expected a folder, a new folder in an "
            "existing one, or s3://BUCKET"
        )
    return AtomicFileStore(path, kind)


def _lexists(path: Path) -> bool:
    """Return whether a file, folder or link exists.

    Raises:
        OSError: if that cannot be known; ``os.path.lexists`` returns False.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _open_bucket(artifacts: str, bucket: str, path: str, kind: ArtifactKind) -> BucketStore:
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
    return BucketStore(bucket, client, kind)


def atomic_write(path: Path, content: Iterable[bytes]) -> None:
    """Write a file atomically: readers see the old or the new content, never a part.

    Args:
        path: file to write; its folder is created.
        content: the new content, in chunks.

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
