"""Checkpoints of interrupted trials: read, written, quarantined and removed."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import tenacity
from optuna.trial import FrozenTrial

from rnn.config import CellConfig, OptimizerConfig, TrialConfig
from rnn.errors import CellError, CheckpointError
from rnn.tasks.corpus import Corpus
from rnn.training.checkpoint import (
    TrainState,
    deserialize_checkpoint,
    max_checkpoint_size,
    serialize_checkpoint,
)
from rnn.training.loop import TrainConfig
from search.duration import to_train_config
from search.study import StudyHandle
from search.versions import LABELS, current_versions, last_versions
from search.worker.best_trials import BestTrialFiles
from search.worker.claims import Claim
from search.worker.trial_artifacts import CheckpointStore, TrialArtifacts
from studies.artifacts import store_errors
from studies.attributes import CHECKPOINTED, RETRY_COUNTS, RUNG, Failure
from studies.config import StudyConfig, to_trial_config
from studies.errors import ArtifactsError
from studies.text import format_trials

_LOST = (
    "training restarts from step 0; if the database was moved, move its checkpoint folder along "
    "with it, or name the folder or bucket with --artifacts"
)
_KILLED = "none was written before the worker was killed or cut off; training restarts from step 0"
_KILLED_EARLY = (
    "the worker was killed or cut off before it recorded a loss or wrote a checkpoint; training "
    "starts at step 0"
)
"""Reasons why a trial has no checkpoint, and what follows."""

_logger = logging.getLogger(__name__)


class CheckpointManager:
    """Reads and writes the checkpoints of one study's trials; no failure of these ends a training.

    Args:
        handle: the study.
        checkpoints: store of the checkpoints of unfinished trials.
        final_checkpoints: those of the best complete trials; None to keep none.
    """

    def __init__(
        self,
        handle: StudyHandle,
        checkpoints: CheckpointStore,
        final_checkpoints: BestTrialFiles | None = None,
    ) -> None:
        self._config = handle.config
        self._corpus = handle.corpus
        self._spec = handle.spec
        self._checkpoints = checkpoints
        self._final_checkpoints = final_checkpoints
        # A checkpoint of an earlier end is one of the same training.
        self._steps = handle.record.steps
        self._warned_versions: set[tuple[str, str]] = set()

    def resume(self, claims: Sequence[Claim]) -> dict[Claim, TrainState | None]:
        """Return the train state of each trial's checkpoint; None where it starts from step 0.

        Each claim's curve is replaced by that of its train state.
        """
        states: dict[Claim, TrainState | None] = {}
        missing: dict[str, list[FrozenTrial]] = {}
        for claim in claims:
            content: bytes | None = None
            store: TrialArtifacts = self._checkpoints
            try:
                content, store = self._read(claim)
                if content is None and (reason := _explain_missing(claim)):
                    missing.setdefault(reason, []).append(claim.trial)
            except CellError:
                pass  # the trial fails with it when its network is built
            except store_errors() as error:
                _logger.warning(
                    f"cannot read the checkpoint of trial {claim.trial.number} "
                    f"({error}); it restarts from step 0"
                )
            states[claim] = self._restore(claim, content, store)
        for reason, trials in missing.items():
            self._report_missing(trials, reason)
        _report_resumed(states)
        self._warn_of_other_versions(states)
        return states

    def write(self, claim: Claim, state: TrainState) -> bool:
        """Write a checkpoint of a trial; return whether that succeeded."""
        number = claim.trial.number
        try:
            content = serialize_checkpoint(state, self._identity(claim))
            self._checkpoints.write(number, content)
            claim.record_checkpoint()
            return True
        except Exception as error:  # such as a full disk or an unreachable bucket
            _logger.warning(
                f"cannot write the checkpoint of trial {number} ({error}); the previous one is "
                "kept",
                exc_info=True,
            )
            return False

    @property
    def keeps_final(self) -> bool:
        """Whether checkpoints of complete trials are kept."""
        return self._final_checkpoints is not None and self._final_checkpoints.keeps_any

    def write_final(self, claim: Claim, state: TrainState) -> None:
        """Write the checkpoint of a trial that is about to be complete."""
        assert self._final_checkpoints is not None
        number = claim.trial.number
        try:
            content = serialize_checkpoint(state, self._identity(claim))
            self._final_checkpoints.write(number, content)
        except Exception as error:
            _logger.warning(
                f"cannot keep the checkpoint of trial {number} ({error})", exc_info=True
            )

    def select_final(self, values: Mapping[int, float]) -> set[int]:
        """Return which trials, about to be complete, have a checkpoint to keep.

        Args:
            values: objective values by trial number.
        """
        return self._final_checkpoints.select(values) if self._final_checkpoints else set()

    def clean_up(self, number: int) -> None:
        """Remove the checkpoint of a finished trial, and kept ones no longer among the best."""
        if self._final_checkpoints is not None:
            self._final_checkpoints.evict(number)
        try:
            self._checkpoints.remove(number)
        except Exception as error:
            _logger.warning(
                f"cannot remove the checkpoint of trial {number} ({error})", exc_info=True
            )

    def _read(self, claim: Claim) -> tuple[bytes | None, TrialArtifacts]:
        """Return a trial's checkpoint and its store; that of an earlier end if it has no other."""
        trial_config = to_trial_config(claim.trial.params, self._config)
        settings = self._train_config(claim)
        limit = max_checkpoint_size(trial_config, self._spec, settings.batch_size, settings.steps)
        stores: list[TrialArtifacts] = [self._checkpoints]
        if self._final_checkpoints is not None:
            stores.append(self._final_checkpoints.store)
        for store in stores:
            content = _read_with_retries(store, claim.trial.number, limit + 1)
            if content is None:
                continue
            if len(content) > limit:
                raise ArtifactsError(f"it has more than {limit:,} bytes, which it cannot have")
            return content, store
        return None, self._checkpoints

    def _restore(
        self, claim: Claim, content: bytes | None, store: TrialArtifacts
    ) -> TrainState | None:
        """Return the train state in a checkpoint, and have the claim's curve be that of it."""
        number = claim.trial.number
        state = None
        if content is not None:
            try:
                state = self._deserialize(claim, content)
            except CheckpointError as error:
                _quarantine(store, number, content, error)
        curve = state.curve if state else {}
        if claim.trial.intermediate_values != curve or claim.has_reported:
            claim.replace_curve(curve)
        return state

    def _deserialize(self, claim: Claim, content: bytes) -> TrainState:
        """Return the train state in a checkpoint of this end of the study or an earlier one."""
        first_error = None
        for steps in self._steps:
            identity = self._identity(claim, steps)
            try:
                state = deserialize_checkpoint(identity, content)
            except CheckpointError as error:
                first_error = first_error or error
                continue
            return continue_to_end(state, self._train_config(claim), steps)
        assert first_error is not None
        raise first_error

    def _report_missing(self, trials: Sequence[FrozenTrial], reason: str) -> None:
        listed = format_trials(trial.number for trial in trials)
        steps = {max(trial.intermediate_values, default=0) for trial in trials}
        if steps == {0}:
            _logger.info(f"{listed}: {reason}")
            return
        reached = f"step {min(steps):,}" + (f" to {max(steps):,}" if len(steps) > 1 else "")
        _logger.warning(
            f"no checkpoint of {listed} in {self._checkpoints.location}, though {reached} was "
            f"recorded: {reason}"
        )

    def _warn_of_other_versions(self, states: Mapping[Claim, TrainState | None]) -> None:
        """Warn of other versions that trained these trials, once for each version."""
        for name, current in current_versions().model_dump().items():
            previous = {
                claim: version
                for claim, state in states.items()
                if state
                and (version := last_versions(state).get(name, current)) != current
                and (name, version) not in self._warned_versions
            }
            if not previous:
                continue
            self._warned_versions |= {(name, version) for version in previous.values()}
            listed = format_trials(claim.trial.number for claim in previous)
            resume, were = ("resume", "were") if len(previous) > 1 else ("resumes", "was")
            _logger.warning(
                f"{listed} {resume} with {LABELS[name]} {current} and {were} trained with "
                f"{', '.join(sorted(set(previous.values())))} so far; to avoid mixing them, "
                "stop and use the earlier version"
            )

    def _train_config(self, claim: Claim) -> TrainConfig:
        return to_train_config(self._config, claim.trial.params)

    def _identity(self, claim: Claim, steps: int | None = None) -> str:
        """Return the identity of a trial's training, or of that to an earlier end."""
        trial_config = to_trial_config(claim.trial.params, self._config)
        train_config = self._train_config(claim)
        train_config = replace(train_config, steps=steps or train_config.steps)
        return checkpoint_identity(trial_config, self._config, train_config, self._corpus)


