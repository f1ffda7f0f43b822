"""Artifact stores, in a folder or an S3-compatible bucket, and the files of a study in them.

Files and rows cannot change in one transaction. A record in the folder ``unowned`` of the store of
checkpoints says of a study's folder that no study owns it: it is written before the first file of
a copy, and removed before the copy's rows are committed; it is written once a study's rows are
deleted, and removed after its files. So what a killed process leaves is found, and the next process
removes it.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args
from urllib.parse import urlsplit
from uuid import UUID, uuid5

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from studies.attributes import FOLDER_NAME
from studies.errors import ArtifactsError
from studies.files import (
    STALE_SECONDS,
    atomic_write,
    open_regular,
    remove_temporary_files,
    remove_temporary_files_of,
)
from studies.storage.changes import OwnedFiles
from studies.storage.engine import parse_url

ArtifactKind = Literal["checkpoints", "artifacts", "weights", "cells"]
"""Kind of file: checkpoints of running trials, files for the dashboard, weights of the best
networks, or source files of users' own cells and tasks."""

DEFAULT_PARENT = Path("studies")
"""Parent of the default folders of studies on a server, relative to the working directory."""

UNOWNED = "unowned"
"""Folder, next to those of the studies' checkpoints, of the records of unowned folders."""

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
        path = self._locate(artifact_id)
        self.remove_temporary_files(artifact_id.rpartition("/")[0] or None, STALE_SECONDS)
        atomic_write(path, content_body)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact for reading; a pipe or a device in its place is refused."""
        try:
            return open_regular(self._locate(artifact_id))
        except FileNotFoundError as error:
            raise ArtifactNotFound("not found") from error

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact and the temporary files that killed writers left."""
        remove_temporary_files_of(self._locate(artifact_id), min_age=None)
        super().remove(artifact_id)

    def list_names(self, folder: str) -> list[str]:
        """Return the names of the files in a subfolder."""
        inside = self._locate(folder, FOLDER_NAME)
        return [path.name for path in inside.iterdir()] if inside.is_dir() else []

    def remove_temporary_files(self, folder: str | None, min_age: float | None = None) -> None:
        """Remove the temporary files of killed writers from a subfolder, or from the folder itself.

        Files younger than ``min_age`` seconds are kept.
        """
        inside = self.path if folder is None else self._locate(folder, FOLDER_NAME)
        prefix = "" if folder is None else f"{folder}/"
        remove_temporary_files(inside, lambda file: self._names.fullmatch(prefix + file), min_age)

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
                self._locate(folder, FOLDER_NAME).rmdir()
            if self.remove_when_empty:
                self.path.rmdir()

    def age(self, artifact_id: str) -> float:
        """Return the seconds since an artifact was written."""
        return time.time() - self._locate(artifact_id).stat().st_mtime

    def _locate(self, name: str, pattern: str | None = None) -> Path:
        _require_name(pattern or self._names, name)
        path = self.path / name
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


def local_folder(store: Store, name: str) -> Path | None:
    """Return a folder of a store; None in a bucket."""
    return store.path / name if isinstance(store, AtomicFileStore) else None


def store_location(store: Store, name: str) -> str:
    """Return the location of a file or folder of a store: a path or ``s3://BUCKET/NAME``."""
    if isinstance(store, AtomicFileStore):
        return str(store.path / name)
    return f"s3://{store.bucket}/{name}"


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
    path = existing = Path(artifacts)
    try:
        try:
            path.lstat()
        except FileNotFoundError:
            existing = path.parent
        is_writable = existing.is_dir() and (read_only or os.access(existing, os.W_OK))
    except OSError:  # a name too long, a folder without permission
        is_writable = False
    if "://" in artifacts or not is_writable:
        raise ArtifactsError(
            f"--artifacts {artifacts} is not writable: expected a folder, a new folder in an "
            "existing one, or s3://BUCKET"
        )
    return AtomicFileStore(path, kind)


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


# ------------------------------------------------------------------ the files of a study

_CHUNK_BYTES = 2**20

_NAMESPACE = UUID("6f1b2d0c-6c0e-4d0b-9a55-5d2c3b9f7a41")

_MAX_RECORD_BYTES = 2**24


def map_artifact_ids(owned: OwnedFiles, folder: str) -> dict[str, str]:
    """Return the names that the files of kind ``artifacts`` have in a copy, by their own names.

    Args:
        owned: files of the study that is copied.
        folder: artifact folder of the copy.
    """
    return {name: str(uuid5(_NAMESPACE, f"{folder}/{name}")) for name in owned.artifact_ids}


@dataclass(frozen=True)
class CopiedFiles:
    """Number and size of copied files, and how many of the dashboard's files were missing."""

    count: int = 0
    size: int = 0
    missing: int = 0


