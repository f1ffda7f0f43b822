"""The checkpoints of a study's running trials."""

import contextlib
import io

from optuna.artifacts.exceptions import ArtifactNotFound

from studies.stores import Folder, Store

_SUFFIX = ".checkpoint"


class Checkpoints:
    """The checkpoints of one study's trials, by trial number.

    Args:
        store: where they lie.
        folder: the study's own, in it.
    """

    def __init__(self, store: Store, folder: str) -> None:
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
            self._store.clear(self._folder, _SUFFIX)

    def _name(self, number: int) -> str:
        return f"{self._folder}/trial-{number}{_SUFFIX}"