def checkpoint_identity(
    trial_config: TrialConfig, config: StudyConfig, train_config: TrainConfig, corpus: Corpus | None
) -> str:
    """Return everything that determines a trial's training, as JSON with sorted keys.

    A checkpoint is resumed only under the same identity. Threads, device and the other networks of
    the stack are not part of it.
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
        assert config.task_record is not None
        fields["task"] = config.task_record.identity() | dict(trial_config.task_options)
    return json.dumps(fields, sort_keys=True)


def continue_to_end(state: TrainState, train_config: TrainConfig, old_steps: int) -> TrainState:
    """Return the state of a training to more steps, given that of the training to fewer.

    Args:
        state: state of the training to fewer steps, or the same.
        train_config: settings of the training to more steps.
        old_steps: number of steps of the training that wrote the state.

    Raises:
        CheckpointError: if weights that its average lacks, or should lack, are part of the average
            at the new end.
    """
    start = train_config.averaging_start_step
    if start == replace(train_config, steps=old_steps).averaging_start_step:
        return state
    if state.step > start:
        raise CheckpointError(
            f"checkpoint of step {state.step:,} is too late: weights are averaged from step "
            f"{start:,} on"
        )
    return replace(state, average=None, averaged=0)


def _quarantine(store: TrialArtifacts, number: int, content: bytes, error: CheckpointError) -> None:
    try:
        location = f"moved to {store.quarantine(number, content)}"
    except store_errors() as failed:
        location = f"it cannot be moved away ({failed})"
    _logger.warning(f"trial {number}: {error}; {location}, the trial restarts from step 0")


def _report_resumed(states: Mapping[Claim, TrainState | None]) -> None:
    numbers: dict[int, list[int]] = {}
    for claim, state in states.items():
        if state and state.step and not claim.was_paused:  # resuming those needs no message
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


@tenacity.retry(
    retry=tenacity.retry_if_not_exception_type(ArtifactsError),
    stop=tenacity.stop_after_attempt(3),
    wait=tenacity.wait_fixed(0.5),
    reraise=True,
)
def _read_with_retries(store: TrialArtifacts, number: int, max_bytes: int) -> bytes | None:
    return store.read(number, max_bytes)