class StudyStores:
    """The artifact stores of a storage.

    Args:
        artifacts: location of the artifacts, see :func:`studies.artifacts.open_store`.
        storage: URL of the storage.
        read_only: whether the stores need not be writable.
    """

    def __init__(self, artifacts: str | None, storage: str, read_only: bool = False) -> None:
        self._stores: Mapping[ArtifactKind, Store] = {
            kind: open_store(artifacts, storage, kind, read_only) for kind in get_args(ArtifactKind)
        }

    def list_files(self, owned: OwnedFiles) -> Iterator[tuple[ArtifactKind, str]]:
        """Yield kind and name of a study's files; of the dashboard's, those that it lists."""
        if owned.folder is not None:
            for kind in ("checkpoints", "weights", "cells"):
                for name in sorted(self._stores[kind].list_names(owned.folder)):
                    if _kind(name) == kind:
                        yield kind, f"{owned.folder}/{name}"
        for name in owned.artifact_ids:
            yield "artifacts", name

    def measure(self, folder: str) -> int | None:
        """Return the bytes of checkpoints, weights and cells; None where that is not cheap."""
        if isinstance(self._stores["checkpoints"], BucketStore):
            return None
        size = 0
        for kind, name in self.list_files(OwnedFiles(folder, ())):
            with contextlib.suppress(OSError):  # removed meanwhile
                size += Path(store_location(self._stores[kind], name)).stat().st_size
        return size

    def copy_files(
        self, owned: OwnedFiles, target: "StudyStores", folder: str, on_file: Callable[[], None]
    ) -> CopiedFiles:
        """Copy a study's files, and compare the SHA-256 of each with that of its copy.

        Args:
            owned: files of the study.
            target: stores to copy them to.
            folder: artifact folder of the copy.
            on_file: called before each file.

        Raises:
            ArtifactsError: if a file cannot be copied, or changes meanwhile.
        """
        names = map_artifact_ids(owned, folder)
        count = size = missing = 0
        for kind, name in self.list_files(owned):
            on_file()
            new_name = names.get(name) or f"{folder}/{name.partition('/')[2]}"
            try:
                with contextlib.closing(self._stores[kind].open_reader(name)) as content:
                    target._stores[kind].write(new_name, content)
                copied = _digest(target._stores[kind], new_name)
                if _digest(self._stores[kind], name) != copied:
                    raise ArtifactsError("it changed, or its copy is damaged")
            except ArtifactNotFound as error:
                if kind != "artifacts":
                    raise ArtifactsError(f"{name} disappeared while it was copied") from error
                missing += 1
                continue
            except store_errors() as error:
                raise ArtifactsError(f"cannot copy {name} ({error})") from error
            count, size = count + 1, size + copied[0]
        return CopiedFiles(count, size, missing)

    def remove_files(self, owned: OwnedFiles) -> None:
        """Remove the files of a study, those that killed writers left included."""
        for kind, name in self.list_files(owned):
            with contextlib.suppress(ArtifactNotFound):
                self._stores[kind].remove(name)
        for kind, store in self._stores.items():
            if isinstance(store, AtomicFileStore):
                folder = None if kind == "artifacts" else owned.folder
                if folder is not None:
                    store.remove_temporary_files(folder)
                store.remove_if_empty(folder)

    # ------------------------------------------------------------------ folders without a study

    def mark_unowned(self, owned: OwnedFiles, copy: str | None = None) -> None:
        """Record that no study owns a folder.

        Args:
            owned: the folder, and the names of the files for the dashboard.
            copy: of a copy that is under way: what is copied to where.
        """
        record = {"artifacts": list(owned.artifact_ids), "copy": copy}
        content = io.BytesIO(json.dumps(record).encode())
        self._stores["checkpoints"].write(f"{UNOWNED}/{owned.folder}", content)

    def is_marked_unowned(self, folder: str) -> bool:
        """Return whether a folder is recorded as one that no study owns."""
        return folder in self._stores["checkpoints"].list_names(UNOWNED)

    def unmark(self, folder: str) -> None:
        """Remove the record of a folder, if there is one."""
        store = self._stores["checkpoints"]
        with contextlib.suppress(ArtifactNotFound):
            store.remove(f"{UNOWNED}/{folder}")
        if isinstance(store, AtomicFileStore):
            store.remove_if_empty(UNOWNED)

    def list_unowned(self, copy: str | None = None) -> list[OwnedFiles]:
        """List the folders that killed processes left without a study.

        Args:
            copy: copy that is about to begin: an earlier attempt at it has ended. Those of others
                are listed if they are an hour old; a copy renews its record.
        """
        store = self._stores["checkpoints"]
        found = []
        for folder in store.list_names(UNOWNED):
            name = f"{UNOWNED}/{folder}"
            try:
                with contextlib.closing(store.open_reader(name)) as reader:
                    record = json.loads(reader.read(_MAX_RECORD_BYTES))
                of_copy, artifact_ids = record["copy"], tuple(map(str, record["artifacts"]))
                is_left = of_copy in (None, copy) or store.age(name) > STALE_SECONDS
            except (ArtifactNotFound, ArtifactsError, KeyError, OSError, TypeError, ValueError):
                continue  # removed meanwhile, or not a record
            if is_left:
                found.append(OwnedFiles(folder, artifact_ids))
        return found


def _kind(name: str) -> ArtifactKind | None:
    """Return the kind of a file in a study's folder, which all kinds may share."""
    if name.startswith(("cell-", "task-")) and name.endswith(".py"):
        return "cells"
    if not name.startswith("trial-") or name.endswith(".part"):
        return None
    return "weights" if name.endswith(".safetensors") else "checkpoints"


def _digest(store: Store, name: str) -> tuple[int, str]:
    """Return size and SHA-256 of a file."""
    size, digest = 0, hashlib.sha256()
    reader: BinaryIO | Any = store.open_reader(name)
    with contextlib.closing(reader):
        while chunk := reader.read(_CHUNK_BYTES):
            size += len(chunk)
            digest.update(chunk)
    return size, digest.hexdigest()
