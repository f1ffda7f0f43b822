"""Versions of the training code and of PyTorch, and warnings where a study mixes them."""

from collections.abc import Mapping

import optuna
from optuna.trial import FrozenTrial

from rnn.training import checkpoint
from rnn.training.checkpoint import TrainState
from studies.attributes import EARLIER_CODE, EARLIER_TORCH, VersionRecord
from studies.loader import read_study_record
from studies.storage.counts import count_trials, distinct_versions
from studies.storage.storage import LeasedRDBStorage

LABELS = {"code": "training code", "torch": "PyTorch"}
"""Names of the fields of a :class:`VersionRecord` in messages."""


def current_versions() -> VersionRecord:
    """Return the versions that this process trains with."""
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
    current = current_versions().model_dump()
    differing = [name for name in LABELS if used[name] - {current[name]}]
    if not differing:
        return ""
    others = (
        f"{LABELS[name]} {', '.join(sorted(used[name] - {current[name]}))}" for name in differing
    )
    own = (f"{LABELS[name]} {current[name]}" for name in differing)
    return (
        f"study {study.study_name!r} was created or trained with {' and '.join(others)} so "
        f"far; this worker trains with {' and '.join(own)}; to avoid mixing them, stop and use the "
        "earlier version"
    )


def last_versions(state: TrainState) -> dict[str, str]:
    """Return the versions that a checkpoint was written with, as far as they are known."""
    versions = {"code": state.source_hashes[-1:], "torch": state.torch_versions[-1:]}
    return {name: version[0] for name, version in versions.items() if version}


def earlier_versions(
    trial: FrozenTrial, state: TrainState | None
) -> Mapping[str, list[str] | None]:
    """Return the attributes that record the other versions that trained a trial before.

    Args:
        trial: the trial as it was claimed.
        state: state that it resumes from; None for step 0.
    """
    current = current_versions()
    code = [each for each in state.source_hashes if each != current.code] if state else []
    torch = [each for each in state.torch_versions if each != current.torch] if state else []
    # An empty list replaces the record of a trial that has restarted from step 0.
    return {
        key: earlier if earlier or key in trial.user_attrs else None
        for key, earlier in ((EARLIER_CODE, code), (EARLIER_TORCH, torch))
    }
