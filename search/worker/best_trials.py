"""Files that are kept of the best trials of a study, such as their weights."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Literal

from search.study import StudyHandle
from search.worker.trial_artifacts import RankedArtifacts
from studies.storage.counts import top_trials

Ranking = list[tuple[int, float]]
"""Numbers and values of trials, the best first."""

RankingQuery = Callable[[Callable[[], Ranking]], Ranking | None]
"""Reads a ranking from the storage; returns None if it does not answer soon."""

_logger = logging.getLogger(__name__)


class BestTrialFiles:
    """Writes a file for each of the best trials, and evicts those of trials that no longer are.

    A file is written before its trial's end is recorded, and removed after it, so that those of the
    best complete trials exist whatever ends a process.

    Args:
        handle: the study.
        store: store of the files.
        query: reads the ranking of the trials.
        kind: what the files hold; the setting ``keep_KIND`` says of how many trials.

    Attributes:
        store: store of the files.
    """

    def __init__(
        self,
        handle: StudyHandle,
        store: RankedArtifacts,
        query: RankingQuery,
        kind: Literal["weights", "checkpoints"],
    ) -> None:
        self.store = store
        self._handle = handle
        self._query = query
        self._kind = kind
        config, stored = handle.config, handle.record.config
        setting = f"keep_{kind}"
        self._count = _limit(getattr(config, setting))
        # A worker that keeps fewer than the study's config leaves those of other workers.
        self._evict_after = max(self._count, _limit(getattr(stored, setting)))
        self._written: set[int] = set()

    @property
    def keeps_any(self) -> bool:
        """Whether this worker keeps files at all."""
        return self._count > 0

    def select(self, values: Mapping[int, float]) -> set[int]:
        """Return which trials, about to be complete, have a file to write.

        Args:
            values: objective values by trial number.
        """
        if not self._count or math.isinf(self._count):
            return set(values) if self._count else set()
        count = int(self._count)
        candidates = [*(self._read_ranking(count) or []), *values.items()]
        ranking = sorted(candidates, key=lambda trial: (trial[1], trial[0]))
        return {number for number, _ in ranking[:count]} & values.keys()

    def write(self, number: int, content: bytes) -> None:
        """Write a trial's file.

        Raises:
            OSError, Exception: error of the store.
        """
        self.store.write(number, content)
        self._written.add(number)

    def evict(self, number: int) -> None:
        """Remove files of trials no longer among the best, once a trial's end is recorded."""
        try:
            if number not in self._written:
                # Left by a worker that was killed before it recorded the trial's end.
                self.store.remove(number)
                return
            self._written.remove(number)
            if math.isinf(self._evict_after):
                return
            count = int(self._evict_after)
            ranking = self._read_ranking(count + self.store.eviction_margin)
            if ranking is not None:
                self.store.evict([number for number, _ in ranking], count)
        except Exception as error:
            _logger.warning(f"cannot remove {self._kind} of surpassed trials ({error})")

    def _read_ranking(self, count: int) -> Ranking | None:
        storage, study_id = self._handle.storage, self._handle.study_id
        return self._query(lambda: top_trials(storage, study_id, count))


def _limit(setting: int | Literal["all"]) -> float:
    return math.inf if setting == "all" else setting
