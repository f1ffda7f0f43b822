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

from studies.errors import RowError, StudyFormatError
from studies.storage.changes import lock_copies, require_free_name
from studies.storage.counts import find_study, require_unheld
from studies.storage.reads import read_where
from studies.storage.tables import (
    METRIC_NAMES,
    STUDY_DIRECTIONS,
    STUDY_SYSTEM_ATTRS,
    STUDY_USER_ATTRS,
    TRIAL_PARAMS,
    TRIAL_TABLES,
    TRIALS,
    insert_study,
    insert_trials,
    of_study,
    raw,
    read_study_attrs,
    select_trial_ids,
    write_attrs,
)
from studies.storage.trials import (
    DamagedTrialError,
    StoredTrial,
    decode_distribution,
    decode_json,
    describe_damage,
)

_BATCH = 200
"""Number of trials that are read at once."""

_OF_TRIAL = re.compile(r"(dashboard:(?:artifacts:)?)(trial-)?(\d+)(:.*)", re.DOTALL)
"""Keys of a study's system attributes that name a trial by its id: its note and its files."""


@dataclass(frozen=True)
class WholeStudy:
    """Everything that a storage or a file has of a study.

    Attributes:
        name: name of the study.
        metric: name of its value; "" for none.
        direction: whether a lower or a higher value is better.
        attributes: its user attributes.
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


def read_study(connection: Connection, name: str) -> WholeStudy:
    """Read a study whose trials no worker holds; the trials are read when they are iterated.

    Args:
        connection: connection with a snapshot of the storage.
        name: name of the study.

    Raises:
        StudyNotFoundError, StudyHeldError: if there is none, or workers hold trials of it.
        StudyFormatError: if it is damaged, also when its trials are iterated.
    """
    study_id = find_study(connection, name)
    require_unheld(connection, name, study_id)
    query = sa.select(TRIALS.c.trial_id, raw(TRIALS.c.number)).order_by(TRIALS.c.number)
    rows = connection.execute(query.where(TRIALS.c.study_id == study_id))
    numbers: dict[int, Any] = dict(rows.all())
    try:
        attributes, system_attributes = (
            {
                key: decode_json(stored, key)
                for key, stored in read_study_attrs(connection, table, study_id).items()
            }
            for table in (STUDY_USER_ATTRS, STUDY_SYSTEM_ATTRS)
        )
        distributions = _read_distributions(connection, study_id)
    except RowError as error:
        raise StudyFormatError(describe_damage(name, str(error))) from error
    (metric, *_) = system_attributes.pop(METRIC_NAMES, [""])
    named = {}
    for key, value in system_attributes.items():
        match = _OF_TRIAL.fullmatch(key)
        number = numbers.get(int(match[3])) if match and not match[2] else None
        named[key if match is None or number is None else f"{match[1]}trial-{number}{match[4]}"] = (
            value
        )
    query = sa.select(STUDY_DIRECTIONS.c.direction).where(of_study(STUDY_DIRECTIONS, study_id))
    direction = connection.scalars(query).one()
    trials = read_all_trials(connection, study_id, name, list(numbers))
    return WholeStudy(name, metric, direction, attributes, named, distributions, trials)


def _read_distributions(connection: Connection, study_id: int) -> dict[str, BaseDistribution]:
    """Return the distribution that most trials have of each parameter."""
    columns = (TRIAL_PARAMS.c.param_name, TRIAL_PARAMS.c.distribution_json)
    first = sa.func.min(TRIAL_PARAMS.c.param_id)
    query = sa.select(*columns, sa.func.count()).where(of_study(TRIAL_PARAMS, study_id))
    found: dict[str, tuple[int, str]] = {}
    for name, stored, count in connection.execute(query.group_by(*columns).order_by(first)):
        found[name] = max(found.get(name, (0, "")), (count, stored))
    return {name: decode_distribution(stored) for name, (_, stored) in found.items()}


def read_all_trials(
    connection: Connection,
    study_id: int,
    name: str,
    ids: Sequence[int],
    columns: Collection[sa.Table] = TRIAL_TABLES,
) -> Iterator[StoredTrial]:
    """Read all trials of a study, grid trials and others, with everything that they have.

    Args:
        connection: connection with a snapshot of the storage.
        study_id: id of the study.
        name: its name, for messages.
        ids: ids of the trials, in the order of their numbers.
        columns: what is read of them; of fewer tables only what this program defines.

    Raises:
        DamagedTrialError: if one is damaged.
    """
    is_whole = columns is TRIAL_TABLES
    for first in range(0, len(ids), _BATCH):
        where = [TRIALS.c.trial_id.in_(ids[first : first + _BATCH])]
        trials, damaged = read_where(connection, study_id, where, columns, is_whole)
        for trial in trials:
            for key in (*trial.attributes, *trial.system_attributes):
                if not isinstance(key, str):
                    damaged.add(
                        trial.trial_id, trial.number, RowError(f"attribute {key!r}: no name")
                    )
        for number, reason in damaged.reasons.items():
            raise DamagedTrialError(name, number, reason)
        yield from trials


def store_study(
    connection: Connection, study: WholeStudy, folder: str, option: str = "--as"
) -> dict[str, int]:
    """Store a study under its name; return the number of rows by table of those of its trials.

    A number that no trial has becomes a failed trial that is not of the grid: Optuna numbers the
    trials of a study without gaps.

    Args:
        connection: connection in a writing transaction.
        study: the study.
        folder: its artifact folder.
        option: option of the command that gives it another name.

    Raises:
        StudyExistsError: if the name is taken.
        StorageError: if the database refuses a row.
    """
    lock_copies(connection)
    require_free_name(connection, study.name, option)
    attributes = {**study.attributes, "artifact_folder": folder}
    study_id = insert_study(connection, study.name, study.metric, study.direction, attributes)
    counts = insert_trials(connection, study_id, study.distributions, _fill_gaps(study.trials))
    matches = {key: _OF_TRIAL.fullmatch(key) for key in study.system_attributes}
    ids: Sequence[int] = ()
    if any(match and match[2] for match in matches.values()):
        ids = connection.scalars(select_trial_ids(study_id).order_by(TRIALS.c.number)).all()
    stored = {
        f"{match[1]}{ids[int(match[3])]}{match[4]}" if match and match[2] else key: value
        for (key, value), match in zip(
            study.system_attributes.items(), matches.values(), strict=True
        )
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
