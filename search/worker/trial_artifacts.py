"""Files of a study's trials: checkpoints of unfinished ones; weights, checkpoints of the best."""

import contextlib
import io
import re
from collections.abc import Sequence

from optuna.artifacts.exceptions import ArtifactNotFound

from studies.artifacts import AtomicFileStore, Store, store_location


class TrialArtifacts:
    """Files of one kind, one for each trial.

    Args:
        store: artifact store.
        folder: folder of the study in the store.

    Attributes:
        suffix: suffix of the file names.
    """

    suffix: str

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._folder = folder

    @property
    def location(self) -> str:
        """Folder of the files, as a path or as part of a bucket."""
        return store_location(self._store, self._folder)

    def write(self, number: int, content: bytes) -> None:
        """Write or replace a trial's file.

        Raises:
            OSError, Exception: error of the store; the previous file is kept.
        """
        self._store.write(self._name(number), io.BytesIO(content))

    def read(self, number: int, max_bytes: int = -1) -> bytes | None:
        """Return the content of a trial's file, or its beginning; None if there is none.

        Args:
            number: number of the trial.
            max_bytes: number of bytes to read at most; -1 for all.
        """
        try:
            with contextlib.closing(self._store.open_reader(self._name(number))) as reader:
                return reader.read() if max_bytes < 0 else reader.read(max_bytes)
        except ArtifactNotFound:
            return None

    def remove(self, number: int) -> None:
        """Remove a trial's file, if there is one."""
        with contextlib.suppress(ArtifactNotFound):
            self._store.remove(self._name(number))

    def quarantine(self, number: int, content: bytes) -> str:
        """Move a damaged file to a name that is never read; return that name."""
        name = f"{self._folder}/trial-{number}.quarantined"
        self._store.write(name, io.BytesIO(content))
        self.remove(number)
        return name

    def remove_temporary_files(self) -> None:
        """Remove what killed writers left, when all trials are finished; a bucket has none."""
        if isinstance(self._store, AtomicFileStore):
            self._store.remove_temporary_files(self._folder)

    def _name(self, number: int) -> str:
        return f"{self._folder}/trial-{number}{self.suffix}"


class CheckpointStore(TrialArtifacts):
    """Checkpoints of the unfinished trials of one study."""

    suffix = ".checkpoint"

    def clear(self) -> None:
        """Remove the files left when all trials are finished; a bucket has none."""
        if isinstance(self._store, AtomicFileStore):
            self._store.purge(self._folder, self.suffix)


class RankedArtifacts(TrialArtifacts):
    """Files of the best trials of one study.

    Attributes:
        eviction_margin: number of trials ranked after those that are kept that suffices for
            :meth:`evict`: as many as may end at the same time.
    """

    eviction_margin = 32

    def list_trials(self) -> set[int]:
        """Return the numbers of the trials that have a file."""
        pattern = re.compile(rf"trial-(\d+){re.escape(self.suffix)}")
        names = map(pattern.fullmatch, self._store.list_names(self._folder))
        return {int(name[1]) for name in names if name}

    def evict(self, ranking: Sequence[int], count: int) -> None:
        """Remove the files of ranked trials after the best ones.

        Args:
            ranking: numbers of trials, the best first; files of other trials are kept.
            count: number of trials whose files are kept.
        """
        for number in self.list_trials().intersection(ranking[count:]):
            self.remove(number)


class WeightStore(RankedArtifacts):
    """Weights of the best trials of one study."""

    suffix = ".safetensors"


class FinalCheckpointStore(RankedArtifacts):
    """Checkpoints of complete trials of one study at their last step."""

    suffix = ".final"
