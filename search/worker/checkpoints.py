"""Files of a study's trials: checkpoints of the unfinished ones; weights of the best.

No failure to read, write or remove one ends a training.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import optuna
import tenacity
from optuna.trial import FrozenTrial

from rnn.config import CellConfig, OptimizerConfig, TrialConfig
from rnn.errors import CellError, CheckpointError
from rnn.tasks.corpus import Corpus
from rnn.training import checkpoint
from rnn.training.checkpoint import (
    TrainState,
    deserialize_checkpoint,
    max_checkpoint_size,
    serialize_checkpoint,
)
from rnn.training.loop import TrainConfig
from search.open_study import OpenStudy
from search.worker.claims import Claim
from search.worker.lockstep import to_train_config
from studies.attributes import (
    CHECKPOINTED,
    EARLIER_CODE,
    EARLIER_TORCH,
    RETRY_COUNTS,
    RUNG,
    Failure,
    VersionRecord,
)
from studies.best import BestReader
from studies.config import StudyConfig, to_trial_config
from studies.errors import ArtifactsError
from studies.loader import read_study_record
from studies.space import TASK
from studies.storage.counts import count_trials, distinct_versions, top_trials
from studies.storage.storage import LeasedRDBStorage
from studies.text import format_trials

if TYPE_CHECKING:  # it warns of other versions, and finds the checkpoints of a study's end
    from search.study import StudyHandle

EVICTION_MARGIN = 32
"""Trials ranked after those that are kept whose files are evicted: as many as may end at once."""

_LOST = (
    "training restarts from step 0; if the database was moved, move its checkpoint folder along "
    "with it, or name the folder with --artifacts"
)
_KILLED = "none was written before the worker was killed or cut off; training restarts from step 0"
_KILLED_EARLY = (
    "the worker was killed or cut off before it recorded a loss or wrote a checkpoint; training "
    "starts at step 0"
)
"""Reasons why a trial has no checkpoint, and what follows."""

_VERSION_LABELS = {"code": "training code", "torch": "PyTorch"}
"""Names of the fields of a :class:`VersionRecord` in messages."""

StorageQuery = Callable[[Callable[[], Any]], Any]
"""Runs a query of the storage; returns None if that does not answer soon."""

_retry = tenacity.Retrying(
    retry=tenacity.retry_if_not_exception_type(ArtifactsError),
    stop=tenacity.stop_after_attempt(3),
    wait=tenacity.wait_fixed(0.5),
    reraise=True,
)

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def warn_of_errors(action: str, consequence: str = "") -> Iterator[None]:
    """Log an error, such as a full disk, as a warning that an action failed; end the block."""
    try:
        yield
    except Exception as error:
        _logger.warning(f"cannot {action} ({error}){consequence}", exc_info=True)


class BestWeights:
    """Writes the weights of the best trials, and evicts those of trials that no longer are.

    Weights are written before their trial's end is recorded, and removed after it, so that those of
    the best complete trials exist whatever ends a process.

    Of replicates, the best run of each architecture comes first, in the order of their means
    (:mod:`studies.best`), then the second best runs. The losses that rank the architectures are
    known at the end of a trial only, so that each run's weights are written. The means change with
    each run: until all are finished, no best run of an architecture is removed. Of several tasks,
    as many files are kept of each.

    Args:
        handle: the study; its setting ``keep_weights`` says of how many trials.
        query: runs queries.
    """

    def __init__(self, handle: OpenStudy, query: StorageQuery) -> None:
        self._files = handle.trial_files("safetensors")
        self._handle = handle
        self._query = query
        stored = handle.record.config
        self._best = BestReader(handle.study, handle.storage, stored)
        self._count = handle.config.keep_weights
        # A worker that keeps fewer than the study's config leaves those of other workers.
        self._evict_after = max(self._count, stored.keep_weights)
        self._written: set[int] = set()

    def select(self, values: Mapping[int, float]) -> set[int]:
        """Return which trials, about to be complete with these values, have a file to write."""
        if not self._count:
            return set()
        # Without an answer any of them may be needed.
        if self._ask_for_replicates() is not False:
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
            has_replicates = self._ask_for_replicates()
            if has_replicates:
                self._evict_runs(count)
            elif (
                has_replicates is False
                and is_written
                and (ranking := self._read_ranking(count + EVICTION_MARGIN, number))
            ):
                self._files.evict([number for number, _ in ranking], count)

    def _ask_for_replicates(self) -> bool | None:
        """Return whether architectures have several runs; None if the storage does not answer."""
        answer: bool | None = self._query(lambda: self._best.has_replicates)
        return answer

    def _evict_runs(self, count: int) -> None:
        if (found := self._query(self._best.read_ranking)) is None:
            return
        trials, ranking = found
        places = zip_longest(*(each.runs for each in ranking))
        order = [run.number for place in places for run in place if run is not None]
        if count and not all(trial.state.is_finished() for trial in trials):
            count = max(count, len(ranking))
        self._files.evict(order, count)

    def _read_ranking(self, count: int, number: int) -> list[tuple[int, float]] | None:
        """Read the best trials, of several tasks those of the task of the trial with a number."""
        storage, study_id = self._handle.storage, self._handle.study_id
        names = self._handle.config.task_names

        def read() -> list[tuple[int, float]]:
            place = None
            if names:
                trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
                place = names.index(storage.get_trial(trial_id).params[TASK])
            return top_trials(storage, study_id, count, place)

        ranking: list[tuple[int, float]] | None = self._query(read)
        return ranking


class CheckpointManager:
    """Resumes trials from their checkpoints, and writes these."""

    def __init__(self, handle: "StudyHandle") -> None:
        self._handle = handle
        self._checkpoints = handle.trial_files("checkpoint")
        self._has_warned = bool(handle.warning)

    def resume(self, claims: Sequence[Claim]) -> dict[Claim, TrainState | None]:
        """Return the train state of each trial's checkpoint; None where it starts from step 0.

        Each claim's curve is replaced by that of its train state.
        """
        states: dict[Claim, TrainState | None] = {}
        missing: dict[str, list[FrozenTrial]] = {}
        for claim in claims:
            states[claim] = state = self._read(claim, missing)
            curve = state.curve if state else {}
            if claim.trial.intermediate_values != curve or claim.has_reported:
                claim.replace_curve(curve)
        for reason, trials in missing.items():
            self._report_missing(trials, reason)
        _report_resumed(states)
        self._warn_of_other_versions(states)
        return states

    def write(self, claim: Claim, state: TrainState) -> bool:
        """Write a checkpoint of a trial; return whether that succeeded."""
        number, consequence = claim.trial.number, "; the previous one is kept"
        with warn_of_errors(f"write the checkpoint of trial {number}", consequence):
            self._checkpoints.write(number, serialize_checkpoint(state, self._identity(claim)))
            claim.record_checkpoint()
            return True
        return False

    def remove(self, number: int) -> None:
        """Remove the checkpoint of a finished trial."""
        with warn_of_errors(f"remove the checkpoint of trial {number}"):
            self._checkpoints.remove(number)

    def _read(self, claim: Claim, missing: dict[str, list[FrozenTrial]]) -> TrainState | None:
        """Return the train state of a trial's checkpoint; add a missing one to ``missing``."""
        number = claim.trial.number
        try:
            trial_config, settings = self._configs(claim)
            spec = self._handle.spec_of(trial_config.task_options)
            limit = max_checkpoint_size(trial_config, spec, settings.batch_size, settings.steps)
            content = _retry(self._checkpoints.read, number, limit + 1)
            if content is None:
                if reason := _explain_missing(claim):
                    missing.setdefault(reason, []).append(claim.trial)
                return None
            if len(content) > limit:
                raise ArtifactsError(f"it has more than {limit:,} bytes, which it cannot have")
            try:
                return deserialize_checkpoint(self._identity(claim), content)
            except CheckpointError as error:
                self._quarantine(number, error)
        except CellError:
            pass  # the trial fails with it when its network is built
        except (ArtifactsError, OSError) as error:
            _logger.warning(
                f"cannot read the checkpoint of trial {number} ({error}); it restarts from step 0"
            )
        return None

    def _report_missing(self, trials: Sequence[FrozenTrial], reason: str) -> None:
        listed = format_trials(trial.number for trial in trials)
        steps = {max(trial.intermediate_values, default=0) for trial in trials}
        if steps == {0}:
            _logger.info(f"{listed}: {reason}")
            return
        reached = f"step {min(steps):,}" + (f" to {max(steps):,}" if len(steps) > 1 else "")
        _logger.warning(
            f"no checkpoint of {listed} in {self._checkpoints.folder}, though {reached} was "
            f"recorded: {reason}"
        )

    def _warn_of_other_versions(self, states: Mapping[Claim, TrainState | None]) -> None:
        """Warn once of other versions that trained these trials."""
        resumed = [state for state in states.values() if state]
        used = {
            "code": {each for state in resumed for each in state.source_hashes},
            "torch": {each for state in resumed for each in state.torch_versions},
        }
        numbers = (claim.trial.number for claim, state in states.items() if state)
        if not self._has_warned and (mixing := _describe_mixing(used)):
            self._has_warned = True
            _logger.warning(f"{format_trials(numbers)}: trained with {mixing}")

    def _quarantine(self, number: int, error: CheckpointError) -> None:
        """Move a damaged checkpoint out of the way."""
        try:
            location = f"moved to {self._checkpoints.quarantine(number)}"
        except OSError as failed:
            location = f"it cannot be moved away ({failed})"
        _logger.warning(f"trial {number}: {error}; {location}, the trial restarts from step 0")

    def _identity(self, claim: Claim) -> str:
        """Return the identity of a trial's training."""
        trial_config, train_config = self._configs(claim)
        config, corpus = self._handle.config, self._handle.corpus
        return checkpoint_identity(trial_config, config, train_config, corpus)

    def _configs(self, claim: Claim) -> tuple[TrialConfig, TrainConfig]:
        config, params = self._handle.config, claim.trial.params
        return to_trial_config(params, config), to_train_config(config, params)


