"""Files of a study's trials, as bytes: checkpoints of unfinished ones, weights of the best.

No failure to read, write or remove one ends a training.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

import tenacity
from optuna.trial import FrozenTrial

from rnn.errors import CheckpointError
from search.open_study import OpenStudy
from search.worker.claims import Claim
from studies.attributes import CHECKPOINTED, RETRY_COUNTS, RUNG, Failure
from studies.best import BestReader
from studies.messages import format_trials
from studies.space import TASK
from studies.storage.counts import top_trials

if TYPE_CHECKING:
    from rnn.training.checkpoint import TrainState
    from search.worker.loop_state import LoopState

EVICTION_MARGIN = 32
"""Trials ranked after those that are kept whose files are evicted: as many as may end at once."""

UNFINISHED_FACTOR = 10
"""How many times as many architectures keep the weights of their best run until all runs are
finished: their means may still change."""

_LOST = (
    "training restarts from step 0; if the database was moved, move its checkpoint folder along "
    "with it, or name the folder with --artifacts"
)
_KILLED = "none was written before the worker was killed or cut off; training restarts from step 0"
"""Reasons why a trial has no checkpoint, and what follows."""

StorageQuery = Callable[[Callable[[], Any]], Any]
"""Runs a query of the storage; returns None if that does not answer soon."""

_retry = tenacity.Retrying(
    stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(0.5), reraise=True
)

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def warn_of_errors(action: str, consequence: str = "") -> Iterator[None]:
    """Log an error, such as a full disk, as a warning that an action failed; end the block."""
    try:
        yield
    except Exception as error:  # of any kind: no file is worth a training
        _logger.warning(f"cannot {action} ({error}){consequence}", exc_info=True)


_State = TypeVar("_State", "TrainState", "LoopState")

Decoder = Callable[[Claim, bytes], _State]
"""Returns the state in a trial's checkpoint; raises CheckpointError if it is damaged, or of another
training."""


class Checkpoints:
    """Checkpoints of a study's trials, as bytes."""

    def __init__(self, study: OpenStudy) -> None:
        self._files = study.trial_files("checkpoint")

    def resume(
        self, claims: Sequence[Claim], decode: Decoder[_State]
    ) -> dict[Claim, _State | None]:
        """Return the state in each trial's checkpoint; None where it starts from step 0.

        Each claim's curve is replaced by that of its state.
        """
        states: dict[Claim, _State | None] = {}
        missing: dict[str, list[FrozenTrial]] = {}
        for claim in claims:
            states[claim] = state = self._read(claim, decode, missing)
            curve = state.curve if state else {}
            metrics = state.metrics if state else {}
            if claim.trial.intermediate_values != curve or claim.has_reported:
                claim.replace_curve(curve, metrics)
            else:
                claim.replace_metrics(metrics)
        for reason, trials in missing.items():
            self._report_missing(trials, reason)
        _report_resumed(states)
        return states

    def write(self, claim: Claim, serialize: Callable[[], bytes]) -> bool:
        """Write a trial's checkpoint, which a function returns; return whether that succeeded."""
        number = claim.trial.number
        consequence = "; the previous one is kept"
        with warn_of_errors(f"write the checkpoint of trial {number}", consequence):
            self._files.write(number, serialize())
            claim.record_checkpoint()
            return True
        return False

    def remove(self, number: int) -> None:
        """Remove the checkpoint of a finished trial."""
        with warn_of_errors(f"remove the checkpoint of trial {number}"):
            self._files.remove(number)

    def _read(
        self,
        claim: Claim,
        decode: Decoder[_State],
        missing: dict[str, list[FrozenTrial]],
    ) -> _State | None:
        """Return the state in a trial's checkpoint; add a missing one to ``missing``."""
        number = claim.trial.number
        try:
            content = _retry(self._files.read, number)
            if content is None:
                if reason := _explain_missing(claim):
                    missing.setdefault(reason, []).append(claim.trial)
                return None
            return decode(claim, content)
        except CheckpointError as error:
            self._quarantine(number, error)
        except OSError as error:
            _logger.warning(
                f"cannot read the checkpoint of trial {number} ({error}); it restarts from step 0"
            )
        return None

    def _report_missing(self, trials: Sequence[FrozenTrial], reason: str) -> None:
        listed = format_trials(trial.number for trial in trials)
        steps = {max(trial.intermediate_values) for trial in trials}
        reached = f"step {min(steps):,}" + (f" to {max(steps):,}" if len(steps) > 1 else "")
        _logger.warning(
            f"no checkpoint of {listed} in {self._files.folder}, though {reached} was recorded: "
            f"{reason}"
        )

    def _quarantine(self, number: int, error: CheckpointError) -> None:
        """Move a damaged checkpoint out of the way."""
        try:
            location = f"moved to {self._files.quarantine(number)}"
        except OSError as failed:
            location = f"it cannot be moved away ({failed})"
        _logger.warning(f"trial {number}: {error}; {location}, the trial restarts from step 0")


