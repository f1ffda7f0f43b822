"""Import of studies from files of tables to a storage: all of them in one transaction, or none."""

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import sqlalchemy as sa
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.errors import ConfigError, StudyExistsError, TableError
from studies.space import distributions
from studies.storage.backup import merge_log
from studies.storage.changes import lock_copies, require_free_name
from studies.storage.engine import parse_url, redact
from studies.storage.open import list_study_names, open_storage
from studies.storage.tables import insert_study, insert_trials
from studies.storage.trials import StoredTrial
from studies.tables.study_table import FIRST_LINE, StudyTable
from studies.tables.study_table_reader import read_study_table
from studies.tables.table_file import open_table
from studies.text import check_study_name


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
    by_number = {trial.number: trial for trial in table.trials}
    missing = StoredTrial(state=TrialState.FAIL, is_grid=False)
    trials = (by_number.get(number, missing) for number in range(max(by_number) + 1))
    return insert_trials(connection, study_id, distributions(table.choices), trials)
