"""What identifies the training of a trial, and the versions that trained it."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rnn.training import checkpoint
from search.worker.lockstep import to_train_config
from studies.attributes import VersionRecord
from studies.config import StudyConfig, to_trial_config
from studies.space import TASK

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
