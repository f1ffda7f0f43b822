"""Create a study, join one whose settings agree, or open one by name.

A worker does two steps: it creates or joins a study, for which alone a study file is read, and it
works on the stored study. Further workers do the second step only, by the name of the study.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.study import StudyDirection

import search
from rnn.errors import UserError
from search.derive import check_count
from search.extend import (
    extend,
    format_setting,
    has_earlier_grid,
    no_space_error,
)
from search.open_study import OpenStudy, attach, open_stored
from search.planned_effects import describe_weakest, plan_effects
from search.planned_study import (
    PlannedStudy,
    WantedStudy,
    check,
    describe_trials,
    load_file,
    plan_trials,
    resolve,
)
from search.pruning.audited_trials import draw_audited
from search.run_options import LOOP_FUNCTION, TASK_SOURCE, RunOptions, WorkerOptions
from search.worker.versions import describe_mixing
from studies.artifacts import new_folder
from studies.attributes import StudyRecord
from studies.config import StudyConfig
from studies.errors import StorageNotFoundError, StudyFormatError
from studies.loader import (
    diff_configs,
    flatten,
    list_descriptive_changes,
    load_overrides,
    load_stored_config,
)
from studies.measure import find_measure
from studies.messages import check_study_name, shorten
from studies.records import Floors
from studies.space import distributions
from studies.stated_hypotheses import register
from studies.storage.counts import StudyIdentity
from studies.storage.edits import create_study, to_note_attributes, write_note
from studies.storage.open import (
    list_study_names,
    load_study,
    open_storage,
    read_record,
    read_storage,
    read_study_record,
)
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import StoredStudy
from studies.study_settings import PER_WORKER

if TYPE_CHECKING:  # which import PyTorch
    import torch

    from rnn.config import TaskSpec
    from rnn.tasks.task import Task
    from search.cells_tasks import StudyTask, TaskOptions

_LOCAL = (TASK_SOURCE, LOOP_FUNCTION)
"""Settings by which a worker says where it has the task or the loop of a study."""

_ROUNDING = 1e-5
"""Relative difference between sums over the same data that other processors may compute."""

MAX_DIFFERENCES = 6
"""Number of differences that an error message lists."""

_EXTENSIBLE = ("space.", "refinement.replicates:")
"""Settings that an extension can change."""


@dataclass(frozen=True)
class StudyHandle(OpenStudy):
    """An open study with the data that its networks are trained on.

    Attributes:
        tasks: tasks of the study by name, as :func:`search.cells_tasks.load_tasks` returns them.
        device: device on which this process trains networks; None for a loop.
        notice: lines for the user about how the study was created or joined, or "".
        warning: warning that other versions of the code or of PyTorch trained the study, or "".
    """

    tasks: "Mapping[str, StudyTask]"
    device: "torch.device | None" = None
    notice: str = ""
    warning: str = ""

    def spec_of(self, options: "TaskOptions") -> "TaskSpec":
        """Return what a trial's network reads and predicts, given its options of the task."""
        return search.cells_tasks.spec_of(self.tasks, options)

    def task_of(self, options: "TaskOptions") -> "Task":
        """Return the task of a trial, given the options of the task in which it varies."""
        return search.cells_tasks.build_task(self.tasks, options)

    def floors_of(self, params: Mapping[str, Any]) -> Floors | None:
        """Return the floors of a trial's task; None for text."""
        return self.record.task_floors.get(self.config.task_of(params), self.record.floors)

    def for_worker(self, options: RunOptions) -> WorkerOptions:
        """Return the options of a worker that is given the name of the study.

        They have what this process has chosen for itself, and where it has found corpus and task.
        """
        stored = self.record.config
        corpus = options.corpus
        chosen = {
            name: value
            for name, value in self.config.model_dump(mode="json", include=PER_WORKER).items()
            if getattr(stored, name) != getattr(self.config, name)
        }
        local = [f"{key}={json.dumps(value)}" for key, value in sorted(flatten(chosen))]
        if self.config.loop != stored.loop and self.config.loop is not None:
            local.append(f"{LOOP_FUNCTION}={json.dumps(self.config.loop.function)}")
        known = stored.task_record
        task = self.tasks[""].record if "" in self.tasks else None
        if task and known and (task.source, task.folder) != (known.source, known.folder):
            place = search.cells_tasks.locate_task(task)
            local.append(f"{TASK_SOURCE}={json.dumps(place)}")
        texts = [task.record.text for task in self.tasks.values() if task.record.text is not None]
        if texts and Path(texts[0].corpus).is_absolute():
            corpus = texts[0].corpus
        given = {name: getattr(options, name) for name in WorkerOptions.model_fields}
        given |= {"overrides": tuple(local), "corpus": corpus}
        return WorkerOptions(**given)