def checkpoint_identity(
    trial_config: TrialConfig, config: StudyConfig, train_config: TrainConfig, corpus: Corpus | None
) -> str:
    """Return everything that determines a trial's training, as JSON with sorted keys.

    A checkpoint is resumed only under the same identity.
    """
    # Only what differs from the defaults, as in checkpoints written before there were others.
    default = asdict(OptimizerConfig(learning_rate=0))
    optimizer = {
        "optimizer" if name == "name" else name: value
        for name, value in asdict(trial_config.optimizer).items()
        if value != default[name]
    }
    architecture = trial_config.architecture
    fields = {
        "architecture": architecture.init_key,
        "replicate": trial_config.replicate,
        "bptt_steps": trial_config.bptt_steps,
        "precision": config.precision,
        "tokenizer": config.tokenizer,
        "training": asdict(train_config) | optimizer,
    }
    if isinstance(architecture, CellConfig):
        fields["cell_sha256"] = architecture.sha256
    if trial_config.update_every > 1:
        fields["update_every"] = trial_config.update_every
    if corpus is not None:
        fields |= {"corpus_sha256": corpus.sha256, "corpus_split": corpus.split}
    else:
        options = dict(trial_config.task_options)
        record = config.of_trial(options).task_record
        assert record is not None
        # The identity says which of several tasks it is.
        fields["task"] = record.identity() | {n: v for n, v in options.items() if n != TASK}
    return json.dumps(fields, sort_keys=True)