def _report_resumed(states: Mapping[Claim, _State | None]) -> None:
    numbers: dict[int, list[int]] = {}
    for claim, state in states.items():
        # One that resumes after a pause needs no message.
        if state and state.step not in (0, claim.trial.user_attrs.get(RUNG)):
            numbers.setdefault(state.step, []).append(claim.trial.number)
    for step, trials in sorted(numbers.items()):
        verb = "resume" if len(trials) > 1 else "resumes"
        _logger.info(f"{format_trials(trials)} {verb} from step {step:,}")


def _explain_missing(claim: Claim) -> str | None:
    """Explain why a trial with recorded losses has no checkpoint; None if it has none.

    A trial that was only requeued after errors may have none: a worker writes none after an error.
    """
    trial = claim.trial
    if claim.has_reported or not trial.intermediate_values:  # trained again under the same claim
        return None
    causes = trial.user_attrs.get(RETRY_COUNTS, {})
    was_written = CHECKPOINTED in trial.system_attrs or RUNG in trial.user_attrs
    if was_written or Failure.INTERRUPTED in causes or not causes:
        return _LOST
    return _KILLED if Failure.LEASE_EXPIRED in causes else None


class BestWeights:
    """Writes the weights of the best trials, and evicts those of trials that no longer are.

    Weights are written before their trial's end is recorded, and removed after it, so that those of
    the best complete trials exist whatever ends a process.

    Of replicates, the best run of each architecture comes first, in the order of their means
    (:mod:`studies.best`), then the second best runs. The losses that rank the architectures are
    known at the end of a trial only, so that each run's weights are written. The means change with
    each run: until all are finished, more architectures keep their best run. Of several tasks, as
    many files are kept of each.

    Args:
        study: the study; its setting ``keep_weights`` says of how many trials.
        query: runs queries.
    """

    def __init__(self, study: OpenStudy, query: StorageQuery) -> None:
        self._files = study.trial_files("safetensors")
        self._study = study
        self._query = query
        stored = study.record.config
        self._best = BestReader(study.study, study.storage, stored)
        self._has_replicates = stored.replicates > 1
        self._count = study.config.keep_weights
        # A worker that keeps fewer than the study's config leaves those of other workers.
        self._evict_after = max(self._count, stored.keep_weights)
        self._written: set[int] = set()

    def select(self, values: Mapping[int, float]) -> set[int]:
        """Return which trials, about to be complete with these values, have a file to write."""
        if not self._count:
            return set()
        if self._has_replicates:
            return set(values)
        candidates = [*values.items()]
        if values:  # of one task
            candidates += self._read_ranking(self._count, next(iter(values))) or []
        ranking = sorted(candidates, key=lambda trial: (trial[1], trial[0]))
        return {number for number, _ in ranking[: self._count]} & values.keys()

    def write(self, number: int, serialize: Callable[[], bytes]) -> None:
        """Write a trial's file, whose content a function returns."""
        with warn_of_errors(f"keep the weights of trial {number}"):
            self._files.write(number, serialize())
            self._written.add(number)

    def evict(self, number: int) -> None:
        """Remove files of trials no longer among the best, once a trial's end is recorded."""
        with warn_of_errors("remove weights of surpassed trials"):
            is_written = number in self._written
            self._written.discard(number)
            if not is_written:
                # Left by a worker that was killed before it recorded the trial's end.
                self._files.remove(number)
            count = self._evict_after
            if self._has_replicates:
                self._evict_runs(count, number)
            elif is_written and (ranking := self._read_ranking(count + EVICTION_MARGIN, number)):
                self._files.evict([number for number, _ in ranking], count)

    def _evict_runs(self, count: int, number: int) -> None:
        found = self._query(lambda: self._best.read_ranking(self._find_task(number)))
        if found is None:
            return
        trials, ranking = found
        places = zip_longest(*(architecture.runs for architecture in ranking))
        order = [run.number for place in places for run in place if run is not None]
        if not all(trial.state.is_finished() for trial in trials):
            count = min(UNFINISHED_FACTOR * count, max(count, len(ranking)))
        self._files.evict(order, count)

    def _read_ranking(self, count: int, number: int) -> list[tuple[int, float]] | None:
        """Read the best trials, of several tasks those of the task of the trial with a number."""
        task_names = self._study.config.task_names

        def read() -> list[tuple[int, float]]:
            place = task_names.index(self._find_task(number)) if task_names else None
            top = top_trials(self._study.storage, self._study.study_id, count, place)
            return [(number, value) for _, number, value in top]

        ranking: list[tuple[int, float]] | None = self._query(read)
        return ranking

    def _find_task(self, number: int) -> str:
        """Return the task of a trial, of several ones; "" in a study of one."""
        if not self._study.config.task_names:
            return ""
        storage = self._study.storage
        study_id = self._study.study_id
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return str(storage.get_trial(trial_id).params[TASK])
