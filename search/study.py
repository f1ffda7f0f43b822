"""Create a study, or join an existing one under settings that keep its results comparable."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property

import optuna
import torch
from optuna.pruners import NopPruner

from rnn.config import TaskSpec
from rnn.tasks.corpus import Corpus
from rnn.tasks.task import TrainingData
from rnn.tasks.tokenizer import ByteTokenizer, TokenCorpus
from rnn.training.devices import check_precision
from search.cells import CodeStore, check_sources, load_cells
from search.certification import certify_cells
from search.duration import describe_duration
from search.extension import describe_new_end, plan_new_end
from search.grid import GridSampler, create_sampler, extend_grid, find_conflict
from search.launch.shared_files import require_shared
from search.new_study import StudyOptions, corpus_record, create_new_study, describe_trials
from search.refinement import MAX_UNCONFIRMED, check_count
from search.replicates import join_looks, plan_looks
from search.study_corpus import (
    check_length,
    describe_unsuitable,
    load_study_corpus,
    read_token_corpus,
)
from search.task_check import certify_task
from search.tasks import StudyTask, TaskOptions, check_held_out, check_trials, load_task
from search.versions import describe_study_mixing
from studies.artifacts import open_store
from studies.attributes import StudyRecord
from studies.config import StudyConfig
from studies.config_file import ConfigFile
from studies.errors import ConfigMismatchError, StorageNotFoundError
from studies.loader import PER_WORKER, diff_configs, list_descriptive_changes, read_study_record
from studies.records import Floors
from studies.space import observed_search_space
from studies.storage.backup import StudyIdentity
from studies.storage.open import list_study_names, load_study, open_storage, read_storage
from studies.storage.reads import read_trials
from studies.storage.storage import LeasedRDBStorage
from studies.text import check_study_name, shorten
from studies.training import WINDOW_PARAMS

MAX_DIFFERENCES = 6
"""Number of differences that an error message lists."""

_EXTENSIBLE = ("space.", "training.steps:")
"""Settings that an extension can change."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class StudyHandle:
    """An open study.

    Attributes:
        study: the Optuna study, with its sampler and pruner.
        storage: storage that holds it.
        config: stored config, with this worker's settings for leases, checkpoints, outages and
            kept weights.
        corpus: corpus of the study; None in tasks other than text.
        token_corpus: the corpus under the study's tokenizer.
        task: task of the study; None for a text.
        notice: message for the user about how the study was created or joined, or "".
        warning: warning that other versions of the code or of PyTorch trained the study, or that
            the text of a new one is hardly meant as such, or "".
    """

    study: optuna.Study
    storage: LeasedRDBStorage
    config: StudyConfig
    corpus: Corpus | None
    token_corpus: TokenCorpus | None
    task: StudyTask | None = None
    notice: str = ""
    warning: str = ""

    @property
    def study_id(self) -> int:
        """Id of the study in the storage."""
        return self.study._study_id

    @cached_property
    def record(self) -> StudyRecord:
        """What the study stored about itself when this was first read: before the training."""
        return read_study_record(self.study)

    @property
    def spec(self) -> TaskSpec:
        """What the study's networks read and predict."""
        if self.token_corpus is not None:  # whose splits are encoded at their first use
            return TaskSpec.of_text(self.token_corpus.tokenizer.size)
        return self.training_data(()).spec

    def training_data(self, options: TaskOptions) -> TrainingData:
        """Return what a trial is trained on, given the options of the task in which it varies."""
        if self.task is not None:
            return self.task.build(options)
        assert self.token_corpus is not None
        return self.token_corpus.training_data

    @property
    def artifact_folder(self) -> str:
        """Name of the study's artifact folder, unique among studies, which never changes."""
        return self.record.artifact_folder


