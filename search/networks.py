"""What a study of networks needs besides its trials: cells, tasks, lengths, a precision.

The modules that plan, create, join and extend studies import this one for studies of networks
alone: it imports PyTorch, which a study with a loop does without.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from rnn.config import Precision
from rnn.engines import find_engine
from rnn.errors import DeviceError, UserError
from rnn.export import deserialize_model, serialize_model
from rnn.precision import EngineShape, choose_precision
from rnn.training import checkpoint
from rnn.training.devices import check_precision, find_bf16_hardware, resolve_device
from search.cell_check import check_cells
from search.cell_facts import with_cell_facts
from search.cells_tasks import (
    CodeStore,
    StudyTask,
    learn_tokenizer,
    load_cells,
    load_recorded,
    load_tasks,
    spec_of,
    with_held_out,
    with_records,
)
from search.planned_study import PlannedStudy, WantedStudy
from search.task_check import check_length, check_tasks, check_trials
from search.worker.checkpoints import warn_of_errors
from studies.artifacts import ArtifactFolders
from studies.attributes import StudyRecord, VersionRecord
from studies.config import StudyConfig
from studies.loader import ConfigFile
from studies.network_facts import list_fact_notices
from studies.records import Floors
from studies.space import TASK, Params
from studies.study_settings import WINDOW_PARAMS, TrainingLength
from studies.trial_params import to_trial_config


def find_device(name: str, trains: bool) -> torch.device:
    """Return the device of this process, which trains nothing if workers run on a cluster."""
    try:
        return resolve_device(name)
    except DeviceError:
        if trains or not re.fullmatch(r"cuda(:\d+)?", name):
            raise
        return torch.device("cpu")


def current_versions() -> VersionRecord:
    """Return the versions of the training code and PyTorch that this process trains with."""
    return VersionRecord(code=checkpoint.source_hash(), torch=checkpoint.torch_version())


def load(
    file: ConfigFile, record: StudyRecord | None, folders: ArtifactFolders
) -> tuple[ConfigFile, StudyConfig, Mapping[str, StudyTask]]:
    """Load the cells and the tasks that settings name; return the settings, resolved, and these.

    The record is that of the stored study that the settings are those of, or derive from.
    """
    file = load_cells(file)
    sources = None if record is None else open_sources(folders, record)
    file, tasks = load_tasks(file, record, sources)
    config = file.resolve_from(record)
    if sources is not None:
        sources.load({name: cell for name, cell in config.cells.items() if name not in file.cells})
    return file, with_held_out(config, tasks), tasks


def open_sources(folders: ArtifactFolders, record: StudyRecord) -> CodeStore:
    """Return the copies of the source files of a stored study."""
    return CodeStore(folders.root("cells") / record.artifact_folder)


def add_tasks(wanted: WantedStudy, record: StudyRecord) -> WantedStudy:
    """Return what a process wants with the tasks that an extension has added to its study.

    A copy of the source of each cell and of the tasks is kept.
    """
    config = record.config
    sources = open_sources(wanted.folders, record)
    added = {
        name: load_recorded(task, sources)
        for name, task in config.task_records.items()
        if name not in wanted.tasks
    }
    sources.load(config.cells)  # one that another process added
    sources.save(config.cells, config.list_tasks().values())
    return replace(wanted, tasks={**wanted.tasks, **added})


def with_tokenizers(wanted: WantedStudy, config: StudyConfig) -> dict[str, StudyTask]:
    """Return the tasks of a stored study, with the tokenizers that it has.

    Raises:
        DeviceError: if the device does not support its precision.
    """
    _check_precision(wanted, config.precision)
    return {
        task: wanted.tasks[task].with_tokenizer(known)
        for task, known in config.list_tasks().items()
        if task in wanted.tasks
    }


# ------------------------------------------------------------------ checks


def check(wanted: WantedStudy) -> None:
    """Check device, lengths and options, as :func:`search.planned_study.check` does."""
    config = wanted.config
    _check_precision(wanted, config.precision)
    check_length(wanted.tasks, config)
    if config.grid is not None:
        options_of_tasks = [name for task in wanted.tasks.values() for name in task.record.options]
        names = [TASK, *WINDOW_PARAMS, *options_of_tasks]
        check_trials(config, wanted.tasks, config.grid.project(names))


def _check_precision(wanted: WantedStudy, precision: str) -> None:
    """Check that the device supports a precision, unless other machines train."""
    assert wanted.device is not None
    if wanted.trains or wanted.device.type == "cuda":
        check_precision(precision, wanted.device)


def check_new(wanted: WantedStudy, checked: Sequence[StudyRecord]) -> dict[str, Floors]:
    """Check the cells and the tasks of a new study; return the floors of the tasks by name.

    What the ``checked`` studies have is not checked again.
    """
    config = wanted.config
    check_cells(config, [study.config for study in checked])
    windows = config.evaluation.windows
    same = [study for study in checked if study.config.evaluation.windows == windows]
    return check_tasks(wanted.tasks, windows, [wanted.origin, *same] if wanted.origin else same)


# ------------------------------------------------------------------ new trials


def fit(
    wanted: WantedStudy, trials: Sequence[Params]
) -> tuple[StudyConfig, Mapping[str, StudyTask], list[str]]:
    """Return a new study's config with lengths and precision, its tasks with tokenizers, notices.

    The trials are given by their parameters.
    """
    config = _with_lengths(wanted.config, check_trials(wanted.config, wanted.tasks, trials))
    earlier = {} if wanted.origin is None else wanted.origin.config.list_tasks()
    tasks = {
        name: learn_tokenizer(task, config, earlier.get(name))
        for name, task in wanted.tasks.items()
    }
    check_length(tasks, config, trials)
    learned = {name: task.record for name, task in tasks.items() if task.text is not None}
    assert wanted.device is not None
    precision, notice = _choose_precision(config, tasks, trials, wanted.device)
    config = with_records(config, learned).model_copy(update={"precision": precision})
    config, sampled = with_cell_facts(config, trials)
    notices = [*_describe_lengths(config), *notice, *sampled, *list_fact_notices(trials, config)]
    return config, tasks, notices


def fit_extension(
    stored: StudyConfig,
    extended: StudyConfig,
    tasks: Mapping[str, StudyTask],
    trials: Sequence[Params],
) -> tuple[StudyConfig, dict[str, Floors], list[str]]:
    """Check what an extension adds; return its config with lengths, floors of new tasks, notices.

    The trials are the added ones.
    """
    check_cells(extended, [stored])
    new_tasks = {
        name: tasks[name] for name in extended.task_names if name not in stored.task_records
    }
    floors = check_tasks(new_tasks, extended.evaluation.windows)
    texts = {name: task for name, task in new_tasks.items() if task.text is not None}
    learned = {name: learn_tokenizer(task, extended, None).record for name, task in texts.items()}
    extended = with_records(extended, learned)
    lengths = check_trials(extended, tasks, trials)
    _require_same_length(stored, lengths, new_tasks)
    extended, sampled = with_cell_facts(_with_lengths(extended, lengths), trials)
    return extended, floors, [*sampled, *list_fact_notices(trials, extended)]


def _require_same_length(
    stored: StudyConfig, lengths: Mapping[str, TrainingLength], new_tasks: Collection[str]
) -> None:
    """Require that added trials train as long as those of the same task that a study has."""
    for task, length in lengths.items():
        old = stored.length_of({TASK: task})
        if task not in new_tasks and length != old:
            raise UserError(
                f"the new trials would train {length.steps} steps, logged every "
                f"{length.log_every}, and those of the study train {old.steps}, logged every "
                f"{old.log_every}: expected updates at the same steps; create another study"
            )


def _choose_precision(
    config: StudyConfig,
    tasks: Mapping[str, StudyTask],
    trials: Iterable[Params],
    device: torch.device,
) -> tuple[Precision, list[str]]:
    """Return the precision of a new study, and a notice on it if it is chosen here.

    It is chosen once: results must not depend on the hardware of other workers.
    """
    if config.precision != "auto":
        return config.precision, []
    shapes = []
    for params in trials:
        trial = to_trial_config(params, config)
        engine = find_engine([trial], "bf16", spec_of(tasks, trial.task_options), device)
        network = trial.architecture
        reads_sequences = network.is_built_in and trial.bptt_steps > 1
        shape = EngineShape(engine.name, network.cell, network.state_size, reads_sequences)
        shapes.append(shape)
    precision, reason = choose_precision(shapes, find_bf16_hardware(device))
    return precision, [f"precision {precision} on {device}: {reason}; fixed for this study"]


def _with_lengths(config: StudyConfig, lengths: Mapping[str, TrainingLength]) -> StudyConfig:
    """Return a config with how long the trials of some tasks train, where it is not as stated."""
    changed = {name: found for name, found in lengths.items() if found != config.training.length}
    return config.model_copy(update={"lengths": {**config.lengths, **changed}})


def _describe_lengths(config: StudyConfig) -> list[str]:
    """Return a notice on how long trials train, if that is not as stated."""
    lengths = [
        f"{f'{task} ' if task else ''}{length.steps:,} steps logged every {length.log_every:,}"
        for task, length in config.lengths.items()
    ]
    updates = config.training.updates
    stated = "rounded up to whole updates" if updates is None else f"{updates:,} updates"
    return [f"{stated}: {', '.join(lengths)}"] if lengths else []


# ------------------------------------------------------------------ weights


def copy_weights(folders: ArtifactFolders, planned: PlannedStudy, record: StudyRecord) -> None:
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
