"""Import of results as a study: read them, check them, store them in one transaction."""

import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from optuna.study import StudyDirection

from studies.attributes import StudyRecord
from studies.config import ImportedResults, StudyConfig
from studies.errors import StudyExistsError
from studies.importing.options import ImportOptions
from studies.importing.optuna_study import read_optuna_study
from studies.importing.rows import ResultTable, check_rows, describe_counts, to_trials
from studies.importing.table import read_results_table
from studies.storage.changes import create_study
from studies.storage.engine import redact
from studies.storage.open import open_storage
from studies.text import check_study_name

_TABLE_SUFFIXES = (".gz", ".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class ImportedStudy:
    """What was imported.

    Attributes:
        name: name of the study.
        source: file or study that the results were read from.
        counts: number of runs by state, for a reader.
        parameters: names of its parameters.
        notes: what was decided or left out, one sentence each.
        goal: what is best, for a reader: ``the lowest loss is best``.
    """

    name: str
    source: str
    counts: str
    parameters: list[str]
    notes: list[str]
    goal: str


def import_table(
    storage: str, path: Path, name: str | None, options: ImportOptions, command: str = ""
) -> ImportedStudy:
    """Import a table of parameters and values as a study.

    Args:
        storage: URL of the storage, which is created if it does not exist.
        path: CSV file, compressed or not.
        name: name of the study; by default that of the file.
        options: which columns are what.
        command: command that imports it, for the report.

    Raises:
        ConfigError: if the file is no table of results; nothing is written.
        StudyExistsError: if the name is taken.
        StorageError: if the storage cannot be used.
    """
    name = _strip_suffixes(path.name) if name is None else name
    check_study_name(name)
    return _store(storage, name, read_results_table(path, options), options, command)


def import_optuna_study(
    storage: str,
    source: str,
    study: str | None,
    name: str | None,
    options: ImportOptions,
    command: str = "",
) -> ImportedStudy:
    """Import a study of plain Optuna, which is read without changing it.

    Args:
        storage: URL of the storage, which is created if it does not exist.
        source: URL of the storage that has the study.
        study: its name; None if that storage has one study only.
        name: name of the new study; by default the same.
        options: which parameters and which objective to import.
        command: command that imports it, for the report.

    Raises:
        ConfigError: if it has no results that can be imported; nothing is written.
        StudyExistsError: if the name is taken.
        StudiesError: if a storage or the study cannot be used.
    """
    table = read_optuna_study(source, study, options)
    name = table.study if name is None else name
    check_study_name(name)
    return _store(storage, name, table, options, command)


def _store(
    storage: str, name: str, table: ResultTable, options: ImportOptions, command: str
) -> ImportedStudy:
    checked = check_rows(table)
    parameters = list(dict.fromkeys(each for row in checked.rows for each in row.params))
    results = ImportedResults(
        source=checked.source,
        metric=checked.metric,
        unit=options.unit,
        direction="maximize" if checked.maximize else "minimize",
        parameters=parameters,
        notes=checked.notes,
        is_adaptive=checked.is_adaptive,
    )
    folder = f"{re.sub('[^A-Za-z0-9_-]', '-', name)}-{uuid4().hex[:12]}"
    record = StudyRecord(
        config=StudyConfig(question=options.question, results=results),
        commands=[command] if command else [],
        artifact_folder=folder,
    )
    direction = StudyDirection.MAXIMIZE if checked.maximize else StudyDirection.MINIMIZE
    distributions, trials = to_trials(checked)
    with closing(open_storage(storage)) as opened:
        if not create_study(
            opened,
            name,
            checked.metric,
            record.attributes(),
            distributions,
            trials,
            direction,
        ):
            raise StudyExistsError(
                f"study {name!r} exists in {redact(opened.engine.url)} already: choose another "
                "--name, or delete it first"
            )
    goal = f"the {'highest' if checked.maximize else 'lowest'} {checked.metric} is best"
    return ImportedStudy(
        name, checked.source, describe_counts(trials), parameters, checked.notes, goal
    )


def _strip_suffixes(name: str) -> str:
    while Path(name).suffix in _TABLE_SUFFIXES and Path(name).stem:
        name = Path(name).stem
    return name
