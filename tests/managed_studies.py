"""A small study with every kind of row and file, and what a database says about a study."""

import json
from contextlib import closing
from pathlib import Path
from typing import get_args

from helpers import study_attributes
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from process_runner import query

from studies.artifacts import ArtifactKind
from studies.attributes import Failure
from studies.config import StudyConfig
from studies.space import GATED_PARAMS
from studies.storage.edits import create_study
from studies.storage.leases import PendingWrite
from studies.storage.open import load_study, open_storage
from studies.storage.trials import StoredStudy, StoredTrial

RECORDED = {"host": "h", "worker": "h/1", "seconds": 2.0, "validation_windows": [1.0, 2.0]}

SPACE = {"layers": [1], "state_size": [4, 8], "residual": [False, True], "state_source": ["new"]}
SPACE |= {name: [False] for name in GATED_PARAMS[:4]}

FILES = {
    "checkpoints": ("trial-3.checkpoint", "trial-1.checkpoint", "trial-2.quarantined"),
    "weights": ("trial-0.safetensors",),
    "cells": ("cell-Mine.py",),
}


def create(url, name="made", **settings):
    """Store a study of four waiting trials; return its id."""
    config = StudyConfig.model_validate({"space": SPACE} | settings)
    grid = StudyConfig.model_validate({"space": SPACE}).grid
    attributes = study_attributes(config) | {"artifact_folder": f"{name}-folder"}
    with closing(open_storage(url)) as storage:
        choices = {n: CategoricalDistribution(tuple(grid.search_space[n])) for n in GATED_PARAMS}
        planned = [StoredTrial(params) for params in grid.combinations()]
        create_study(storage, StoredStudy(name, "validation loss", attributes, choices, planned))
        return load_study(storage, name)._study_id


def create_with_everything(url, folder, name="made"):
    """Store a study with a complete, diverged, failed and waiting trial, and all its files."""
    from optuna_dashboard import save_note  # takes seconds, in each process that imports this file

    study_id = create(url, name)
    with closing(open_storage(url)) as storage:
        trial_ids = [storage.claim(study_id, "w/1/t") for _ in range(4)]
        for trial_id in trial_ids:
            curve = {50: 2.5, 100: float("nan")}
            metrics = {"curve:validation_loss": [[50, 2.75], [100, None]]}
            storage.flush([PendingWrite(trial_id, "w/1/t", curve, metrics=metrics)])
        entry = {"artifact_id": "of-trial", "filename": "b.txt"}
        storage.set_trial_system_attr(trial_ids[0], "artifacts:of-trial", json.dumps(entry))
        storage.finish(trial_ids[0], "w/1/t", TrialState.COMPLETE, 1.0625, RECORDED)
        diverged = RECORDED | {"failure": "diverged"}
        storage.finish(trial_ids[1], "w/1/t", TrialState.FAIL, None, diverged)
        storage.requeue_all(
            [PendingWrite(trial_ids[2], "w/1/t")], Failure.EXCEPTION, "ValueError: x"
        )
        assert storage.claim(study_id, "w/1/u") == trial_ids[2]
        failed = RECORDED | {"failure": "exception", "error": "ValueError: y"}
        storage.finish(trial_ids[2], "w/1/u", TrialState.FAIL, None, failed)
        storage.pause(trial_ids[3], "w/1/t", {"rung": 100})
        study = load_study(storage, name)
        save_note(study, "a note of the study")
        save_note(Owner(study, trial_ids[0]), "a note of trial 0")
        entry = {"artifact_id": "of-study", "filename": "a.txt"}
        storage.set_study_system_attr(study_id, "artifacts:of-study", json.dumps(entry))
    for kind, names in FILES.items():
        for number, file in enumerate(names):
            path = folder / f"{name}-folder" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{kind} {number}\n".encode() * 1000)
    for file in ("of-study", "of-trial"):
        (folder / file).write_text(file)
    return study_id


class Owner:
    """A trial, as ``save_note`` takes it."""

    def __init__(self, study, trial_id):
        self.study, self.storage, self._trial_id = study, study._storage, trial_id


TABLES = {
    "study_directions": "direction, objective",
    "study_user_attributes": "key, value_json",
    "study_system_attributes": "key, value_json",
    "trial_params": "number, param_name, param_value, distribution_json",
    "trial_user_attributes": "number, key, value_json",
    "trial_system_attributes": "number, key, value_json",
    "trial_values": "number, objective, value, value_type",
    "trial_intermediate_values": "number, step, intermediate_value, intermediate_value_type",
}


def dump(url, name="made"):
    """Return the rows of a study by table, without ids."""
    ((study_id,),) = query(url, f"SELECT study_id FROM studies WHERE study_name = '{name}'")
    of_study = f"study_id = {study_id}"
    columns = "number, state, cast(datetime_start as text), cast(datetime_complete as text)"
    rows = {"trials": query(url, f"SELECT {columns} FROM trials WHERE {of_study}")}
    rows["trials"] = [
        (number, state, *(time and time.rstrip("0") for time in times))
        for number, state, *times in rows["trials"]
    ]
    for table, columns in TABLES.items():
        source = f"{table} JOIN trials USING (trial_id)" if table.startswith("trial_") else table
        rows[table] = query(url, f"SELECT {columns} FROM {source} WHERE {of_study}")
    return {table: sorted(found, key=repr) for table, found in rows.items()}


def list_files(folder):
    """Return the content of all files of a folder by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


assert {*FILES, "artifacts"} == {*get_args(ArtifactKind)}
