"""A study that a user asks for, before it is stored: its settings, its data and its trials."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import search
from rnn.errors import UserError
from search.derive import (
    copy_results,
    derive_trials,
    find_repeats,
    find_space,
    list_combinations,
)
from search.run_options import LOOP_FUNCTION, RunOptions, WorkerOptions
from search.worker.loop_worker import locate_function
from studies.artifacts import ArtifactFolders
from studies.attributes import COPIED_FROM, RESULT_NAMES, StudyRecord
from studies.config import StudyConfig
from studies.loader import ConfigFile
from studies.messages import format_count
from studies.space import Params, SearchSpace
from studies.storage.open import load_study, read_storage, read_study_record
from studies.storage.reads import RECORDS, read_trials
from studies.storage.storage import LeasedRDBStorage
from studies.storage.tables import INTERMEDIATE_VALUES
from studies.storage.trials import StoredTrial

if TYPE_CHECKING:  # which import PyTorch
    import torch

    from search.cells_tasks import StudyTask


@dataclass(frozen=True)
class WantedStudy:
    """A study as this process would have it.

    Attributes:
        file: the settings, before validation.
        origin: record of the stored study that the file names or derives from, if any.
        tasks: tasks of its networks by name, as :func:`search.cells_tasks.load_tasks` returns them.
        device: device on which this process trains networks; None for a loop.
        trains: whether it trains at all.
    """

    name: str
    file: ConfigFile
    origin: StudyRecord | None
    config: StudyConfig
    tasks: "Mapping[str, StudyTask]"
    folders: ArtifactFolders
    device: "torch.device | None"
    trains: bool


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
    trains: bool,
) -> WantedStudy:
    """Resolve settings with what they inherit; load the cells and the tasks of networks."""
    folders = ArtifactFolders(options.artifacts, url)
    record = file.record
    if record is None and file.source is not None:
        with closing(read_storage(url)) as storage:
            record = read_study_record(load_study(storage, file.source))
    if has_loop(file, record):
        config = _locate_function(file.resolve_from(record), file)
        return WantedStudy(name, file, record, config, {}, folders, None, trains)
    device = search.networks.find_device(options.device, trains)
    file, config, tasks = search.networks.load(file, record, folders)
    return WantedStudy(name, file, record, config, tasks, folders, device, trains)


def _locate_function(config: StudyConfig, file: ConfigFile) -> StudyConfig:
    """Return a config with the absolute path of the file of its loop's function."""
    if config.loop is None or config.loop.function is None:
        return config
    source, _, name = config.loop.function.rpartition(":")
    path = file.folder_of(LOOP_FUNCTION).absolute() / source
    loop = config.loop.model_copy(update={"function": f"{path}:{name}"})
    return config.model_copy(update={"loop": loop})


def has_loop(file: ConfigFile, origin: StudyRecord | None = None) -> bool:
    """Return whether settings are of a study with a loop, or inherit one."""
    return bool(file.settings.get("loop") or (origin and origin.config.loop))


# ------------------------------------------------------------------ the plan


@dataclass(frozen=True)
class PlannedStudy:
    """A study with its trials, before it is stored.

    Attributes:
        config: its config, with the precision that is chosen for it.
        tasks: its tasks by name; those of texts have their tokenizers.
        trials: its trials in the order in which they run.
        source: record of the study of which a refinement derives its trials.
        device: device on which this process trains networks; None for a loop.
        notices: what to say about lengths and precision.
    """

    name: str
    config: StudyConfig
    tasks: "Mapping[str, StudyTask]"
    trials: Sequence[StoredTrial]
    space: SearchSpace
    source: StudyRecord | None
    device: "torch.device | None"
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


def plan_study(options: RunOptions) -> PlannedStudy:
    """Return the study that a user asks for as it would be created; nothing is written.

    Raises:
        Exception: the errors of :func:`search.create_or_join.create_or_join`, but those of a study
            that exists.
    """
    file = load_file(options)
    name = options.name or file.name
    wanted = resolve(name, options.storage, file, options, True)
    check(wanted)
    if wanted.config.refinement is None:
        return plan_trials(None, wanted, options)
    with closing(read_storage(options.storage)) as storage:
        return plan_trials(storage, wanted, options)


def check(wanted: WantedStudy) -> None:
    """Check what a process needs to create or to join a study, before a storage is written.

    Raises:
        DeviceError, TaskError, UserError: if that is not there.
    """
    if wanted.config.has_networks:
        search.networks.check(wanted)
        return
    if wanted.config.loop is not None and wanted.config.loop.function is not None:
        locate_function(wanted.config.loop.function)
    for name in wanted.config.list_params():
        if name in RESULT_NAMES:
            raise UserError(
                f"{wanted.file.origin}: space has {name}, a column of every study's results: "
                f"expected another name, such as {name}_"
            )


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
    if config.has_networks:
        config, tasks, notices = search.networks.fit(wanted, [trial.params for trial in trials])
    else:
        config = config.model_copy(update={"loop_parameters": config.list_params()})
        tasks = {}
        notices = []
    if source is not None:
        trials = source.copy_repeats(trials, config)
    record = None if source is None else source.record
    device = wanted.device
    return PlannedStudy(wanted.name, config, tasks, trials, space, record, device, notices)


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


def describe_trials(verb: str, trials: Sequence[StoredTrial], config: StudyConfig) -> str:
    """Return a notice on how many trials were added."""
    steps = sum(config.length_of(trial.params).steps for trial in trials)
    kind = "training steps" if config.has_networks else "steps of the loop"
    return f"{verb} with {format_count(len(trials), 'trial')}, {steps:,} {kind} in all"
