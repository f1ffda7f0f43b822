"""Management of stored studies from Python, as the commands ``rnn-search list``, ``copy``, … do."""

from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnn_search.study import artifacts_or_default, storage_or_default
from studies.artifacts import StudyStores
from studies.errors import ConfigError
from studies.importing import ImportedStudy, ImportOptions
from studies.importing import import_results as import_stored
from studies.management import CopyResult, ListedStudy, StudyManager
from studies.management import list_studies as list_stored
from studies.storage.open import read_storage
from studies.study_file import ExportResult, ImportResult, import_studies, is_exported_study
from studies.study_file import export_study as export_stored
from studies.text import expect_one_of, to_line

if TYPE_CHECKING:
    import optuna
    import pandas as pd


def list_studies(
    storage: str | None = None, artifacts: str | Path | None = None
) -> list[ListedStudy]:
    """List the studies of a storage by name, damaged ones and those of plain Optuna included.

    Args:
        storage: URL of the storage, as in :func:`rnn_search.load`.
        artifacts: folder or ``s3://BUCKET`` of the artifacts, as in :func:`rnn_search.load`.
    """
    url = storage_or_default(storage)
    with closing(read_storage(url)) as opened:
        stores = StudyStores(artifacts_or_default(artifacts), url, read_only=True)
        return list_stored(opened, stores)


def rename_study(old: str, new: str, *, storage: str | None = None, wait: bool = False) -> None:
    """Rename a study, also where studies that derive from it name it.

    Args:
        old: name of the study.
        new: new name.
        storage: URL of the storage.
        wait: whether to wait while workers hold trials of it.

    Raises:
        StudiesError: if that is refused; nothing has changed.
    """
    _manager(storage, None, wait).rename(old, new)


def copy_study(
    name: str,
    to: str | None = None,
    *,
    new_name: str | None = None,
    storage: str | None = None,
    artifacts: str | Path | None = None,
    artifacts_to: str | Path | None = None,
    wait: bool = False,
) -> CopyResult:
    """Copy a study with its files, to another storage or under another name.

    Args:
        name: name of the study.
        to: URL of the storage to copy it to; None for the same.
        new_name: name of the copy; None for the same.
        storage: URL of the storage that holds it.
        artifacts: folder or ``s3://BUCKET`` of its artifacts.
        artifacts_to: that of the copy; by default ``artifacts``, or else next to its storage.
        wait: whether to wait while workers hold trials of it.

    Raises:
        StudiesError: if that is refused, or fails; no part of a copy is left.
    """
    place = None if artifacts_to is None else str(artifacts_to)
    return _manager(storage, artifacts, wait).copy(name, to, new_name, place)


def export_study(name: str, file: str | Path, *, storage: str | None = None) -> ExportResult:
    """Write a study to a file: compressed JSON lines, one for each trial.

    Args:
        name: name of the study.
        file: file to write, whose name ends in ``.jsonl.gz`` or ``.jsonl``; an earlier one is
            replaced.
        storage: URL of the storage that holds it.

    Raises:
        StudiesError: if it cannot be exported; an earlier file is unchanged.
    """
    return export_stored(storage_or_default(storage), name, Path(file))


def import_study(
    file: str | Path, *, name: str | None = None, storage: str | None = None
) -> ImportResult:
    """Make a study of an exported one, without training.

    Args:
        file: file that :func:`export_study` wrote; others are for :func:`import_results`.
        name: name of the study; None for the name in the file.
        storage: URL of the storage, which is created if it does not exist.

    Raises:
        StudiesError: if it cannot be imported; nothing has changed.
    """
    (result,) = import_studies(storage_or_default(storage), [Path(file)], name)
    return result


def import_results(
    source: "str | Path | pd.DataFrame | optuna.Study",
    *,
    study: str | None = None,
    name: str | None = None,
    storage: str | None = None,
    dry_run: bool = False,
    **options: Any,
) -> ImportedStudy:
    """Make a study of the results of another program: of a table, or of a study of plain Optuna.

    Args:
        source: path of a table, CSV or Parquet; a DataFrame; a study of Optuna; or the URL of a
            storage of Optuna, which is only read.
        study: name of the study in that storage; None if it has one only.
        name: name of the new study; None for that of the file or of Optuna's study.
        storage: URL of the storage to write, which is created if it does not exist.
        dry_run: whether to write nothing: ``roles`` of the result say what the columns are.
        options: any of ``value``, ``maximize``, ``metric``, ``unit``, ``question``,
            ``parameters``, ``ignore``, ``replicate``, ``curve``, ``nuisance``, ``threshold`` and
            ``hypotheses``, as those of ``rnn-search import``; several names are a list.

    Raises:
        StudiesError: if it cannot be imported; nothing has changed.
    """
    known = [each.name for each in fields(ImportOptions)]
    if unknown := [each for each in options if each not in known]:
        raise ConfigError(f"unknown option {unknown[0]}: {expect_one_of(known, unknown[0])}")
    chosen = ImportOptions(**options)
    is_path = isinstance(source, str | Path) and "://" not in str(source)
    if is_path and study is None and is_exported_study(Path(str(source))):
        raise ConfigError(f"{to_line(str(source))} is an exported study: expected import_study")
    url = storage_or_default(storage)
    return import_stored(url, source, chosen, study=study, name=name, dry_run=dry_run)


def delete_study(
    name: str,
    *,
    storage: str | None = None,
    artifacts: str | Path | None = None,
    force: bool = False,
    wait: bool = False,
) -> None:
    """Delete a study with its files, without asking; reports are kept.

    Args:
        name: name of the study.
        storage: URL of the storage.
        artifacts: folder or ``s3://BUCKET`` of its artifacts.
        force: whether to delete it although other studies derive from it.
        wait: whether to wait while workers hold trials of it.

    Raises:
        StudiesError: if that is refused; nothing has changed.
    """
    _manager(storage, artifacts, wait).delete(name, force)


def retry_trials(
    name: str,
    *,
    failed: bool = True,
    diverged: bool = False,
    storage: str | None = None,
    wait: bool = False,
) -> int:
    """Set failed trials of a study waiting again; what each was is kept.

    Args:
        name: name of the study.
        failed: whether to retry trials that used up their retries.
        diverged: whether to retry trials whose loss was not finite.
        storage: URL of the storage.
        wait: whether to wait while workers hold trials of it.

    Returns:
        The number of trials.

    Raises:
        StudiesError: if that is refused; nothing has changed.
    """
    kinds = {"failed": failed, "diverged": diverged}
    chosen = [kind for kind, is_chosen in kinds.items() if is_chosen]
    return sum(_manager(storage, None, wait).retry(name, chosen).values())


def _manager(storage: str | None, artifacts: str | Path | None, wait: bool) -> StudyManager:
    return StudyManager(storage_or_default(storage), artifacts_or_default(artifacts), wait, print)
