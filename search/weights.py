"""The weights of a study's best trials."""

import contextlib
import io
import re
from collections.abc import Sequence

from optuna.artifacts.exceptions import ArtifactNotFound

from studies.stores import Store, names_in

_NAME = re.compile(r"trial-(\d+)\.safetensors")


class BestWeights:
    """The weights of one study's best trials, by trial number.

    Args:
        store: where they lie.
        folder: the study's own, in it.

    Attributes:
        reach: how many trials after those that are kept :meth:`keep_only` need be told of, if no
            other's weights are written: as many as may end at the same time.
    """

    reach = 32

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._folder = folder

    def write(self, number: int, content: bytes) -> None:
        """Write a trial's weights.

        Raises:
            OSError, Exception: whatever the place raises.
        """
        self._store.write(self._name(number), io.BytesIO(content))

    def read(self, number: int) -> bytes | None:
        """Return a trial's weights; None if they are not kept."""
        try:
            with contextlib.closing(self._store.open_reader(self._name(number))) as reader:
                return reader.read()
        except ArtifactNotFound:
            return None

    def kept(self) -> set[int]:
        """Return the numbers of the trials whose weights are there."""
        found = map(_NAME.fullmatch, names_in(self._store, self._folder))
        return {int(name[1]) for name in found if name}

    def keep_only(self, best: Sequence[int], keep: int) -> None:
        """Remove the weights of those that are named after the best.

        Args:
            best: numbers of trials, the best first; others' weights stay.
            keep: how many of them to keep.
        """
        for number in self.kept().intersection(best[keep:]):
            self.remove(number)

    def remove(self, number: int) -> None:
        """Remove a trial's weights, if they are there."""
        with contextlib.suppress(ArtifactNotFound):
            self._store.remove(self._name(number))

    def _name(self, number: int) -> str:
        return f"{self._folder}/trial-{number}.safetensors"
