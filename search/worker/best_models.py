"""The weights of a study's best trials, and what these networks write."""

from collections.abc import Callable, Mapping

from rnn.inference.generation import generate
from rnn.inference.saved_model import SavedModel, serialize_model
from search.study import StudyHandle
from search.worker.trial_artifacts import WeightStore
from studies.loader import read_study_record
from studies.storage.counts import top_trials
from studies.text import to_printable

SAMPLE_LENGTH = 300
"""Symbols of the text that a network writes for the report."""

SAMPLE_TEMPERATURE = 0.8

Ranking = list[tuple[int, float]]
"""Numbers of trials and their values, the best first."""


class BestModelStore:
    """Keeps the weights of the best trials: as better ones come, worse ones go.

    A trial's weights are written before its end is recorded, and taken away after: whatever ends a
    process, those of a complete trial that is among the best are there. Nothing that goes wrong
    with them ends a training.

    Args:
        joined: the study.
        weights: where they lie.
        consult: reads something of the storage; returns None if it does not answer soon.
        says: told of what a person should know.
    """

    def __init__(
        self,
        joined: StudyHandle,
        weights: WeightStore,
        consult: Callable[[Callable[[], Ranking]], Ranking | None],
        says: Callable[[str], None],
    ) -> None:
        self._joined = joined
        self._weights = weights
        self._consult = consult
        self._says = says
        self._count = joined.config.keep_weights
        # A worker that keeps fewer than the study says removes none that others keep.
        self._spared = max(self._count, read_study_record(joined.study).config.keep_weights)
        self._kept: set[int] = set()

    def wanted(self, values: Mapping[int, float]) -> set[int]:
        """Return which trials' weights are to be kept, of some that are about to be complete.

        Args:
            values: by trial number.
        """
        if not self._count:
            return set()
        known = [*(self._best(self._count) or []), *values.items()]
        ranked = sorted(known, key=lambda trial: (trial[1], trial[0]))
        return {number for number, _ in ranked[: self._count]} & values.keys()

    def keep(self, number: int, network: SavedModel) -> str | None:
        """Write a trial's weights, and return a text that its network writes, if it can."""
        try:
            self._weights.write(number, serialize_model(network))
            self._kept.add(number)
        except Exception as error:  # a full disk, a bucket that is away
            self._says(f"warning: the weights of trial {number} could not be kept ({error})")
        try:
            written = generate(network, length=SAMPLE_LENGTH, temperature=SAMPLE_TEMPERATURE)
            return to_printable(written)
        except Exception as error:
            self._says(f"warning: the network of trial {number} could not write ({error})")
            return None

    def settle(self, number: int) -> None:
        """Let go what is not among the best any more, now that a trial's end is recorded."""
        try:
            if number not in self._kept:
                # What a worker left that died between the weights and the trial's end.
                self._weights.remove(number)
                return
            self._kept.remove(number)
            best = self._best(self._spared + self._weights.reach)
            if best is not None:
                self._weights.keep_only([number for number, _ in best], self._spared)
        except Exception as error:
            self._says(f"warning: weights that are not wanted could not be removed ({error})")

    def _best(self, count: int) -> Ranking | None:
        storage, study_id = self._joined.storage, self._joined.study_id
        return self._consult(lambda: top_trials(storage, study_id, count))
