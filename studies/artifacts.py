"""Where files lie that belong to a study: in a folder, or in an S3-compatible bucket."""
# TODO-MERGE Files that are there as a whole or not at all.

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import urlsplit
from uuid import uuid4

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore

from studies.errors import ArtifactsError
from studies.storage.engine import parse_url

ArtifactKind = Literal["checkpoints", "artifacts", "weights"]
"""Of files: those of running trials, which go when all is finished; those that are to be looked at;
and the best networks."""

DEFAULT_PARENT = Path("studies")
"""Of the folders of studies on a server, as seen from where the command is run."""

_BESIDE = ".part"


class AtomicFileStore(FileSystemArtifactStore):
    """Optuna's artifacts in a folder, each of them there as a whole or not at all.

    Args:
        path: of the folder; it is made when something is written.
        remove_when_empty: whether to remove it when it is empty.
    """

    def __init__(self, path: Path, remove_when_empty: bool = False) -> None:
        super().__init__(path)
        self.path = path
        self.remove_when_empty = remove_when_empty

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an artifact beside its place, and put it there when it is on the disk."""
        place = Path(self._get_filepath(artifact_id))
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f"{place.name}.{uuid4().hex}{_BESIDE}")
        try:
            with beside.open("xb") as file:
                shutil.copyfileobj(content_body, file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(place)
        finally:
            beside.unlink(missing_ok=True)

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact, and what killed writers have left beside it."""
        place = Path(self._get_filepath(artifact_id))
        for beside in place.parent.glob(f"{place.name}.*{_BESIDE}"):
            beside.unlink(missing_ok=True)
        super().remove(artifact_id)

    def purge(self, folder: str, suffix: str) -> None:
        """Remove what ends so in a folder of this one, and the folder if nothing else is in it."""
        inside = self.path / folder
        for pattern in (f"*{suffix}", f"*{suffix}.*{_BESIDE}"):
            for path in inside.glob(pattern):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or something else is in it
            inside.rmdir()
            if self.remove_when_empty:
                self.path.rmdir()


Store = AtomicFileStore | Boto3ArtifactStore
"""What Optuna, its dashboard and this project alike read and write files through."""


def list_files(store: Store, folder: str) -> list[str]:
    """Return the names of the files that lie in a folder of a store."""
    if isinstance(store, AtomicFileStore):
        inside = store.path / folder
        return [path.name for path in inside.iterdir()] if inside.is_dir() else []
    prefix = f"{folder}/"
    pages = store.client.get_paginator("list_objects_v2")
    found = pages.paginate(Bucket=store.bucket, Prefix=prefix)
    return [file["Key"].removeprefix(prefix) for page in found for file in page.get("Contents", ())]


def store_location(store: Store, folder: str) -> str:
    """Return where a folder of a store is, as a path or as ``s3://BUCKET/FOLDER``."""
    if isinstance(store, AtomicFileStore):
        return str(store.path / folder)
    return f"s3://{store.bucket}/{folder}"


def open_store(
    artifacts: str | None, storage: str, kind: ArtifactKind, read_only: bool = False
) -> Store:
    """Return the place for files of a kind; nothing is made there yet.

    Args:
        artifacts: a folder, or ``s3://BUCKET``, for all kinds; None for a folder of each kind
            beside the SQLite file, or in :data:`DEFAULT_PARENT` where the studies are on a server.
        storage: the storage's URL.
        kind: of the files.
        read_only: whether nothing is to be written there.

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
    except OSError:  # a name that is too long, a folder that may not be looked into
        is_writable = False
    if "://" in artifacts or not is_writable:
        raise ArtifactsError(
            f"--artifacts {artifacts} cannot be written to; allowed: a folder, one that can be "
            "made in an existing folder, or s3://BUCKET; name another"
        )
    return AtomicFileStore(path)


def _open_bucket(artifacts: str, bucket: str, path: str) -> Boto3ArtifactStore:
    if not bucket or path.strip("/"):
        raise ArtifactsError(
            f"--artifacts {artifacts} is no bucket; allowed: s3://BUCKET; correct it"
        )
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise ArtifactsError(
            f"--artifacts {artifacts} needs boto3; install it with pip install boto3"
        ) from error
    # Short: what cannot be written is not waited for, and a stop is.
    config = Config(connect_timeout=2, read_timeout=3, retries={"total_max_attempts": 1})
    try:
        client = boto3.client("s3", config=config)
        client.head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError) as error:
        raise ArtifactsError(
            f"--artifacts {artifacts} cannot be used ({error}); allowed: a bucket that exists and "
            "that you may write to; check the name, AWS_ENDPOINT_URL and the credentials"
        ) from error
    return Boto3ArtifactStore(bucket, client)


def atomic_write(path: Path, content: Iterable[bytes]) -> None:
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
