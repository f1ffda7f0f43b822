"""A warning when the corpus file changes while a study is being worked on."""

import logging
import time

from rnn.data.corpus import Corpus

LOOK_INTERVAL = 2.0
"""Seconds between two looks at the corpus file."""

_logger = logging.getLogger(__name__)


class CorpusWatch:
    """Looks at the file of a corpus now and then, and warns once if it has changed.

    A change does not affect this process, which has read the text into memory.

    Args:
        corpus: the corpus; without a file there is nothing to look at.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._file = corpus.file
        self._looked_at = time.monotonic()

    def look(self) -> None:
        """Warn if the file has changed; return at once within :data:`LOOK_INTERVAL`."""
        now = time.monotonic()
        if self._file is None or now - self._looked_at < LOOK_INTERVAL:
            return
        self._looked_at = now
        if change := self._file.describe_change():
            _logger.warning(
                f"corpus {self._file.path} {change} after it was read: running workers continue "
                "with the text that they read at their start; workers that start from now on are "
                "refused if the content differs, until it is restored"
            )
            self._file = None
