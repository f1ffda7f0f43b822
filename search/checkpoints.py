"""Where the checkpoints of running trials lie: in a folder, or in an S3-compatible bucket."""

import contextlib
import io
import os
import shutil
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit
from uuid import uuid4

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from search.errors import ArtifactsError
from studies.engine import parse_url

DEFAULT_FOLDER = Path("studies") / "checkpoints"
"""Of the checkpoints of studies on a server, as seen from where the command is run."""

_SUFFIX = ".checkpoint"
_BESIDE = ".part"


class Folder(FileSystemArtifactStore):
    """Optuna's artifacts in a folder, each of them there as a whole or not at all.

    Args:
        path: of the folder; it is made when something is written.
        is_ours: whether to remove it when it is empty.
    """

    def __init__(self, path: Path, is_ours: bool = False) -> None:
        super().__init__(path)
        self.path = path
        self.is_ours = is_ours

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

    def clear(self, folder: str) -> None:
        """Remove a folder's checkpoints, and the folder if nothing else is in it."""
        inside = self.path / folder
        for pattern in (f"*{_SUFFIX}", f"*{_SUFFIX}.*{_BESIDE}"):
            for path in inside.glob(pattern):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or something else is in it
            inside.rmdir()
            if self.is_ours:
                self.path.rmdir()


class Checkpoints:
    """The checkpoints of one study's trials, by trial number.

    Args:
        store: where they lie.
        folder: the study's own, in it.
    """

    def __init__(self, store: Folder | Boto3ArtifactStore, folder: str) -> None:
        self._store = store
        self._folder = folder

    def write(self, number: int, content: bytes) -> None:
        """Write a trial's checkpoint in place of its last one.

        Raises:
            OSError, Exception: whatever the place raises; the last one stays as it was.
        """
        self._store.write(self._name(number), io.BytesIO(content))

    def read(self, number: int) -> bytes | None:
        """Return a trial's last checkpoint; None if there is none."""
        try:
            with contextlib.closing(self._store.open_reader(self._name(number))) as reader:
                return reader.read()
        except ArtifactNotFound:
            return None

    def set_aside(self, number: int, content: bytes) -> str:
        """Put a checkpoint where nobody reads it again; return the name that it has there."""
        aside = f"{self._folder}/trial-{number}.set-aside"
        self._store.write(aside, io.BytesIO(content))
        self.remove(number)
        return aside

    def remove(self, number: int) -> None:
        """Remove a trial's checkpoint, if there is one."""
        with contextlib.suppress(ArtifactNotFound):
            self._store.remove(self._name(number))

    def clear(self) -> None:
        """Remove what is left when all trials are finished; in a bucket that is nothing."""
        if isinstance(self._store, Folder):
            self._store.clear(self._folder)

    def _name(self, number: int) -> str:
        return f"{self._folder}/trial-{number}{_SUFFIX}"


def open_store(artifacts: str | None, storage: str) -> Folder | Boto3ArtifactStore:
    """Return the place for checkpoints; nothing is made there yet.

    Args:
        artifacts: a folder, or ``s3://BUCKET``; None for one beside the SQLite file, or
            :data:`DEFAULT_FOLDER` where the studies are on a server.
        storage: the storage's URL.

    Raises:
        ArtifactsError: if it cannot be used.
    """
    if artifacts is None:
        url = parse_url(storage)
        is_file = url.get_backend_name() == "sqlite"
        default = Path(f"{url.database}.checkpoints") if is_file else DEFAULT_FOLDER
        return Folder(default, is_ours=True)
    parts = urlsplit(artifacts)
    if parts.scheme == "s3":
        return _open_bucket(artifacts, parts.netloc, parts.path)
    path = Path(artifacts)
    try:
        existing = path if path.exists() else path.parent
        is_writable = existing.is_dir() and os.access(existing, os.W_OK)
    except OSError:  # a name that is too long, a folder that may not be looked into
        is_writable = False
    if "://" in artifacts or not is_writable:
        raise ArtifactsError(
            f"--artifacts {artifacts} cannot be written to; allowed: a folder, one that can be "
            "made in an existing folder, or s3://BUCKET; name another"
        )
    return Folder(path)


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
    # Short: a checkpoint that cannot be written is not waited for, and a stop is.
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