def create_or_join(
    file: ConfigFile, url: str, options: StudyOptions, device: torch.device = _CPU
) -> StudyHandle:
    """Open the study of a config file; create it if it does not exist.

    Invalid input is rejected before anything is written.

    Args:
        file: config file of the study.
        url: URL of the storage.
        options: options of the command line.
        device: device on which this worker trains.

    Raises:
        CellError: if a user's own cell cannot be loaded, or a new one breaks the contract.
        TaskError: if the task cannot be loaded or breaks the contract.
        DeviceError: if the device does not support the study's precision.
        ConfigError, CorpusError: if the config or the corpus is invalid.
        StorageError: if the storage cannot be used.
        ConfigMismatchError: if the study exists with other settings or another corpus.
        StudyNotFoundError, UnfinishedSourceError: if the source of a refinement is missing or not
            finished.
        StudiesError: if the study cannot be extended because workers hold trials.
    """
    name = options.name or file.name
    check_study_name(name)
    file = load_cells(_with_options(file, options))
    config, task = _resolve_config(file, url, options)
    if not file.is_stored or file.name != name:
        config = plan_looks(config, options.until_decided)
    _check_options(name, url, config, task, options, device)
    _check_precision(config, device, options)
    corpus = load_study_corpus(file, config) if task is None else None
    if options.is_shared:
        for path in task.files if task else [corpus.path] if corpus and corpus.path else []:
            require_shared(path, "file of the task" if task else "corpus")
    if corpus is not None:
        # A corpus has at most as many tokens as bytes, so no tokenizer is needed.
        check_length(TokenCorpus(corpus, ByteTokenizer()), config)
    elif task is not None and config.grid is not None:
        check_trials(config, task, config.grid.project([*WINDOW_PARAMS, *task.record.options]))
    if config.cells:
        open_store(options.artifacts, url, "cells")  # refuses what cannot be used
        if not _exists(url, name):
            certify_cells(config)
    floors = None
    if task is not None and not options.must_exist and not _exists(url, name):
        floors = _measure_floors(config, task, url)
    notice = ""
    with ExitStack() as on_error:
        storage = on_error.enter_context(closing(open_storage(url)))
        if name not in list_study_names(storage) and not options.must_exist:
            notice = create_new_study(name, storage, config, corpus, task, floors, options, device)
        study = load_study(storage, name)
        record = read_study_record(study)
        storage.require_study(StudyIdentity(study._study_id, name, record.artifact_folder))
        joined = _join_study(study, storage, url, record, config, corpus, task, options, device)
        if joined is None:  # another process has just extended it
            return create_or_join(file, url, options, device)
        stored, join_notice = joined
        steps = stored.training.steps
        storage.require_study(StudyIdentity(study._study_id, name, record.artifact_folder, steps))
        _check_precision(stored, device, options)
        _keep_sources(stored, url, options, record.artifact_folder)
        tokens = None if corpus is None else read_token_corpus(record, corpus)
        warning = describe_study_mixing(study, storage)
        if notice:
            warning = "" if corpus is None else describe_unsuitable(corpus)
        study = optuna.load_study(
            study_name=name,
            storage=storage,
            sampler=_sampler(storage, study._study_id, stored),
            pruner=NopPruner(),
        )
        on_error.pop_all()
    local = {setting: getattr(config, setting) for setting in PER_WORKER}
    config = stored.model_copy(update=local)
    notice = "; ".join(filter(None, [file.left_out, join_notice or notice]))
    return StudyHandle(study, storage, config, corpus, tokens, task, notice, warning)


def _measure_floors(config: StudyConfig, task: StudyTask, url: str) -> Floors | None:
    """Check the task of a new study; return its floors, or those of the study it derives from."""
    if config.refinement is not None:
        with closing(read_storage(url)) as storage:
            source = read_study_record(load_study(storage, config.refinement.source))
        known = source.config.task_record
        if known is not None and known.identity() == task.record.identity():
            return source.floors
    floors, _ = certify_task(task, config.evaluation.windows)
    return floors


def _check_precision(config: StudyConfig, device: torch.device, options: StudyOptions) -> None:
    if device.type == "cuda" or not options.is_launched:
        check_precision(config.precision, device)


def _check_options(
    name: str,
    url: str,
    config: StudyConfig,
    task: StudyTask | None,
    options: StudyOptions,
    device: torch.device,
) -> None:
    """Reject what needs no corpus to be rejected: extended refinements and unconfirmed grids."""
    grid = config.grid
    if grid is None:
        if options.extend and not _exists(url, name):
            raise _no_space_error(name)
        return
    count = grid.count()
    if count > MAX_UNCONFIRMED and not _exists(url, name):
        check_count(
            count,
            config.training.steps,
            options.confirmed,
            lambda count: describe_duration(config, count, device, task.build() if task else None),
        )


