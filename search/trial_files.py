"""A file for each of a study's trials, in the study's own folder of a store."""

import contextlib
import io

from optuna.artifacts.exceptions import ArtifactNotFound

from studies.stores import Store, place_of


class TrialFiles:
    """Files of one kind, by trial number.

    Args:
        store: where they lie.
        folder: the study's own, in it.

    Attributes:
        suffix: of their names.
    """

    suffix: str

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._folder = folder

    @property
    def place(self) -> str:
        """The folder that they lie in, as a path or as a part of a bucket."""
        return place_of(self._store, self._folder)

    def write(self, number: int, content: bytes) -> None:
        """Write a trial's file in place of its last one.

        Raises:
            OSError, Exception: whatever the place raises; the last one stays as it was.
        """
        self._store.write(self._name(number), io.BytesIO(content))

    def read(self, number: int) -> bytes | None:
        """Return what a trial's file holds; None if there is none."""
        try:
            with contextlib.closing(self._store.open_reader(self._name(number))) as reader:
                return reader.read()
        except ArtifactNotFound:
            return None

    def remove(self, number: int) -> None:
        """Remove a trial's file, if there is one."""
        with contextlib.suppress(ArtifactNotFound):
            self._store.remove(self._name(number))

    def _name(self, number: int) -> str:
        return f"{self._folder}/trial-{number}{self.suffix}"
