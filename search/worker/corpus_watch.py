"""A warning when the corpus file changes during a search."""

import logging
import time

from rnn.data.corpus import Corpus

CHECK_INTERVAL = 2.0
"""Seconds between two checks of the corpus file."""

_logger = logging.getLogger(__name__)


class CorpusWatch:
    """Checks the file of a corpus at intervals, and warns once if it has changed.

    A change does not affect this process, which has read the text into memory.

    Args:
        corpus: the corpus; one without a file never changes.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._file = corpus.file
        self._checked_at = time.monotonic()

    def check(self) -> None:
        """Warn if the file has changed; do nothing within `CHECK_INTERVAL` of the last check."""
        now = time.monotonic()
        if self._file is None or now - self._checked_at < CHECK_INTERVAL:
            return
        self._checked_at = now
        if change := self._file.describe_change():
            _logger.warning(
                f"corpus {self._file.path} {change} after it was read: running workers continue "
                "with the text that they have read; new workers are refused until the file has its "
                "content again"
            )
            self._file = None