def _join_study(
    study: optuna.Study,
    storage: LeasedRDBStorage,
    url: str,
    record: StudyRecord,
    config: StudyConfig,
    corpus: Corpus | None,
    task: StudyTask | None,
    options: StudyOptions,
    device: torch.device,
) -> tuple[StudyConfig, str] | None:
    """Check that a worker may join a study; extend the study if the options say so.

    Returns:
        The stored config and a notice for the user, or ""; None if another process extended the
        study at the same moment.
    """
    name, stored = study.study_name, record.config
    config = join_looks(name, stored, config, options.until_decided)
    check_sources(name, stored, config)
    differences = [
        line
        for line in diff_configs(stored, record.corpus, config, corpus_record(corpus))
        if not line.startswith("cells.")  # which cells there are, the search space says
    ]
    others = [line for line in differences if not line.startswith(_EXTENSIBLE)]
    is_outdated = len(others) < len(differences) and _was_extended(record, config)
    _check_compatible(
        others if options.extend or is_outdated else differences, name, stored, config
    )
    check_held_out(name, stored, config)
    notices = [_describe_outdated(name, stored, config)] if is_outdated else []
    changed = list_descriptive_changes(stored, config)
    if not options.extend:
        _check_stated(name, record, config)
        notices += [_describe_kept(name, stored, changed)] if changed else []
        return stored, "; ".join(notices)
    store = open_store(options.artifacts, url, "checkpoints", read_only=True)
    new_end = plan_new_end(study, record, config, options.command, store)
    if new_end is not None and stored.refinement is not None and stored.refinement.looks:
        raise ConfigMismatchError(
            f"study {name!r} has planned looks, whose verdicts hold for its steps: --extend "
            "expected a study without; train longer under another --name"
        )
    if new_end is not None and stored.space is None:
        check_trials(
            config, task, [trial.params for trial in read_trials(storage, study._study_id)]
        )
    if stored.space is None and not (new_end or changed or record.earlier_ends):
        raise _no_space_error(name)
    if len(record.commands) > 1 and _has_earlier_grid(stored, config):
        config = config.model_copy(update={"space": stored.space, "cells": stored.cells})
    count = _count_added(stored, config)
    check_count(
        count,
        config.training.steps,
        options.confirmed,
        lambda count: describe_duration(config, count, device, task.build() if task else None),
    )
    certify_cells(config, stored)
    extended = extend_grid(study, storage, stored, config, options.command, new_end)
    if extended is None:
        return None
    if new_end is not None:
        earlier_end = read_study_record(study).earlier_ends[-1]
        notices.append(describe_new_end(earlier_end, new_end))
    if count:
        notices.append(describe_trials("extended", count, extended, device, task))
    for setting in changed:
        before, now = _format_setting(stored, setting), _format_setting(extended, setting)
        notices.append(f"changed {setting} from {before} to {now}")
    if "hypothesis" in changed:
        notices += _describe_marks(record, read_study_record(study))
    return extended, "; ".join(notices)


def _describe_outdated(name: str, stored: StudyConfig, config: StudyConfig) -> str:
    """Return a notice on what a worker uses in place of the values in its file."""
    used = []
    if config.space != stored.space:
        used.append(f"grid of {len(create_sampler(stored).combinations)} trials")
    if config.training.steps != stored.training.steps:
        used.append(f"{stored.training.steps:,} steps")
    return f"study {name!r} was extended: using its stored {' and '.join(used)}"


def _describe_kept(name: str, stored: StudyConfig, changed: Sequence[str]) -> str:
    """Return a notice on descriptive settings that a worker states otherwise than its study."""
    kept = [f"{setting} = {_format_setting(stored, setting)}" for setting in changed]
    it = "it" if len(kept) == 1 else "them"
    return f"study {name!r} keeps its {' and '.join(kept)}: --extend changes {it}"


def _check_stated(name: str, record: StudyRecord, config: StudyConfig) -> None:
    """Reject a worker whose file states a hypothesis that its study has not stored.

    One that has been withdrawn is in the file of a worker from before.
    """
    known = [each.hypothesis for each in record.hypotheses]
    for number, hypothesis in enumerate(config.hypothesis, 1):
        if hypothesis not in known:
            raise ConfigMismatchError(
                f"study {name!r} exists without hypothesis {number} "
                f"({shorten(hypothesis.claim)!r}): use its hypotheses, or --extend to store others "
                "with the number of trials that are finished"
            )


def _describe_marks(before: StudyRecord, now: StudyRecord) -> list[str]:
    """Return a notice for each hypothesis that was stored or withdrawn."""
    new = [each for each in now.hypotheses if each not in before.hypotheses]
    return [f"hypothesis {shorten(each.hypothesis.claim)!r}: {each.mark}" for each in new]


