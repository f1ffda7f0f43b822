"""Everything that a study file has of a study: read from a storage, and stored in one.

Trials are read and stored one after the other: few of them are in memory.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from rnn.errors import UserError
from studies.storage.counts import find_study
from studies.storage.reads import read_distributions, read_whole_trials
from studies.storage.storage import LeasedRDBStorage
from studies.storage.tables import (
    METRIC_NAMES,
    STUDIES,
    STUDY_SYSTEM_ATTRS,
    TRIALS,
    insert_study,
    insert_trials,
    select_trial_ids,
    write_attrs,
)
from studies.storage.trials import StoredTrial, decode_distribution, locating

_BATCH = 200
"""Number of trials that are read at once."""


@dataclass(frozen=True)
class WholeStudy:
    """A study as a storage or a file has it.

    Attributes:
        metric: name of its value; "" for none.
        system_attributes: its system attributes, the name of its value aside.
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


def read_study(storage: LeasedRDBStorage, name: str) -> WholeStudy:
    """Read a study in the caller's reading transaction; its trials are read when iterated.

    Raises:
        StudyNotFoundError: if there is none.
        StudyFormatError: if it is damaged, also when its trials are iterated.
    """
    with storage.reading() as connection:
        study_id = find_study(connection, name)
        ids = connection.scalars(select_trial_ids(study_id).order_by(TRIALS.c.number)).all()
        (direction,) = storage.get_study_directions(study_id)
        attributes = storage.get_study_user_attrs(study_id)
        system_attributes = storage.get_study_system_attrs(study_id)
        with locating(study_id):
            stored = read_distributions(connection, study_id)
            distributions = {key: decode_distribution(each) for key, each in stored.items()}
    (metric, *_) = system_attributes.pop(METRIC_NAMES, [""])
    trials = read_all_trials(storage, study_id, ids)
    return WholeStudy(name, metric, direction, attributes, system_attributes, distributions, trials)


def read_all_trials(
    storage: LeasedRDBStorage, study_id: int, ids: Sequence[int]
) -> Iterator[StoredTrial]:
    """Read trials of a study in the caller's reading transaction, grid trials and others.

    Their ids are in the order of their numbers. They are read with everything that they have.
    """
    for first in range(0, len(ids), _BATCH):
        where = [TRIALS.c.trial_id.in_(ids[first : first + _BATCH])]
        with storage.reading() as connection:
            trials = read_whole_trials(connection, study_id, where)
        yield from trials


def store_study(connection: Connection, study: WholeStudy, folder: str) -> dict[str, int]:
    """Store a study under its name; return the number of rows by table of those of its trials.

    A number that no trial has becomes a failed trial that is not of the grid: Optuna numbers the
    trials of a study without gaps.

    Raises:
        UserError: if the name is taken.
        StorageError: if the database refuses a row.
    """
    query = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == study.name)
    if connection.scalar(query) is not None:
        raise UserError(
            f"study {study.name!r} exists there already: expected another name (--name)"
        )
    attributes = {**study.attributes, "artifact_folder": folder}
    study_id = insert_study(connection, study.name, study.metric, study.direction, attributes)
    write_attrs(connection, STUDY_SYSTEM_ATTRS, {study_id: study.system_attributes})
    return insert_trials(connection, study_id, study.distributions, _fill_gaps(study.trials))


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
