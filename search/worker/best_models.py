"""Store of the best trials' weights, and of text samples of their networks."""

import logging
from collections.abc import Callable, Mapping

from rnn.inference.generation import generate
from rnn.inference.saved_model import SavedModel, serialize_model
from search.study import StudyHandle
from search.worker.trial_artifacts import WeightStore
from studies.loader import read_study_record
from studies.storage.counts import top_trials
from studies.text import to_printable

SAMPLE_LENGTH = 300
"""Tokens of the text sample that a network generates for the report."""

SAMPLE_TEMPERATURE = 0.8

Ranking = list[tuple[int, float]]
"""Numbers and values of trials, the best first."""

_logger = logging.getLogger(__name__)


class BestModelStore:
    """Saves the weights of the best trials, and evicts those of trials that no longer are.

    Weights are written before a trial's end is recorded and removed after it, so that those of the
    best complete trials exist whatever ends a process. No failure here ends a training.

    Args:
        handle: the study.
        weights: store of the weights.
        query: reads from the storage; returns None if it does not answer soon.
    """

    def __init__(
        self,
        handle: StudyHandle,
        weights: WeightStore,
        query: Callable[[Callable[[], Ranking]], Ranking | None],
    ) -> None:
        self._handle = handle
        self._weights = weights
        self._query = query
        self._count = handle.config.keep_weights
        # A worker that keeps fewer than the study's config leaves those of other workers.
        self._evict_after = max(self._count, read_study_record(handle.study).config.keep_weights)
        self._saved: set[int] = set()

    def select(self, values: Mapping[int, float]) -> set[int]:
        """Return which trials, about to be complete, have weights to save.

        Args:
            values: objective values by trial number.
        """
        if not self._count:
            return set()
        candidates = [*(self._read_ranking(self._count) or []), *values.items()]
        ranking = sorted(candidates, key=lambda trial: (trial[1], trial[0]))
        return {number for number, _ in ranking[: self._count]} & values.keys()

    def save(self, number: int, model: SavedModel) -> str | None:
        """Write a trial's weights; return a text sample of its network, None if that fails."""
        try:
            self._weights.write(number, serialize_model(model))
            self._saved.add(number)
        except Exception as error:  # such as a full disk or an unreachable bucket
            _logger.warning(f"cannot save the weights of trial {number} ({error})")
        try:
            sample = generate(model, length=SAMPLE_LENGTH, temperature=SAMPLE_TEMPERATURE)
            return to_printable(sample)
        except Exception as error:
            _logger.warning(f"cannot generate a sample of trial {number} ({error})")
            return None

    def evict(self, number: int) -> None:
        """Remove weights that are no longer among the best, once a trial's end is recorded."""
        try:
            if number not in self._saved:
                # Left by a worker that was killed before it recorded the trial's end.
                self._weights.remove(number)
                return
            self._saved.remove(number)
            ranking = self._read_ranking(self._evict_after + self._weights.eviction_margin)
            if ranking is not None:
                self._weights.evict([number for number, _ in ranking], self._evict_after)
        except Exception as error:
            _logger.warning(f"cannot remove weights of surpassed trials ({error})")

    def _read_ranking(self, count: int) -> Ranking | None:
        storage, study_id = self._handle.storage, self._handle.study_id
        return self._query(lambda: top_trials(storage, study_id, count))
