"""The checkpoints of a study's running trials."""

import io

from search.trial_files import TrialFiles
from studies.stores import Folder


class Checkpoints(TrialFiles):
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
        if isinstance(self._store, Folder):
            self._store.clear(self._folder, self.suffix)