def open_study(name: str, url: str, options: WorkerOptions, trains: bool = True) -> StudyHandle:
    """Open a stored study by its name, to train its trials in this process, if it ``trains``.

    Raises:
        CellError, TaskError, CorpusError: if a cell, the task or the corpus cannot be loaded.
        DeviceError: if the device does not support the study's precision.
        UserError: if an option is invalid, or corpus, cells or task are not those of the study.
        StorageError, StudyNotFoundError, StudyFormatError: if the study cannot be opened.
    """
    local = load_overrides(options.overrides)
    for key in local.overridden:
        if key not in _LOCAL and key.partition(".")[0] not in PER_WORKER:
            raise UserError(
                f"{shorten(key)} is a setting of the stored study: expected one that a worker "
                f"chooses: {', '.join([*sorted(PER_WORKER), *_LOCAL])}"
            )
    file = load_stored_config(name, url).with_overrides(local.settings)
    if options.corpus is not None:
        file = file.with_overrides({"task": {"corpus": options.corpus}})
    wanted = resolve(name, url, file, options, trains)
    opened = open_stored(name, url, options.artifacts)
    with ExitStack() as on_error:
        on_error.enter_context(closing(opened.storage))
        _check_data(wanted, opened.record)
        handle = _load(opened, wanted)
        on_error.pop_all()
    return handle


def create_or_join(options: RunOptions, load_if_exists: bool = True) -> StudyHandle:
    """Open the study that a user asks for; create it if it does not exist.

    Invalid input is rejected before anything is written.

    Raises:
        CellError, TaskError: if a cell or the task cannot be loaded or breaks the contract.
        DeviceError: if the device does not support the study's precision.
        UserError, CorpusError: if the config or the corpus is invalid.
        StorageError: if the storage cannot be used.
        StudyNotFoundError: if the source of a refinement is missing.
        UserError: if the source is not finished, the study exists with other settings or data, or
            it cannot be extended now.
    """
    file = load_file(options)
    name = options.name or file.name
    check_study_name(name)
    url = options.storage
    wanted = resolve(name, url, file, options, options.target.is_local)
    check(wanted)
    is_stored = file.is_stored and file.name == name
    floors: dict[str, Floors] = {}
    if not is_stored and not _exists(name, url):
        floors = _check_new(wanted, options)
    elif not load_if_exists:
        raise _exists_error(name)
    with ExitStack() as on_error:
        storage = on_error.enter_context(closing(open_storage(url)))
        created = ""
        if not is_stored and name not in list_study_names(storage):
            created = _create(storage, wanted, floors, options)
        if not created and not load_if_exists:
            raise _exists_error(name)
        handle = _join(storage, wanted, options, created)
        if handle is not None:
            on_error.pop_all()
    return handle or create_or_join(options)


def _exists_error(name: str) -> UserError:
    return UserError(
        f"study {name!r} exists: join it with load_if_exists=True, or choose another name"
    )


def _exists(name: str, url: str) -> bool:
    """Return whether a study of a name exists; the storage is not created."""
    try:
        with closing(read_storage(url)) as storage:
            return name in list_study_names(storage)
    except StorageNotFoundError:
        return False


def _load(opened: OpenStudy, wanted: WantedStudy, notice: str = "") -> StudyHandle:
    """Return an open study with the data that this process has loaded."""
    config = opened.config
    local = {setting: getattr(wanted.config, setting) for setting in (*PER_WORKER, "loop")}
    tasks: Mapping[str, StudyTask] = {}
    warning = ""
    if config.has_networks:
        tasks = search.networks.with_tokenizers(wanted, config)
        versions = search.networks.current_versions()
        warning = describe_mixing(opened.study, opened.storage, versions)
    opened = replace(opened, config=config.model_copy(update=local))
    return StudyHandle(
        **vars(opened), tasks=tasks, device=wanted.device, notice=notice, warning=warning
    )


