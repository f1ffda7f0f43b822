"""Everything that a storage has of a study: read for a copy or a file, and stored from one.

Trials are read and stored one after the other: few of them are in memory.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.errors import RowError
from studies.storage.changes import lock_copies, require_free_name
from studies.storage.counts import find_study, require_unheld
from studies.storage.reads import read_distributions, read_where
from studies.storage.storage import LeasedRDBStorage
from studies.storage.tables import (
    METRIC_NAMES,
    STUDY_SYSTEM_ATTRS,
    TRIAL_TABLES,
    TRIALS,
    insert_study,
    insert_trials,
    raw,
    select_trial_ids,
    write_attrs,
)
from studies.storage.trials import StoredTrial, decode_distribution, reporting_damage

_BATCH = 200
"""Number of trials that are read at once."""

_OF_TRIAL = re.compile(r"^(dashboard:(?:artifacts:)?)(\d+):")
"""Keys of a study's system attributes that name a trial by its id: its note and its files."""

_OF_NUMBER = re.compile(r"^(dashboard:(?:artifacts:)?)trial-(\d+):")
"""The same in a :class:`WholeStudy`, which names it by its number."""


@dataclass(frozen=True)
class WholeStudy:
    """Everything that a storage or a file has of a study.

    Attributes:
        metric: name of its value; "" for none.
        system_attributes: its system attributes, the name of its value aside. Those about a trial
            name it by ``trial-NUMBER`` in place of its id.
        distributions: distribution of each parameter; trials may have others.
        trials: its trials by number, with everything that they have; to be iterated once.
    """

    name: str
    metric: str
    direction: StudyDirection
    attributes: Mapping[str, Any]
    system_attributes: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    trials: Iterable[StoredTrial]

    def with_files(self, artifact_ids: Mapping[str, str]) -> "WholeStudy":
        """Return it with other names of the files that its attributes list for a dashboard."""

        def rename(attributes: Mapping[str, Any]) -> dict[str, Any]:
            renamed = {}
            for key, value in attributes.items():
                for before, after in artifact_ids.items():
                    if before in key:
                        key = key.replace(before, after)
                        value = json.loads(json.dumps(value).replace(before, after))
                renamed[key] = value
            return renamed

        trials = (
            replace(trial, system_attributes=rename(trial.system_attributes))
            for trial in self.trials
        )
        return replace(self, system_attributes=rename(self.system_attributes), trials=trials)


def read_study(storage: LeasedRDBStorage, name: str) -> WholeStudy:
    """Read a study whose trials no worker holds, in the caller's reading transaction.

    The trials are read when they are iterated.

    Raises:
        StudyNotFoundError, StudyHeldError: if there is none, or workers hold trials of it.
        StudyFormatError: if it is damaged, also when its trials are iterated.
    """
    with storage.reading() as connection:
        study_id = find_study(connection, name)
        require_unheld(connection, name, study_id)
        query = sa.select(TRIALS.c.trial_id, raw(TRIALS.c.number)).order_by(TRIALS.c.number)
        rows = connection.execute(query.where(TRIALS.c.study_id == study_id))
        numbers: dict[int, Any] = dict(rows.all())
        (direction,) = storage.get_study_directions(study_id)
        attributes = storage.get_study_user_attrs(study_id)
        system_attributes = storage.get_study_system_attrs(study_id)
        with reporting_damage(storage, study_id):
            stored = read_distributions(connection, study_id)
            distributions = {key: decode_distribution(each) for key, each in stored.items()}

    def name_trial(match: re.Match[str]) -> str:
        number = numbers.get(int(match[2]))
        return match[0] if number is None else f"{match[1]}trial-{number}:"

    (metric, *_) = system_attributes.pop(METRIC_NAMES, [""])
    named = {_OF_TRIAL.sub(name_trial, key): value for key, value in system_attributes.items()}
    trials = read_all_trials(storage, study_id, list(numbers))
    return WholeStudy(name, metric, direction, attributes, named, distributions, trials)


def read_all_trials(
    storage: LeasedRDBStorage,
    study_id: int,
    ids: Sequence[int],
    columns: Collection[sa.Table] = TRIAL_TABLES,
) -> Iterator[StoredTrial]:
    """Read trials of a study in the caller's reading transaction, grid trials and others.

    Their ids are in the order of their numbers. They are read with everything that they have; of
    fewer columns only what this program defines.

    Raises:
        DamagedTrialError: if one is damaged.
    """
    is_whole = columns is TRIAL_TABLES
    for first in range(0, len(ids), _BATCH):
        where = [TRIALS.c.trial_id.in_(ids[first : first + _BATCH])]
        with storage.reading() as connection:
            trials, damaged = read_where(connection, study_id, where, columns, is_whole)
        for trial in trials:
            for key in (*trial.attributes, *trial.system_attributes):
                if not isinstance(key, str):
                    error = RowError(f"attribute {key!r}: no name")
                    damaged.add(trial.trial_id, trial.number, error)
        damaged.report(storage, study_id, is_strict=True)
        yield from trials


def store_study(
    connection: Connection, study: WholeStudy, folder: str, option: str = "--as"
) -> dict[str, int]:
    """Store a study under its name; return the number of rows by table of those of its trials.

    A number that no trial has becomes a failed trial that is not of the grid: Optuna numbers the
    trials of a study without gaps. Messages name the option of the command that gives another name.

    Raises:
        StudyExistsError: if the name is taken.
        StorageError: if the database refuses a row.
    """
    lock_copies(connection)
    require_free_name(connection, study.name, option)
    attributes = {**study.attributes, "artifact_folder": folder}
    study_id = insert_study(connection, study.name, study.metric, study.direction, attributes)
    counts = insert_trials(connection, study_id, study.distributions, _fill_gaps(study.trials))
    ids: Sequence[int] = ()
    if any(map(_OF_NUMBER.match, study.system_attributes)):
        ids = connection.scalars(select_trial_ids(study_id).order_by(TRIALS.c.number)).all()
    stored = {
        _OF_NUMBER.sub(lambda match: f"{match[1]}{ids[int(match[2])]}:", key): value
        for key, value in study.system_attributes.items()
    }
    write_attrs(connection, STUDY_SYSTEM_ATTRS, {study_id: stored})
    return counts


def _fill_gaps(trials: Iterable[StoredTrial]) -> Iterator[StoredTrial]:
    count = 0
    for trial in trials:
        for _ in range(count, trial.number):
            yield StoredTrial(state=TrialState.FAIL, is_grid=False)
        yield trial
        count = trial.number + 1


def new_folder(name: str) -> str:
    """Return a new name for the artifact folder of a study."""
    return f"{re.sub('[^A-Za-z0-9_-]', '-', name)}-{uuid4().hex[:12]}"
