"""Train states of claimed trials: their checkpoints, and the versions that trained them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import optuna
from optuna.trial import FrozenTrial

from rnn.config import OptimizerConfig, TrialConfig
from rnn.errors import CellError
from rnn.training import checkpoint
from rnn.training.checkpoint import (
    TrainState,
    deserialize_checkpoint,
    max_checkpoint_size,
    serialize_checkpoint,
)
from rnn.training.loop import TrainConfig
from search.worker.checkpoints import Checkpoints
from search.worker.claims import Claim
from search.worker.lockstep import to_train_config
from studies.attributes import EARLIER_CODE, EARLIER_TORCH, VersionRecord
from studies.config import StudyConfig, to_trial_config
from studies.space import TASK
from studies.storage.counts import count_trials, distinct_versions
from studies.storage.open import read_study_record
from studies.storage.storage import LeasedRDBStorage

if TYPE_CHECKING:  # it warns of other versions
    from search.create_or_join import StudyHandle

_VERSION_LABELS = {"code": "training code", "torch": "PyTorch"}
"""Names of the fields of a :class:`VersionRecord` in messages."""


class TrainStates:
    """Resumes trials from their checkpoints, and writes these."""

    def __init__(self, handle: "StudyHandle") -> None:
        self._handle = handle
        self._checkpoints = Checkpoints(handle)

    def resume(self, claims: Sequence[Claim]) -> dict[Claim, TrainState | None]:
        """Return the train state of each trial's checkpoint; None where it starts from step 0.

        Each claim's curve is replaced by that of its train state.
        """
        return self._checkpoints.resume(claims, self)

    def write(self, claim: Claim, state: TrainState) -> bool:
        """Write a checkpoint of a trial; return whether that succeeded."""
        return self._checkpoints.write(
            claim, lambda: serialize_checkpoint(state, self._identity(claim))
        )

    def max_bytes(self, claim: Claim) -> int | None:
        """Return the size of a trial's largest checkpoint; None if its cell cannot be built."""
        trial_config, settings = self._configs(claim)
        try:
            spec = self._handle.spec_of(trial_config.task_options)
            return max_checkpoint_size(trial_config, spec, settings.batch_size, settings.steps)
        except CellError:  # the trial fails with it when its network is built
            return None

    def decode(self, claim: Claim, content: bytes) -> TrainState:
        """Return the train state in a trial's checkpoint.

        Raises:
            CheckpointError: if it is damaged, or of another training.
        """
        return deserialize_checkpoint(self._identity(claim), content)

    def _identity(self, claim: Claim) -> str:
        """Return the identity of a trial's training."""
        trial_config, train_config = self._configs(claim)
        return checkpoint_identity(trial_config, self._handle.config, train_config)

    def _configs(self, claim: Claim) -> tuple[TrialConfig, TrainConfig]:
        config, params = self._handle.config, claim.trial.params
        return to_trial_config(params, config), to_train_config(config, params)


def checkpoint_identity(
    trial_config: TrialConfig, config: StudyConfig, train_config: TrainConfig
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
        "training": asdict(train_config) | optimizer,
    }
    if not architecture.is_built_in:
        fields["cell_sha256"] = architecture.sha256
    if trial_config.update_every > 1:
        fields["update_every"] = trial_config.update_every
    options = dict(trial_config.task_options)
    record = config.of_trial(options).task_record
    assert record is not None
    # The identity says which of several tasks it is.
    fields["task"] = record.identity() | {n: v for n, v in options.items() if n != TASK}
    return json.dumps(fields, sort_keys=True)


# ------------------------------------------------------------------ versions


def current_versions() -> VersionRecord:
    """Return the versions of the training code and PyTorch that this process trains with."""
    return VersionRecord(code=checkpoint.source_hash(), torch=checkpoint.torch_version())


def describe_mixing(study: optuna.Study, storage: LeasedRDBStorage) -> str:
    """Return a warning if other versions created or trained an unfinished study; "" if not."""
    counts = count_trials(storage, study._study_id)
    if counts.finished == counts.planned:
        return ""
    used = distinct_versions(storage, study._study_id)
    created_with = read_study_record(study).created_with
    if created_with is not None:
        for name, version in created_with.model_dump().items():
            used[name].add(version)
    current = current_versions().model_dump()
    others = {name: sorted({*used[name]} - {current[name]}) for name in _VERSION_LABELS}
    differing = [(label, name) for name, label in _VERSION_LABELS.items() if others[name]]
    if not differing:
        return ""
    earlier = " and ".join(f"{label} {', '.join(others[name])}" for label, name in differing)
    own = " and ".join(f"{label} {current[name]}" for label, name in differing)
    return (
        f"study {study.study_name!r} was created or trained with {earlier} so far; this worker "
        f"trains with {own}; to avoid mixing them, stop and use the earlier version"
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
