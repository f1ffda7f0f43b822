"""Files that are kept of the best trials of a study: their checkpoints and weights."""

import logging
import math
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Literal, Protocol, TypeVar

from rnn.export import SavedModel, SavedTask, generate, serialize_model
from search.study import StudyHandle
from search.worker.trial_artifacts import RankedArtifacts, WeightStore
from studies.best import BestReader
from studies.storage.counts import top_trials
from studies.text import to_printable

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)

SAMPLE_LENGTH = 300
"""Tokens of the text sample that a network generates for the report."""

SAMPLE_TEMPERATURE = 0.8


class StorageQuery(Protocol):
    """How queries are run: :meth:`search.worker.claims.ClaimManager.ask` after a flush."""

    def __call__(self, query: Callable[[], _T], /) -> _T | None:
        """Run a query; return None if the storage does not answer soon."""


class BestTrialFiles:
    """Writes a file for each of the best trials, and evicts those of trials that no longer are.

    A file is written before its trial's end is recorded, and removed after it, so that those of the
    best complete trials exist whatever ends a process.

    Of replicates, the best run of each architecture comes first, in the order of their means
    (:mod:`studies.best`), then the second best runs. The losses that rank the architectures are
    known at the end of a trial only, so that each run's file is written. The means change with each
    run: until all are finished, and with planned looks until the end, no best run of an
    architecture is removed.

    Args:
        handle: the study.
        store: store of the files.
        query: runs a query of the storage.
        kind: what the files hold; the setting ``keep_KIND`` says of how many trials.

    Attributes:
        store: store of the files.
    """

    def __init__(
        self,
        handle: StudyHandle,
        store: RankedArtifacts,
        query: StorageQuery,
        kind: Literal["weights", "checkpoints"],
    ) -> None:
        self.store = store
        self._handle = handle
        self._query = query
        self._kind = kind
        config, stored = handle.config, handle.record.config
        self._best = BestReader(handle.study, handle.storage, stored)
        self._keeps_each = bool(stored.refinement and stored.refinement.looks)
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
        if not self._count:
            return set()
        if math.isinf(self._count) or self._best.has_replicates:
            return set(values)
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
            is_written = number in self._written
            self._written.discard(number)
            if not is_written:
                # Left by a worker that was killed before it recorded the trial's end.
                self.store.remove(number)
            if math.isinf(self._evict_after):
                return
            count = int(self._evict_after)
            if self._best.has_replicates:
                self._evict_runs(count)
            elif is_written and (ranking := self._read_ranking(count + self.store.eviction_margin)):
                self.store.evict([number for number, _ in ranking], count)
        except Exception as error:
            _logger.warning(
                f"cannot remove {self._kind} of surpassed trials ({error})", exc_info=True
            )

    def _evict_runs(self, count: int) -> None:
        """Remove files of replicates that are no longer needed."""
        if (found := self._query(self._best.read_ranking)) is None:
            return
        trials, ranking = found
        places = zip_longest(*(each.runs for each in ranking))
        order = [run.number for place in places for run in place if run is not None]
        if count and (self._keeps_each or not all(trial.state.is_finished() for trial in trials)):
            count = max(count, len(ranking))
        self.store.evict(order, count)

    def _read_ranking(self, count: int) -> list[tuple[int, float]] | None:
        storage, study_id = self._handle.storage, self._handle.study_id
        return self._query(lambda: top_trials(storage, study_id, count))


def _limit(setting: int | Literal["all"]) -> float:
    return math.inf if setting == "all" else setting


class BestModelStore(BestTrialFiles):
    """Saves the weights of the best trials. No failure here ends a training.

    Args:
        handle: the study.
        weights: store of the weights.
        query: runs a query of the storage.
    """

    def __init__(self, handle: StudyHandle, weights: WeightStore, query: StorageQuery) -> None:
        super().__init__(handle, weights, query, "weights")

    def save(self, number: int, model: SavedModel) -> str | None:
        """Write a trial's weights; return a sample of the text that its network predicts.

        None if that fails, or the network was trained on another task.
        """
        try:
            self.write(number, serialize_model(model))
        except Exception as error:  # such as a full disk or an unreachable bucket
            _logger.warning(f"cannot save the weights of trial {number} ({error})", exc_info=True)
        if isinstance(model.task, SavedTask):
            return None
        try:
            sample = generate(model, length=SAMPLE_LENGTH, temperature=SAMPLE_TEMPERATURE)
            return to_printable(sample)
        except Exception as error:
            _logger.warning(f"cannot generate a sample of trial {number} ({error})", exc_info=True)
            return None