# ------------------------------------------------------------------ create


def _check_new(wanted: WantedStudy, options: RunOptions) -> dict[str, Floors]:
    """Check a study that does not exist yet; return the floors of its tasks by name."""
    config = wanted.config
    if config.grid is not None:
        check_count(config.grid.count(), options.yes)
    elif options.extend:
        raise no_space_error(wanted.name)
    if not config.has_networks:
        return {}
    return search.networks.check_new(wanted, _read_checked(options.storage))


def _read_checked(url: str) -> list[StudyRecord]:
    """Read the records of studies whose cells and tasks these versions of the code have checked."""
    versions = search.networks.current_versions()
    records = []
    with suppress(StorageNotFoundError), closing(read_storage(url)) as storage:
        for name in list_study_names(storage):
            with suppress(StudyFormatError):  # of another program or version
                records.append(read_record(load_study(storage, name)))
    trained = [record for record in records if record.config.has_networks]
    return [record for record in trained if record.created_with == versions]


def _create(
    storage: LeasedRDBStorage, wanted: WantedStudy, floors: dict[str, Floors], options: RunOptions
) -> str:
    """Store a study with all its trials; return a notice, or "" if another process was faster."""
    planned = plan_trials(storage, wanted, options)
    config = planned.config
    record = StudyRecord(
        config=config,
        floors=floors.pop("", None),
        task_floors=floors,
        commands=[options.command],
        artifact_folder=new_folder(wanted.name),
        created_with=search.networks.current_versions() if config.has_networks else None,
        hypotheses=register([], config.hypothesis, 0),
        audit_nuisance=config.nuisance,
    )
    note = write_note(wanted.name, config.question, record.commands)
    study = StoredStudy(
        wanted.name,
        find_measure(config).name,
        record.attributes(),
        distributions(planned.space),
        draw_audited(planned.trials, config, config.nuisance),
        StudyDirection[config.direction.upper()],
        system_attributes=to_note_attributes(note),
    )
    if not create_study(storage, study):
        return ""
    if config.has_networks:
        search.networks.copy_weights(wanted.folders, planned, record)
    created = describe_trials("created", planned.trained, config)
    if planned.copied:
        created += f"; {_describe_copied(planned)}"
    weakest = describe_weakest(plan_effects(planned.params, config), config)
    return "\n".join(filter(None, [created, weakest, *planned.notices]))


def _describe_copied(planned: PlannedStudy) -> str:
    """Return a notice on trials that have the results of the source that they would repeat."""
    assert planned.config.refinement is not None
    count = len(planned.copied)
    source = f"study {planned.config.refinement.source!r}"
    if count == 1:
        return f"1 more would repeat a run of {source} exactly and has its results"
    return f"{count:,} more would repeat runs of {source} exactly and have their results"


# ------------------------------------------------------------------ join


def _join(
    storage: LeasedRDBStorage, wanted: WantedStudy, options: RunOptions, created: str
) -> StudyHandle | None:
    """Open a stored study under settings that keep its results comparable; extend it if asked to.

    ``created`` is the notice that this process has created it; "" if it has not.

    Returns:
        None if another process has extended it meanwhile.
    """
    study = load_study(storage, wanted.name)
    record = read_study_record(study)
    storage.require_study(StudyIdentity(study._study_id, wanted.name, record.artifact_folder))
    wanted = _follow_study(wanted, record)
    notices = [created, _check_settings(wanted, record, options)]
    if options.extend:
        extended = extend(study, storage, record, wanted.config, wanted.tasks, options)
        if extended is None:
            return None
        notices += extended
    else:
        notices.append(_describe_kept(wanted, record))
    opened = attach(load_study(storage, wanted.name), storage, wanted.folders)
    if opened.config.has_networks:
        wanted = search.networks.add_tasks(wanted, opened.record)
    return _load(opened, wanted, "\n".join(filter(None, notices)))


def _follow_study(wanted: WantedStudy, record: StudyRecord) -> WantedStudy:
    """Return what a process wants, with what it leaves to the study that it joins."""
    stored = record.config
    stated = wanted.file.settings.get("pruning", {})
    pruning = stored.pruning.model_copy(
        update={name: getattr(wanted.config.pruning, name) for name in stated}
    )
    config = wanted.config.model_copy(update={"pruning": pruning})
    return replace(wanted, config=config)