def _format_setting(config: StudyConfig, setting: str) -> str:
    """Format the value of a setting for a notice."""
    value = getattr(config, setting)
    if setting == "hypothesis":
        return f"a list of {len(value)}"
    return "none" if value is None else shorten(repr(value))


def _no_space_error(name: str) -> ConfigMismatchError:
    return ConfigMismatchError(
        f"study {name!r} is a refinement without a [space]: extend its source and refine that, or "
        "extend training.steps"
    )


def _keep_sources(config: StudyConfig, url: str, options: StudyOptions, folder: str) -> None:
    """Keep a copy of the source of each cell and of the task of a study.

    Cells that the study's file lacks are loaded.
    """
    task = config.task_record
    if config.cells or (task is not None and task.sha256 is not None):
        store = CodeStore(open_store(options.artifacts, url, "cells"), folder)
        store.load(config.cells)  # one that another process added
        store.save(config.cells, task)


def _exists(url: str, name: str) -> bool:
    """Return whether a study exists, without creating the storage."""
    try:
        with closing(read_storage(url)) as storage:
            return name in list_study_names(storage)
    except StorageNotFoundError:
        return False


def _count_added(stored: StudyConfig, extended: StudyConfig) -> int:
    """Return how many trials an extension adds; 0 for a study that cannot be extended."""
    old, new = stored.grid, extended.grid
    return 0 if old is None or new is None else max(0, new.count() - old.count())


def _with_options(file: ConfigFile, options: StudyOptions) -> ConfigFile:
    """Return the file with the settings of command-line options."""
    settings = {"corpus": options.corpus, "precision": options.precision}
    file = file.with_overrides({key: value for key, value in settings.items() if value is not None})
    return file.with_overrides({"pruning": {"enabled": True}}) if options.prune else file


def _resolve_config(
    file: ConfigFile, url: str, options: StudyOptions
) -> tuple[StudyConfig, StudyTask | None]:
    """Return the config of a file whose cells are loaded, and its task.

    The config has what it inherits from the source of a refinement.
    """
    origin = file.name if file.is_stored else file.source
    record = None
    if origin is not None:
        with closing(read_storage(url)) as storage:
            record = read_study_record(load_study(storage, origin))

    def open_sources() -> CodeStore:
        assert record is not None
        store = open_store(options.artifacts, url, "cells", read_only=True)
        return CodeStore(store, record.artifact_folder)

    file, task = load_task(file, record, open_sources)
    if record is None or file.is_stored:
        config = file.resolve()
    else:
        config = file.resolve_over(record.settings())
    inherited = {name: cell for name, cell in config.cells.items() if name not in file.cells}
    if inherited:
        open_sources().load(inherited)
    return config if task is None else task.with_held_out(config), task


def _was_extended(record: StudyRecord, config: StudyConfig) -> bool:
    """Return whether a config describes the study as it was before an extension."""
    return (
        len(record.commands) > 1
        and config.training.steps in record.steps
        and _has_earlier_grid(record.config, config)
    )


def _has_earlier_grid(stored: StudyConfig, config: StudyConfig) -> bool:
    """Return whether a study's grid, if it has one, can be an extension of that of a config."""
    if config.space is None or stored.space is None:
        return config.space is stored.space
    return not find_conflict(config, stored)


def _check_compatible(
    differences: Sequence[str], name: str, stored: StudyConfig, config: StudyConfig
) -> None:
    """Reject a worker whose settings or corpus differ from the study's."""
    if not differences:
        return
    listed = "; ".join(differences[:MAX_DIFFERENCES])
    if len(differences) > MAX_DIFFERENCES:
        listed += f"; and {len(differences) - MAX_DIFFERENCES} more"
    added_steps = config.training.steps - stored.training.steps
    is_extensible = all(line.startswith(_EXTENSIBLE) for line in differences)
    hint = ""
    if is_extensible and added_steps >= 0 and _has_earlier_grid(config, stored):
        hint = f", or --extend to {'train longer' if added_steps else 'add the new trials'}"
    raise ConfigMismatchError(
        f"study {name!r} exists with other settings: {listed}; use its settings, or another "
        f"--name{hint}"
    )


def _sampler(storage: LeasedRDBStorage, study_id: int, config: StudyConfig) -> GridSampler:
    if config.space is not None:
        return create_sampler(config)
    combinations = [trial.params for trial in read_trials(storage, study_id)]
    return GridSampler(observed_search_space(combinations), combinations=combinations)
