"""Versions of the code that trained the trials of a study."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import optuna
from optuna.trial import FrozenTrial

from search.worker.loop_state import LoopState
from studies.attributes import EARLIER_CODE, EARLIER_TORCH, VersionRecord
from studies.storage.counts import count_trials, distinct_versions
from studies.storage.open import read_study_record
from studies.storage.storage import LeasedRDBStorage

if TYPE_CHECKING:
    from rnn.training.checkpoint import TrainState

_VERSION_LABELS = {"code": "training code", "torch": "PyTorch"}
"""Names of the fields of a :class:`VersionRecord` in messages."""


def describe_mixing(study: optuna.Study, storage: LeasedRDBStorage, versions: VersionRecord) -> str:
    """Return a warning if other versions than a worker's created or trained an unfinished study."""
    counts = count_trials(storage, study._study_id)
    if counts.finished == counts.planned:
        return ""
    used = distinct_versions(storage, study._study_id)
    created_with = read_study_record(study).created_with
    if created_with is not None:
        for name, version in created_with.model_dump().items():
            used[name].add(version)
    current = versions.model_dump()
    known = [name for name in _VERSION_LABELS if current[name]]
    others = {name: sorted({*used[name]} - {current[name]}) for name in known}
    differing = [(label, name) for name, label in _VERSION_LABELS.items() if others.get(name)]
    if not differing:
        return ""
    earlier = " and ".join(f"{label} {', '.join(others[name])}" for label, name in differing)
    own = " and ".join(f"{label} {current[name]}" for label, name in differing)
    return (
        f"study {study.study_name!r} was created or trained with {earlier} so far; this worker "
        f"trains with {own}; to avoid mixing them, stop and use the earlier version"
    )


def earlier_versions(
    trial: FrozenTrial, state: "TrainState | LoopState | None", current: VersionRecord
) -> Mapping[str, list[str] | None]:
    """Return the attributes that record other versions that trained a claimed trial before."""
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
