"""What identifies the training of a trial, and the versions that trained it."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from rnn.training import checkpoint
from rnn.training.checkpoint import TrainState
from search.worker.lockstep import to_train_config
from studies.attributes import EARLIER_CODE, EARLIER_TORCH, VersionRecord
from studies.config import StudyConfig, to_trial_config
from studies.space import TASK
from studies.storage.counts import count_trials, distinct_versions
from studies.storage.open import read_study_record
from studies.storage.storage import LeasedRDBStorage

_VERSION_LABELS = {"code": "training code", "torch": "PyTorch"}
"""Names of the fields of a :class:`VersionRecord` in messages."""


def checkpoint_identity(params: Mapping[str, Any], config: StudyConfig) -> str:
    """Return everything that determines a trial's training, as JSON with sorted keys.

    A checkpoint is resumed only under the same identity.
    """
    trial_config = to_trial_config(params, config)
    architecture = trial_config.architecture
    record = config.of_trial(params).task_record
    assert record is not None
    # The identity of the record says which of several tasks it is.
    options = {name: value for name, value in trial_config.task_options if name != TASK}
    fields = {
        "architecture": architecture.init_key,
        "cell_sha256": architecture.sha256,
        "replicate": trial_config.replicate,
        "bptt_steps": trial_config.bptt_steps,
        "update_every": trial_config.update_every,
        "precision": config.precision,
        "training": asdict(to_train_config(config, params)),
        "optimizer": asdict(trial_config.optimizer),
        "task": record.identity() | options,
    }
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
    hashes = state.source_hashes if state else ()
    versions = state.torch_versions if state else ()
    earlier = {
        EARLIER_CODE: [code for code in hashes if code != current.code],
        EARLIER_TORCH: [version for version in versions if version != current.torch],
    }
    # An empty list replaces the record of a trial that has restarted from step 0.
    return {
        key: found if found or key in trial.user_attrs else None for key, found in earlier.items()
    }
