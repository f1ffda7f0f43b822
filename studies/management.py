"""List, rename, delete and retry the studies of a storage, with their files.

A change is refused while workers hold trials of the study. The check and the change are one
transaction, so that of a worker that claims a trial at the same moment and the change, one comes
first.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from rnn.errors import UserError
from studies.artifacts import ArtifactFolders
from studies.attributes import SCHEMA_VERSION, StudyRecord
from studies.best import Best, BestReader
from studies.messages import check_study_name
from studies.storage import edits
from studies.storage.counts import (
    ActiveWorker,
    TrialCounts,
    count_all,
    count_trials,
    read_active_workers,
    read_times,
)
from studies.storage.edits import read_owned_files
from studies.storage.open import (
    list_study_names,
    load_study,
    open_storage,
    read_record,
    read_storage,
    read_study_record,
)
from studies.storage.storage import LeasedRDBStorage

PLAIN = "plain Optuna"
DAMAGED = "damaged"


def rename_study(url: str, old: str, new: str) -> list[str]:
    """Rename a study of a storage; see :func:`studies.storage.edits.rename_study`.

    Raises:
        UserError: if the new name cannot be that of a study, or is its name.
        StorageError: if the storage cannot be opened.
    """
    check_study_name(new)
    if new == old:
        raise UserError(f"study {old!r} has that name already: expected another one")
    with _open(url) as storage:
        return edits.rename_study(storage, old, new)


def delete_study(url: str, artifacts: str | None, name: str, force: bool = False) -> None:
    """Delete a study, then its files; see :func:`studies.storage.edits.delete_study`.

    Args:
        url: URL of the storage, which must exist.
        artifacts: location of the artifacts, see :func:`studies.artifacts.ArtifactFolders`.
        name: name of the study.
        force: whether to delete it although others derive from it or workers hold its trials.

    Raises:
        UserError, OSError: if files cannot be removed; the study is deleted.
        StorageError: if the storage cannot be opened.
    """
    folders = ArtifactFolders(artifacts, url)
    with _open(url) as storage:
        owned = edits.delete_study(storage, name, force)
    folders.remove_files(owned)


def retry_trials(url: str, name: str, kinds: Collection[str]) -> dict[str, int]:
    """Set failed trials waiting again; see :func:`studies.storage.edits.retry_trials`.

    Raises:
        UserError: if another program has trained them.
        StorageError: if the storage cannot be opened.
    """
    with _open(url) as storage:
        read_study_record(load_study(storage, name))
        return edits.retry_trials(storage, name, kinds)


@contextmanager
def _open(url: str) -> Iterator[LeasedRDBStorage]:
    """Open a storage for writing; it is not created."""
    read_storage(url).close()
    with closing(open_storage(url)) as storage:
        yield storage


# ------------------------------------------------------------------ list


@dataclass(frozen=True)
class ListedStudy:
    """A study of a storage.

    Attributes:
        kind: ``grid``, ``refinement of 'X'``, ``replicates of 'X'``, ``imported``, ``schema N`` for
            a study of another version of this program, :data:`PLAIN` or :data:`DAMAGED`.
        counts: its grid trials by state; of plain Optuna's study, all trials.
        best: value of its best trial, of replicates the mean of the best architecture
            (:mod:`studies.best`); None before the first complete trial.
        best_unit: unit of that; "" for none.
        best_text: both for a line of text, of several tasks for each; "" before the first complete
            trial.
        workers: workers that hold its trials.
        started: time at which its first trial was started, UTC, by the worker's clock.
        changed: time at which a trial was last started or finished.
        artifact_bytes: size of checkpoints, weights and cells; None of a damaged study.
        problem: what is damaged; "" for nothing.
    """

    name: str
    kind: str
    counts: TrialCounts = field(default_factory=TrialCounts)
    best: float | None = None
    best_unit: str = ""
    best_text: str = ""
    workers: tuple[ActiveWorker, ...] = ()
    started: datetime | None = None
    changed: datetime | None = None
    artifact_bytes: int | None = None
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the study as ``--json`` prints it."""
        return {
            "study": self.name,
            "kind": self.kind,
            "planned": self.counts.planned,
            "finished": self.counts.finished,
            **asdict(self.counts),
            "best": self.best,
            "best_unit": self.best_unit,
            "workers": [worker.as_json() for worker in self.workers],
            "started": self.started and f"{self.started.isoformat()}+00:00",
            "changed": self.changed and f"{self.changed.isoformat()}+00:00",
            "artifact_bytes": self.artifact_bytes,
            "problem": self.problem,
        }


def list_studies(storage: LeasedRDBStorage, folders: ArtifactFolders) -> list[ListedStudy]:
    """List the studies of a storage, by name."""
    listed = []
    for name in list_study_names(storage):
        try:
            listed.append(_read_study(storage, folders, name))
        except (KeyError, UserError) as error:
            if name not in list_study_names(storage):  # it was deleted meanwhile
                continue
            if not isinstance(error, UserError):
                raise
            listed.append(ListedStudy(name, DAMAGED, problem=str(error)))
    return listed


def _read_study(storage: LeasedRDBStorage, folders: ArtifactFolders, name: str) -> ListedStudy:
    study = load_study(storage, name)
    study_id = study._study_id
    version = study.user_attrs.get("schema_version")
    kind = f"schema {version}"
    record = None
    problem = ""
    count = count_trials
    if version is None and "artifact_folder" not in study.user_attrs:
        kind = PLAIN
        count = count_all
    elif version == SCHEMA_VERSION:
        try:
            record = read_record(study)
            kind = _kind(record)
        except UserError as error:
            kind = DAMAGED
            problem = str(error)
    with storage.reading() as connection:
        counts = count(storage, study_id)
        reader = BestReader(study, storage, record.config) if record else None
        best = reader.read() if reader else None
        of_tasks = reader.read_tasks() if reader else {}
        workers = tuple(read_active_workers(connection, study_id))
        started, changed = read_times(connection, study_id)
        folder = read_owned_files(connection, study_id).folder
    return ListedStudy(
        name,
        kind,
        counts,
        best.value if best else None,
        best.metric.unit if best else "",
        _format_best(best) if best else _list_best(of_tasks),
        workers,
        started,
        changed,
        folders.measure(folder) if folder else 0,
        problem,
    )


def _format_best(best: Best) -> str:
    """Return the value with its unit, and with its name if the unit does not say what it is."""
    text = best.metric.format(best.value)
    return f"{text}, {best.metric.name}" if best.metric.is_named else text


def _list_best(of_tasks: Mapping[str, Best]) -> str:
    return ", ".join(f"{name} {best.metric.format(best.value)}" for name, best in of_tasks.items())


def _kind(record: StudyRecord) -> str:
    if record.config.is_imported:
        return "imported"
    refinement = record.config.refinement
    if refinement is None:
        return "grid"
    if refinement.trial is not None:
        return f"trial {refinement.trial} of {refinement.source!r}"
    is_same = refinement.variants == [{}]
    kind = "replicates" if is_same and refinement.replicates > 1 else "refinement"
    return f"{kind} of {refinement.source!r}"
