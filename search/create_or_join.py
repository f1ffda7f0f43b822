"""Create a study, join one whose settings agree, or open one by name.

A worker does two steps: it creates or joins a study, for which alone a study file is read, and it
works on the stored study. Further workers do the second step only, by the name of the study.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rnn.config import TaskSpec
from rnn.errors import UserError
from rnn.export import deserialize_model, serialize_model
from rnn.tasks.task import Task
from search.cell_check import check_cells
from search.cells_tasks import (
    ONLY,
    StudyTask,
    TaskOptions,
    build_task,
    load_cells,
    load_recorded,
    locate_task,
    spec_of,
)
from search.derive import (
    check_count,
)
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
    describe_trials,
    load_file,
    open_sources,
    plan_trials,
    resolve,
)
from search.pruning.audited_trials import draw_audited
from search.run_options import TASK_SOURCE, RunOptions, WorkerOptions
from search.task_check import check_held_out, check_tasks
from search.worker.checkpoints import warn_of_errors
from search.worker.train_states import current_versions, describe_mixing
from studies.artifacts import ArtifactFolders, new_folder
from studies.attributes import StudyRecord
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

MAX_DIFFERENCES = 6
"""Number of differences that an error message lists."""

_EXTENSIBLE = ("space.", "refinement.replicates:")
"""Settings that an extension can change."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class StudyHandle(OpenStudy):
    """An open study with the data that its networks are trained on.

    Attributes:
        tasks: tasks of the study by name, as :func:`search.cells_tasks.load_tasks` returns them.
        notice: lines for the user about how the study was created or joined, or "".
        warning: warning that other versions of the code or of PyTorch trained the study, or "".
    """

    tasks: Mapping[str, StudyTask]
    notice: str = ""
    warning: str = ""

    def spec_of(self, options: TaskOptions) -> TaskSpec:
        """Return what a trial's network reads and predicts, given its options of the task."""
        return spec_of(self.tasks, options)

    def task_of(self, options: TaskOptions) -> Task:
        """Return the task of a trial, given the options of the task in which it varies."""
        return build_task(self.tasks, options)

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
        known = stored.task_record
        task = self.tasks[ONLY].record if ONLY in self.tasks else None
        if task and known and (task.source, task.folder) != (known.source, known.folder):
            local.append(f"{TASK_SOURCE}={json.dumps(locate_task(task))}")
        texts = [task.record.text for task in self.tasks.values() if task.record.text is not None]
        if texts and Path(texts[0].corpus).is_absolute():
            corpus = texts[0].corpus
        given = {name: getattr(options, name) for name in WorkerOptions.model_fields}
        given |= {"overrides": tuple(local), "corpus": corpus}
        return WorkerOptions(**given)


def open_study(
    name: str,
    url: str,
    options: WorkerOptions,
    device: torch.device = _CPU,
    trains: bool = True,
) -> StudyHandle:
    """Open a stored study by its name, to train its trials in this process, if it ``trains``.

    Raises:
        CellError, TaskError, CorpusError: if a cell, the task or the corpus cannot be loaded.
        DeviceError: if the device does not support the study's precision.
        UserError: if an option is invalid, or corpus, cells or task are not those of the study.
        StorageError, StudyNotFoundError, StudyFormatError: if the study cannot be opened.
    """
    local = load_overrides(options.overrides)
    for key in local.overridden:
        if key != TASK_SOURCE and key.partition(".")[0] not in PER_WORKER:
            raise UserError(
                f"{shorten(key)} is a setting of the stored study: expected one that a worker "
                f"chooses: {', '.join(sorted(PER_WORKER))} or {TASK_SOURCE}"
            )
    file = load_stored_config(name, url).with_overrides(local.settings)
    if options.corpus is not None:
        file = file.with_overrides({"task": {"corpus": options.corpus}})
    wanted = resolve(name, url, file, options, device, trains)
    opened = open_stored(name, url, options.artifacts)
    with ExitStack() as on_error:
        on_error.enter_context(closing(opened.storage))
        _check_data(wanted, opened.record)
        handle = _load(opened, wanted)
        on_error.pop_all()
    return handle


