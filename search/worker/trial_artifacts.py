"""A file for each of a study's trials, in the study's own folder of a store."""
# TODO-MERGE The checkpoints of a study's running trials.
# TODO-MERGE The weights of a study's best trials.

import contextlib
import io
import re
from collections.abc import Sequence

from optuna.artifacts.exceptions import ArtifactNotFound

from studies.artifacts import AtomicFileStore, Store, list_files, store_location


class TrialArtifacts:
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
        return store_location(self._store, self._folder)

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


class CheckpointStore(TrialArtifacts):
    """The checkpoints of one study's trials, by trial number."""

    suffix = ".checkpoint"

    def set_aside(self, number: int, content: bytes) -> str:
        """Put a checkpoint where nobody reads it again; return the name that it has there."""
        aside = f"{self._folder}/trial-{number}.set-aside"
        self._store.write(aside, io.BytesIO(content))
        self.remove(number)
        return aside

    def clear(self) -> None:
        """Remove what is left when all trials are finished; in a bucket that is nothing."""
        if isinstance(self._store, AtomicFileStore):
            self._store.purge(self._folder, self.suffix)


_NAME = re.compile(r"trial-(\d+)\.safetensors")


class WeightStore(TrialArtifacts):
    """The weights of one study's best trials, by trial number.

    Attributes:
        reach: how many trials after those that are kept :meth:`keep_only` need be told of, if no
            other's weights are written: as many as may end at the same time.
    """

    suffix = ".safetensors"
    reach = 32

    def kept(self) -> set[int]:
        """Return the numbers of the trials whose weights are there."""
        found = map(_NAME.fullmatch, list_files(self._store, self._folder))
        return {int(name[1]) for name in found if name}

    def keep_only(self, best: Sequence[int], keep: int) -> None:
        """Remove the weights of those that are named after the best.

        Args:
            best: numbers of trials, the best first; others' weights stay.
            keep: how many of them to keep.
        """
        for number in self.kept().intersection(best[keep:]):
            self.remove(number)