def _report_resumed(states: Mapping[Claim, TrainState | None]) -> None:
    numbers: dict[int, list[int]] = {}
    for claim, state in states.items():
        # One that resumes after a pause needs no message.
        if state and state.step not in (0, claim.trial.user_attrs.get(RUNG)):
            numbers.setdefault(state.step, []).append(claim.trial.number)
    for step, trials in sorted(numbers.items()):
        verb = "resume" if len(trials) > 1 else "resumes"
        _logger.info(f"{format_trials(trials)} {verb} from step {step:,}")


def _explain_missing(claim: Claim) -> str | None:
    """Explain why a trial that was trained before has no checkpoint; None if it was not trained.

    A trial that was only requeued after errors may have none: a worker writes none after an error.
    """
    if claim.has_reported:  # trained again under the same claim
        return None
    trial = claim.trial
    causes = trial.user_attrs.get(RETRY_COUNTS, {})
    was_written = CHECKPOINTED in trial.system_attrs or RUNG in trial.user_attrs
    if not trial.intermediate_values:
        return _KILLED_EARLY if Failure.LEASE_EXPIRED in causes and not was_written else None
    if was_written or Failure.INTERRUPTED in causes or not causes:
        return _LOST
    return _KILLED if Failure.LEASE_EXPIRED in causes else None


# ------------------------------------------------------------------ versions


def current_versions() -> VersionRecord:
    """Return the versions of the training code and PyTorch that this process trains with."""
    return VersionRecord(code=checkpoint.source_hash(), torch=checkpoint.torch_version())


def describe_study_mixing(study: optuna.Study, storage: LeasedRDBStorage) -> str:
    """Return a warning if other versions created or trained an unfinished study; "" if not."""
    counts = count_trials(storage, study._study_id)
    if counts.finished == counts.planned:
        return ""
    used = distinct_versions(storage, study._study_id)
    created_with = read_study_record(study).created_with
    if created_with is not None:
        for name, version in created_with.model_dump().items():
            used[name].add(version)
    mixing = _describe_mixing(used)
    return mixing and f"study {study.study_name!r} was created or trained with {mixing}"


def _describe_mixing(used: Mapping[str, Collection[str]]) -> str:
    """Describe versions that differ from those of this process; "" if none does."""
    current = current_versions().model_dump()
    others = {name: sorted({*used[name]} - {current[name]}) for name in _VERSION_LABELS}
    differing = [(label, name) for name, label in _VERSION_LABELS.items() if others[name]]
    if not differing:
        return ""
    earlier = " and ".join(f"{label} {', '.join(others[name])}" for label, name in differing)
    own = " and ".join(f"{label} {current[name]}" for label, name in differing)
    return (
        f"{earlier} so far; this worker trains with {own}; to avoid mixing them, stop and use the "
        "earlier version"
    )


def earlier_versions(
    trial: FrozenTrial, state: TrainState | None
) -> Mapping[str, list[str] | None]:
    """Return the attributes that record other versions that trained a claimed trial before."""
    current = current_versions()
    code = [each for each in state.source_hashes if each != current.code] if state else []
    torch = [each for each in state.torch_versions if each != current.torch] if state else []
    # An empty list replaces the record of a trial that has restarted from step 0.
    return {
        key: earlier if earlier or key in trial.user_attrs else None
        for key, earlier in ((EARLIER_CODE, code), (EARLIER_TORCH, torch))
    }
