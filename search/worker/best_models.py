"""Store of the best trials' weights, and of text samples of their networks."""

import logging

from rnn.inference.generation import generate
from rnn.inference.saved_model import SavedModel, serialize_model
from search.study import StudyHandle
from search.worker.best_trials import BestTrialFiles, StorageQuery
from search.worker.trial_artifacts import WeightStore
from studies.text import to_printable

SAMPLE_LENGTH = 300
"""Tokens of the text sample that a network generates for the report."""

SAMPLE_TEMPERATURE = 0.8

_logger = logging.getLogger(__name__)


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
        """Write a trial's weights; return a text sample of its network, None if that fails."""
        try:
            self.write(number, serialize_model(model))
        except Exception as error:  # such as a full disk or an unreachable bucket
            _logger.warning(f"cannot save the weights of trial {number} ({error})")
        try:
            sample = generate(model, length=SAMPLE_LENGTH, temperature=SAMPLE_TEMPERATURE)
            return to_printable(sample)
        except Exception as error:
            _logger.warning(f"cannot generate a sample of trial {number} ({error})")
            return None
