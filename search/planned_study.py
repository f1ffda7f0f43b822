"""A study that a user asks for, before it is stored: its settings, its data and its trials."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from rnn.config import Precision
from rnn.engines import find_engine
from rnn.errors import UserError
from rnn.precision import EngineShape, choose_precision
from rnn.training.devices import check_precision, find_bf16_hardware
from search.cells_tasks import (
    CodeStore,
    StudyTask,
    learn_tokenizer,
    load_cells,
    load_tasks,
    spec_of,
    with_held_out,
    with_records,
)
from search.derive import (
    copy_results,
    derive_trials,
    find_repeats,
    find_space,
    list_combinations,
)
from search.run_options import RunOptions, WorkerOptions
from search.task_check import check_length, check_trials
from studies.artifacts import ArtifactFolders
from studies.attributes import COPIED_FROM, StudyRecord
from studies.config import StudyConfig, to_trial_config
from studies.loader import ConfigFile
from studies.messages import format_count
from studies.space import TASK, Params, SearchSpace
from studies.storage.open import load_study, read_storage, read_study_record
from studies.storage.reads import RECORDS, read_trials
from studies.storage.storage import LeasedRDBStorage
from studies.storage.tables import INTERMEDIATE_VALUES
from studies.storage.trials import StoredTrial
from studies.study_settings import WINDOW_PARAMS, TrainingLength


@dataclass(frozen=True)
class WantedStudy:
    """A study as this process would have it.

    Attributes:
        file: the settings, before validation.
        origin: record of the stored study that the file names or derives from, if any.
        tasks: its tasks by name, as :func:`search.cells_tasks.load_tasks` returns them.
        device: device on which this process trains.
        trains: whether it trains at all.
    """

    name: str
    file: ConfigFile
    origin: StudyRecord | None
    config: StudyConfig
    tasks: Mapping[str, StudyTask]
    folders: ArtifactFolders
    device: torch.device
    trains: bool

    def check(self) -> None:
        """Check what a process needs to create or to join the study, before a storage is written.

        Raises:
            DeviceError, TaskError, UserError: if that is not there.
        """
        config = self.config
        self.check_precision(config.precision)
        check_length(self.tasks, config)
        if config.grid is not None:
            options_of_tasks = [
                name for task in self.tasks.values() for name in task.record.options
            ]
            names = [TASK, *WINDOW_PARAMS, *options_of_tasks]
            check_trials(config, self.tasks, config.grid.project(names))

    def check_precision(self, precision: str) -> None:
        """Check that the device supports a precision, unless other machines train."""
        if self.trains or self.device.type == "cuda":
            check_precision(precision, self.device)


def load_file(options: RunOptions) -> ConfigFile:
    """Read the settings that a user asks for; require those of a refinement for ``refine``."""
    file = options.load_file()
    if options.is_refinement and file.settings.get("refinement") is None:
        raise UserError(
            f"study {file.name!r} has no [refinement]: use rnn-search run, or derive a study from "
            f"it as in rnn-search refine stage-two --set 'refinement.source=\"{file.name}\"'"
        )
    if options.is_refinement and file.source is None:
        file.resolve()  # reports what is wrong with it
    return file


def resolve(
    name: str,
    url: str,
    file: ConfigFile,
    options: WorkerOptions,
    device: torch.device,
    trains: bool,
) -> WantedStudy:
    """Resolve settings whose cells are loaded, with what they inherit; load the tasks."""
    folders = ArtifactFolders(options.artifacts, url)
    record = file.record
    if record is None and file.source is not None:
        with closing(read_storage(url)) as storage:
            record = read_study_record(load_study(storage, file.source))
    sources = None if record is None else open_sources(folders, record)
    file, tasks = load_tasks(file, record, sources)
    config = file.resolve_from(record)
    if sources is not None:
        sources.load({name: cell for name, cell in config.cells.items() if name not in file.cells})
    config = with_held_out(config, tasks)
    return WantedStudy(name, file, record, config, tasks, folders, device, trains)


def open_sources(folders: ArtifactFolders, record: StudyRecord) -> CodeStore:
    """Return the copies of the source files of a stored study."""
    return CodeStore(folders.root("cells") / record.artifact_folder)


# ------------------------------------------------------------------ the plan


@dataclass(frozen=True)
class PlannedStudy:
    """A study with its trials, before it is stored.

    Attributes:
        config: its config, with the precision that is chosen for it.
        tasks: its tasks by name; those of texts have their tokenizers.
        trials: its trials in the order in which they run.
        source: record of the study of which a refinement derives its trials.
        notices: what to say about lengths and precision.
    """

    name: str
    config: StudyConfig
    tasks: Mapping[str, StudyTask]
    trials: Sequence[StoredTrial]
    space: SearchSpace
    source: StudyRecord | None
    notices: Sequence[str]

    @property
    def params(self) -> list[Params]:
        """The parameters of its trials."""
        return [trial.params for trial in self.trials]

    @property
    def copied(self) -> dict[int, int]:
        """The trials, by place, that have the results of a run of the source, by number."""
        return {
            place: trial.attributes[COPIED_FROM]
            for place, trial in enumerate(self.trials)
            if COPIED_FROM in trial.attributes
        }

    @property
    def trained(self) -> list[StoredTrial]:
        """The other trials."""
        return [trial for trial in self.trials if COPIED_FROM not in trial.attributes]


def plan_study(options: RunOptions, device: torch.device) -> PlannedStudy:
    """Return the study that a user asks for as it would be created; nothing is written.

    Raises:
        Exception: the errors of :func:`search.create_or_join.create_or_join`, but those of a study
            that exists.
    """
    file = load_file(options)
    name = options.name or file.name
    wanted = resolve(name, options.storage, load_cells(file), options, device, True)
    wanted.check()
    if wanted.config.refinement is None:
        return plan_trials(None, wanted, options)
    with closing(read_storage(options.storage)) as storage:
        return plan_trials(storage, wanted, options)


def plan_trials(
    storage: LeasedRDBStorage | None, wanted: WantedStudy, options: RunOptions
) -> PlannedStudy:
    """Plan the trials of a study; of a refinement from the storage that has its source."""
    config = wanted.config
    source = None
    if config.refinement is None:
        assert config.grid is not None
        space = config.grid.search_space
        trials = [StoredTrial(params) for params in list_combinations(config)]
    else:
        assert storage is not None
        source = _Source.read(storage, config.refinement.source)
        trials = derive_trials(
            source.trials, config, source.record.config, options.partial, options.yes
        )
        space = find_space(trials, config)
    params = [trial.params for trial in trials]
    config = with_lengths(config, check_trials(config, wanted.tasks, params))
    earlier = {} if wanted.origin is None else wanted.origin.config.list_tasks()
    tasks = {
        name: learn_tokenizer(task, config, earlier.get(name))
        for name, task in wanted.tasks.items()
    }
    check_length(tasks, config, params)
    learned = {name: task.record for name, task in tasks.items() if task.text is not None}
    precision, notice = _choose_precision(config, tasks, params, wanted.device)
    config = with_records(config, learned).model_copy(update={"precision": precision})
    if source is not None:
        trials = source.copy_repeats(trials, config)
    notices = [*_describe_lengths(config), *notice]
    record = None if source is None else source.record
    return PlannedStudy(wanted.name, config, tasks, trials, space, record, notices)


@dataclass(frozen=True)
class _Source:
    """The study of which a refinement derives its trials."""

    storage: LeasedRDBStorage
    study_id: int
    record: StudyRecord
    trials: Sequence[StoredTrial]

    @classmethod
    def read(cls, storage: LeasedRDBStorage, name: str) -> "_Source":
        """Read the study of a name."""
        study = load_study(storage, name)
        trials = read_trials(storage, study._study_id)
        return cls(storage, study._study_id, read_study_record(study), trials)

    def copy_repeats(
        self, derived: Sequence[StoredTrial], config: StudyConfig
    ) -> list[StoredTrial]:
        """Return the trials of a refinement, with the results of runs that they would repeat."""
        repeats = find_repeats(derived, self.trials, self.record.config, config)
        ids = [trial.trial_id for trial in repeats.values()]
        columns = (*RECORDS, INTERMEDIATE_VALUES)
        runs = {run.number: run for run in read_trials(self.storage, self.study_id, ids, columns)}
        return [
            copy_results(trial, runs[repeats[place].number]) if place in repeats else trial
            for place, trial in enumerate(derived)
        ]


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


# ------------------------------------------------------------------ lengths


def with_lengths(config: StudyConfig, lengths: Mapping[str, TrainingLength]) -> StudyConfig:
    """Return a config with how long the trials of some tasks train, where it is not as stated."""
    changed = {name: found for name, found in lengths.items() if found != config.training.length}
    return config.model_copy(update={"lengths": {**config.lengths, **changed}})


def describe_trials(verb: str, trials: Sequence[StoredTrial], config: StudyConfig) -> str:
    """Return a notice on how many trials were added."""
    steps = sum(config.length_of(trial.params).steps for trial in trials)
    return f"{verb} with {format_count(len(trials), 'trial')}, {steps:,} training steps in all"


def _describe_lengths(config: StudyConfig) -> list[str]:
    """Return a notice on how long trials train, if that is not as stated."""
    lengths = [
        f"{f'{task} ' if task else ''}{length.steps:,} steps logged every {length.log_every:,}"
        for task, length in config.lengths.items()
    ]
    updates = config.training.updates
    stated = "rounded up to whole updates" if updates is None else f"{updates:,} updates"
    return [f"{stated}: {', '.join(lengths)}"] if lengths else []
