"""The commands on stored studies, as functions: list, rename, delete, export, import, retry.

Each function is the command of the same name, which docs/reference/command-line.md describes with
its options. Where it is refused or fails, it raises ``UserError``, and nothing has changed.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from rnn.errors import UserError
from rnn_search.errors import require_text, to_path
from studies import management
from studies.artifacts import ArtifactFolders
from studies.attributes import OBJECTIVE_NAMES
from studies.config import Objective
from studies.exchange import ExportResult, ImportResult, import_studies, is_exported_study
from studies.exchange import export_study as export_stored
from studies.importing import ImportedStudy, ImportOptions
from studies.importing import import_results as import_stored
from studies.locations import artifacts_or_default, storage_or_default
from studies.management import ListedStudy
from studies.messages import expect_one_of, shorten
from studies.option_models import build_options
from studies.storage.open import read_storage

if TYPE_CHECKING:  # slow to import
    import optuna
    import pandas as pd


def list_studies(
    storage: str | None = None, artifacts: str | Path | None = None
) -> list[ListedStudy]:
    """List the studies of a storage by name."""
    url = storage_or_default(storage)
    with closing(read_storage(url)) as opened:
        folders = ArtifactFolders(artifacts_or_default(artifacts), url, read_only=True)
        return management.list_studies(opened, folders)


def rename_study(old: str, new: str, *, storage: str | None = None) -> None:
    """Rename a study, as ``rnn-search rename`` does."""
    require_text(old=old, new=new)
    management.rename_study(storage_or_default(storage), old, new)


def export_study(name: str, file: str | Path, *, storage: str | None = None) -> ExportResult:
    """Write a study to a file or replace it, as ``rnn-search export-study`` does."""
    require_text(name=name)
    return export_stored(storage_or_default(storage), name, to_path("file", file))


def import_study(
    file: str | Path,
    *,
    name: str | None = None,
    objective: Objective | None = None,
    storage: str | None = None,
) -> ImportResult:
    """Create a study from a file that :func:`export_study` wrote.

    Args:
        file: the file.
        name: name of the study; None for the name in the file.
        objective: loss by which to judge its trials, ``validation``, ``training`` or
            ``training-mean``; None for that of the study.
        storage: URL of the storage, which is created if it does not exist.
    """
    if objective is not None and objective not in OBJECTIVE_NAMES:
        expected = expect_one_of([*OBJECTIVE_NAMES], str(objective))
        raise UserError(f"unknown objective {shorten(repr(objective))}: {expected}")
    path = to_path("file", file)
    (result,) = import_studies(storage_or_default(storage), [path], name, objective)
    return result


def import_results(
    source: "str | Path | pd.DataFrame | optuna.Study",
    *,
    value: str = "value",
    maximize: bool | None = None,
    metric: str = "",
    unit: str = "",
    parameters: Sequence[str] = (),
    replicate: str | None = None,
    nuisance: Sequence[str] = (),
    study: str | None = None,
    name: str | None = None,
    storage: str | None = None,
    dry_run: bool = False,
) -> ImportedStudy:
    """Create a study from the results of another program, as ``rnn-search import`` does.

    Args:
        source: path of a table (``.csv``, ``.jsonl``, ``.parquet``); a DataFrame; a study of
            Optuna; or the URL of a storage of Optuna, which is only read.
        value: column with the value of each trial.
        maximize: whether a higher value is better; None for what its name or the study says.
        metric: name of the value in the report.
        unit: unit of the value in the report.
        parameters: columns that are parameters; empty for a guess.
        replicate: column that numbers repeated runs; None for replicate or seed, if there is one.
        nuisance: parameters that are tuned for each configuration, not studied.
        study: name of the study in that storage; None if it has one only.
        name: name of the new study; None for that of the file or of Optuna's study.
        storage: URL of the storage to write, which is created if it does not exist.
        dry_run: whether to write nothing: ``roles`` of the result say what the columns are.
    """
    options = build_options(
        ImportOptions,
        is_command=False,
        value=value,
        maximize=maximize,
        metric=metric,
        unit=unit,
        parameters=parameters,
        replicate=replicate,
        nuisance=nuisance,
    )
    is_path = isinstance(source, str | Path) and "://" not in str(source)
    if is_path and study is None and is_exported_study(Path(str(source))):
        raise UserError(f"{source} is an exported study: expected import_study")
    url = storage_or_default(storage)
    return import_stored(url, source, options, study=study, name=name, dry_run=dry_run)


def delete_study(
    name: str,
    *,
    storage: str | None = None,
    artifacts: str | Path | None = None,
    force: bool = False,
) -> None:
    """Delete a study with its files, without asking, as ``rnn-search delete --yes`` does."""
    require_text(name=name)
    url = storage_or_default(storage)
    management.delete_study(url, artifacts_or_default(artifacts), name, force)


def retry_trials(
    name: str,
    *,
    failed: bool = True,
    diverged: bool = False,
    storage: str | None = None,
) -> int:
    """Set failed trials waiting again and return their number, as ``rnn-search retry`` does."""
    require_text(name=name)
    kinds = {"failed": failed, "diverged": diverged}
    chosen = [kind for kind, is_chosen in kinds.items() if is_chosen]
    return sum(management.retry_trials(storage_or_default(storage), name, chosen).values())