def create_or_join(options: RunOptions, device: torch.device = _CPU) -> StudyHandle:
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
    wanted = resolve(name, url, load_cells(file), options, device, options.target.is_local)
    wanted.check()
    is_stored = file.is_stored and file.name == name
    floors: dict[str, Floors] = {}
    if not is_stored and not _exists(name, url):
        floors = _check_new(wanted, options)
    with ExitStack() as on_error:
        storage = on_error.enter_context(closing(open_storage(url)))
        created = ""
        if not is_stored and name not in list_study_names(storage):
            created = _create(storage, wanted, floors, options)
        handle = _join(storage, wanted, options, created)
        if handle is not None:
            on_error.pop_all()
    return handle or create_or_join(options, device)


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
    wanted.check_precision(config.precision)
    local = {setting: getattr(wanted.config, setting) for setting in PER_WORKER}
    tasks = {
        task: wanted.tasks[task].with_tokenizer(known)
        for task, known in config.list_tasks().items()
        if task in wanted.tasks
    }
    opened = replace(opened, config=config.model_copy(update=local))
    mixing = describe_mixing(opened.study, opened.storage)
    return StudyHandle(**vars(opened), tasks=tasks, notice=notice, warning=mixing)


# ------------------------------------------------------------------ create


def _check_new(wanted: WantedStudy, options: RunOptions) -> dict[str, Floors]:
    """Check a study that does not exist yet; return the floors of its tasks by name."""
    config = wanted.config
    if config.grid is not None:
        check_count(config.grid.count(), options.yes)
    elif options.extend:
        raise no_space_error(wanted.name)
    checked = _read_checked(options.storage)
    check_cells(config, [study.config for study in checked])
    windows = config.evaluation.windows
    same = [study for study in checked if study.config.evaluation.windows == windows]
    return check_tasks(wanted.tasks, windows, [wanted.origin, *same] if wanted.origin else same)


def _read_checked(url: str) -> list[StudyRecord]:
    """Read the records of studies whose cells and tasks these versions of the code have checked."""
    versions = current_versions()
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
    audit_nuisance = [] if config.grid is None else config.nuisance
    record = StudyRecord(
        config=config,
        floors=floors.pop(ONLY, None),
        task_floors=floors,
        commands=[options.command],
        artifact_folder=new_folder(wanted.name),
        created_with=current_versions(),
        hypotheses=register([], config.hypothesis, 0),
        audit_nuisance=audit_nuisance,
    )
    note = write_note(wanted.name, config.question, record.commands)
    study = StoredStudy(
        wanted.name,
        find_measure(config).name,
        record.attributes(),
        distributions(planned.space),
        draw_audited(planned.trials, config, audit_nuisance),
        system_attributes=to_note_attributes(note),
    )
    if not create_study(storage, study):
        return ""
    _copy_weights(wanted.folders, planned, record)
    created = describe_trials("created", planned.trained, config)
    if planned.copied:
        created += f"; {_describe_copied(planned)}"
    weakest = describe_weakest(plan_effects(planned.params, config), config)
    return "\n".join(filter(None, [created, weakest, *planned.notices]))


def _copy_weights(folders: ArtifactFolders, planned: PlannedStudy, record: StudyRecord) -> None:
    """Copy the stored weights of the runs whose results trials have."""
    if planned.source is None:
        return
    old = folders.trial_files(planned.source.artifact_folder, "safetensors")
    new = folders.trial_files(record.artifact_folder, "safetensors")
    for number, run in planned.copied.items():
        with warn_of_errors(f"copy the weights of trial {run}"):
            if (content := old.read(run)) is not None:
                model = deserialize_model(content)
                metadata = {**model.metadata, "trial": str(number)}
                new.write(number, serialize_model(replace(model, metadata=metadata)))


def _describe_copied(planned: PlannedStudy) -> str:
    """Return a notice on trials that have the results of the source that they would repeat."""
    assert planned.config.refinement is not None
    count = len(planned.copied)
    source = f"study {planned.config.refinement.source!r}"
    if count == 1:
        return f"1 more would repeat a run of {source} exactly and has its results"
    return f"{count:,} more would repeat runs of {source} exactly and have their results"


def _add_tasks(wanted: WantedStudy, record: StudyRecord) -> WantedStudy:
    """Return what a process wants with the tasks that an extension has added to its study."""
    sources = open_sources(wanted.folders, record)
    added = {
        name: load_recorded(task, sources)
        for name, task in record.config.task_records.items()
        if name not in wanted.tasks
    }
    return replace(wanted, tasks={**wanted.tasks, **added})


def _keep_sources(wanted: WantedStudy, record: StudyRecord) -> None:
    """Keep a copy of the source of each cell and of the task of a study."""
    cells = record.config.cells
    tasks = record.config.list_tasks().values()
    sources = open_sources(wanted.folders, record)
    sources.load(cells)  # one that another process added
    sources.save(cells, tasks)


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
    wanted = _add_tasks(wanted, opened.record)
    _keep_sources(wanted, opened.record)
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
    check_held_out(wanted.name, record.config, wanted.config)


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
    check_held_out(name, stored, config)
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
