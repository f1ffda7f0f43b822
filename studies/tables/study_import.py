"""Import of studies from files of tables to a storage: all of them in one transaction, or none."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.attributes import IS_GRID_TRIAL
from studies.errors import ConfigError, StudyExistsError, TableError
from studies.space import distributions
from studies.storage.backup import merge_log
from studies.storage.bulk_insert import insert_rows
from studies.storage.copy_study import lock_copies, require_free_name
from studies.storage.create_study import insert_study
from studies.storage.engine import parse_url, redact
from studies.storage.open import list_study_names, open_storage
from studies.storage.trial_rows import (
    INTERMEDIATE_VALUES,
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_USER_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    insert,
)
from studies.study_name import check_study_name
from studies.tables.study_table import FIRST_LINE, StudyTable, TableTrial
from studies.tables.study_table_reader import read_study_table
from studies.tables.table_file import open_table

_Rows = Iterator[tuple[Any, ...]]


@dataclass(frozen=True)
class ImportResult:
    """A study that was imported.

    Attributes:
        name: name of the study.
        storage: URL of its storage, without the password.
        rows: number of rows by table of the database.
        missing_source: name of the study that it derives from, if the storage lacks that.
    """

    name: str
    storage: str
    rows: dict[str, int]
    missing_source: str | None = None


def import_studies(
    storage: str, paths: Sequence[Path], name: str | None = None
) -> list[ImportResult]:
    """Store the studies of some files.

    Args:
        storage: URL of the storage, which is created if it does not exist.
        paths: the files.
        name: name of the study, if there is one file; None for the name in each file.

    Raises:
        ConfigError: if the name cannot be that of a study, or of several.
        TableError: if a file cannot be read; the message names row and column.
        StudyExistsError: if a name is taken.
        StorageError: if the storage cannot be used.
    """
    if name is not None:
        if len(paths) > 1:
            raise ConfigError(f"one name for {len(paths)} files: expected one file, or no --name")
        check_study_name(name)
    # All files are read before the storage is opened, which may create it.
    tables = [read_table(path) for path in paths]
    if name is not None:
        tables = [replace(table, name=name) for table in tables]
    tables = [_with_folder(table) for table in tables]
    with closing(open_storage(storage)) as opened:
        try:
            with opened.transaction() as connection:
                rows = [insert_table(connection, table) for table in tables]
        except sa.exc.IntegrityError as error:  # another process took a name at this moment
            taken = ", ".join(repr(table.name) for table in tables)
            raise StudyExistsError(f"study {taken} exists: expected another name") from error
        merge_log(opened)
        names = list_study_names(opened)
    where = redact(parse_url(storage).set(password=None))
    results = []
    for table, counts in zip(tables, rows, strict=True):
        refinement = table.record.config.refinement
        source = None if refinement is None or refinement.source in names else refinement.source
        results.append(ImportResult(table.name, where, counts, source))
    return results


def read_table(path: Path) -> StudyTable:
    """Read the study of a file, whose first line says what the file is.

    Raises:
        TableError: if it cannot be read; the message names row and column.
    """
    with open_table(path) as lines:
        first = next(lines, "")
        if match := FIRST_LINE.fullmatch(first):
            return read_study_table(str(path), match[1], match[2], lines)
    raise TableError(
        f"{path} is not an exported study: expected a file that rnn-search export-study wrote"
    )


def is_exported_study(path: Path) -> bool:
    """Return whether the first line of a file says that it is an exported study."""
    try:
        with open_table(path) as lines:
            return FIRST_LINE.fullmatch(next(lines, "")) is not None
    except TableError:  # who reads it as a table says why
        return False


def _with_folder(table: StudyTable) -> StudyTable:
    """Return a study with an artifact folder of its own, which has no files yet."""
    folder = f"{re.sub('[^A-Za-z0-9_-]', '-', table.name)}-{uuid4().hex[:12]}"
    return replace(table, record=table.record.model_copy(update={"artifact_folder": folder}))


def insert_table(connection: Connection, table: StudyTable) -> dict[str, int]:
    """Store a study with its trials.

    A number that no trial of the table has becomes a failed trial that is not of the grid, as the
    study had one: Optuna numbers the trials of a study without gaps.

    Args:
        connection: connection in a writing transaction.
        table: the study; its record has the artifact folder.

    Returns:
        The number of rows by table of the database, of those that hold trials.

    Raises:
        StudyExistsError: if the name is taken.
    """
    lock_copies(connection)
    require_free_name(connection, table.name, "--name")
    study_id = insert_study(
        connection,
        table.name,
        table.metric,
        StudyDirection.MINIMIZE,
        table.record.attributes(),
        table.system_attributes,
    )
    trials = list(table.trials)
    ids = _insert_trials(connection, study_id, trials)
    return {TRIALS.name: len(trials)} | {
        target.name: insert_rows(connection, target, rows)
        for target, rows in (
            (TRIAL_VALUES, _list_values(trials, ids)),
            (TRIAL_PARAMS, _list_params(table, trials, ids)),
            (TRIAL_USER_ATTRS, _list_attributes(trials, ids, is_system=False)),
            (TRIAL_SYSTEM_ATTRS, _list_attributes(trials, ids, is_system=True)),
            (INTERMEDIATE_VALUES, _list_points(table, trials, ids)),
        )
    }


def _insert_trials(
    connection: Connection, study_id: int, trials: list[TableTrial]
) -> dict[int, int]:
    """Insert the rows of trials; return their ids by their numbers."""
    by_number = {trial.number: trial for trial in trials}
    rows = []
    for number in range(max(by_number) + 1):
        trial = by_number.get(number, TableTrial(number, TrialState.FAIL))
        rows.append(
            {
                "study_id": study_id,
                "number": number,
                "state": trial.state,
                "datetime_start": trial.started,
                "datetime_complete": trial.completed,
            }
        )
    insert(connection, TRIALS, rows)
    query = sa.select(TRIALS.c.number, TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    return {row.number: row.trial_id for row in connection.execute(query)}


def _list_values(trials: list[TableTrial], ids: Mapping[int, int]) -> _Rows:
    to_stored = models.TrialValueModel.value_to_stored_repr
    for trial in trials:
        if trial.value is not None:
            value, kind = to_stored(trial.value)
            yield ids[trial.number], 0, value, kind.name


def _list_params(table: StudyTable, trials: list[TableTrial], ids: Mapping[int, int]) -> _Rows:
    choices = distributions(table.choices)
    stored = {name: distribution_to_json(each) for name, each in choices.items()}
    for trial in trials:
        for name, value in trial.params.items():
            index = float(choices[name].to_internal_repr(value))
            yield ids[trial.number], name, index, stored[name]


def _list_attributes(trials: list[TableTrial], ids: Mapping[int, int], is_system: bool) -> _Rows:
    for trial in trials:
        attributes = trial.attributes
        if is_system:
            attributes = {IS_GRID_TRIAL: True, **trial.system_attributes}
        for key, value in attributes.items():
            yield ids[trial.number], key, json.dumps(value)


def _list_points(table: StudyTable, trials: list[TableTrial], ids: Mapping[int, int]) -> _Rows:
    to_stored = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
    for trial in trials:
        for step, loss in zip(table.steps, trial.losses, strict=True):
            if loss is not None:
                value, kind = to_stored(loss)
                yield ids[trial.number], step, value, kind.name