def _check_data(wanted: WantedStudy, record: StudyRecord) -> None:
    """Reject a worker that has other data, or other sources of cells and task, than its study."""
    _check_sources(wanted, record)
    if differences := diff_configs(record.config, wanted.config):
        raise UserError(
            f"study {wanted.name!r} has other data: {'; '.join(differences[:MAX_DIFFERENCES])}; "
            "name its own text with --corpus, or its own task with --set task.source"
        )
    _check_held_out(wanted.name, record.config, wanted.config)


def _check_sources(wanted: WantedStudy, record: StudyRecord) -> None:
    """Require the source files of a worker's cells and task to be those of its study."""
    stored = record.config
    local = wanted.config
    pairs: list[tuple[str, str, str | None, str | None]] = [
        (name, cell.spec, cell.sha256, local.cells[name].sha256)
        for name, cell in stored.cells.items()
        if name in local.cells
    ]
    known = local.list_tasks()
    for name, task in stored.list_tasks().items():
        if name in known and task.name == known[name].name:
            pairs.append((task.name, task.source, task.sha256, known[name].sha256))
    for name, spec, old, new in pairs:
        if old and new and old != new:
            raise UserError(
                f"study {wanted.name!r} was created with another version of {name} "
                f"({spec.rpartition(':')[0]}, SHA-256 {old[:8]}…, here {new[:8]}…): restore the "
                "file, or choose another --name"
            )


def _check_settings(wanted: WantedStudy, record: StudyRecord, options: RunOptions) -> str:
    """Reject a worker whose settings, sources or data differ from the study's.

    Those that ``--extend`` can change may differ with it, and in a file of before an extension; a
    notice says what is used in place of the values of such a file.
    """
    name = wanted.name
    stored = record.config
    config = wanted.config
    _check_sources(wanted, record)
    differences = diff_configs(stored, config)
    others = [line for line in differences if not line.startswith(_EXTENSIBLE)]
    is_outdated = (
        len(others) < len(differences)
        and len(record.commands) > 1
        and (config.refinement is None or config.refinement.replicates in record.replicates)
        and has_earlier_grid(stored, config)
    )
    if options.extend or is_outdated:
        differences = others
    if differences:
        listed = "; ".join(differences[:MAX_DIFFERENCES])
        if len(differences) > MAX_DIFFERENCES:
            listed += f"; and {len(differences) - MAX_DIFFERENCES} more"
        hint = "" if others else ", or --extend to add the new trials"
        raise UserError(
            f"study {name!r} exists with other settings: {listed}; use its settings, or another "
            f"--name{hint}"
        )
    _check_held_out(name, stored, config)
    return f"study {name!r} was extended: using its stored trials" if is_outdated else ""


def _describe_kept(wanted: WantedStudy, record: StudyRecord) -> str:
    """Return a notice on descriptive settings that a worker states otherwise than its study."""
    name = wanted.name
    stored = record.config
    config = wanted.config
    for number, hypothesis in enumerate(config.hypothesis, 1):
        if hypothesis not in stored.hypothesis:
            raise UserError(
                f"study {name!r} exists without hypothesis {number} "
                f"({shorten(hypothesis.statement)!r}): use its hypotheses, or --extend to store "
                "others with the number of trials that are finished"
            )
    changed = list_descriptive_changes(stored, config)
    if not changed:
        return ""
    kept = [f"{setting} = {format_setting(stored, setting)}" for setting in changed]
    it = "it" if len(kept) == 1 else "them"
    return f"study {name!r} keeps {' and '.join(kept)}: only --extend changes {it}"


def _check_held_out(study: str, stored: StudyConfig, local: StudyConfig) -> None:
    """Require the held-out data of a worker to be those of its study.

    Raises:
        UserError: if they differ by more than rounding.
    """
    known = local.list_tasks()
    for name, record in stored.list_tasks().items():
        if name not in known:
            continue
        old = record.held_out
        new = known[name].held_out
        if len(old) != len(new) or not np.allclose(old, new, _ROUNDING, 0):
            raise UserError(
                f"study {study!r} was created with other held-out data of task {record.name}, "
                "although its source and files are the same: expected data that depend on the "
                "arguments of sample alone, and the study's version of NumPy"
            )
