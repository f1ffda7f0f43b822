"""Create a study with all its trials."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import torch

from rnn.tasks.corpus import Corpus
from rnn.training.devices import supports_bf16
from search.grid import create_sampler
from search.pruning.audit import draw_audited
from search.refinement import derive_trials
from search.study_corpus import tokenize
from search.tasks import StudyTask, check_trials
from search.worker.checkpoints import current_versions
from studies.attributes import CorpusRecord, StudyRecord, TokenizerRecord
from studies.config import StudyConfig
from studies.hypotheses import Registration, update_records
from studies.loader import read_study_record
from studies.measure import find_measure
from studies.records import Floors
from studies.space import SearchSpace, distributions, observed_search_space
from studies.storage.changes import create_study
from studies.storage.counts import count_trials
from studies.storage.open import load_study
from studies.storage.reads import read_trials
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trials import StoredTrial


@dataclass(frozen=True)
class StudyOptions:
    """Options of the command line that define a study, in addition to its config file.

    Attributes:
        name: name of the study; None for the config file's.
        corpus: corpus to use instead of the config's.
        precision: precision to use instead of the config's.
        prune: prune trials that are unlikely to finish among the best.
        extend: add the trials of values that were added to the search space, train complete trials
            for more steps, and store changed descriptive settings.
        partial: derive from a source study that is not finished.
        confirmed: create any number of trials.
        command: command line to record with a study that is created or extended.
        artifacts: location of the artifacts, see :func:`studies.artifacts.open_store`.
        until_decided: compare replicates at planned looks, and add runs until they are decided.
        is_shared: require a corpus that other machines find.
        must_exist: create no study: one of that name was found before.
        is_launched: leave it to workers on a cluster whether their devices support the precision.
    """

    name: str | None = None
    corpus: str | None = None
    precision: str | None = None
    prune: bool = False
    extend: bool = False
    partial: bool = False
    confirmed: bool = False
    command: str = ""
    artifacts: str | None = None
    until_decided: bool = False
    is_shared: bool = False
    must_exist: bool = False
    is_launched: bool = False


def create_new_study(
    name: str,
    storage: LeasedRDBStorage,
    config: StudyConfig,
    corpus: Corpus | None,
    task: StudyTask | None,
    floors: Floors | None,
    options: StudyOptions,
    device: torch.device,
) -> str:
    """Store a study that does not exist yet.

    Args:
        name: name of the study.
        storage: storage that will hold it.
        config: config of the study.
        corpus: corpus of the study; None in tasks other than text.
        task: task of the study; None for a text.
        floors: losses without memory in that task.
        options: options of the command line.
        device: device that decides the precision if the config does not.

    Returns:
        A notice for the user.

    Raises:
        CorpusError: if the corpus is too short.
        ConfigError: if there are too many trials.
        StudyNotFoundError, UnfinishedSourceError: if the source of a refinement is missing or not
            finished.
    """
    planned, space = plan_trials(storage, config, options)
    audit_nuisance = [] if config.grid is None else config.nuisance
    planned = draw_audited(planned, config, audit_nuisance)
    check_trials(config, task, [trial.params for trial in planned])
    tokenizer = TokenizerRecord()
    if corpus is not None:
        tokens = tokenize(storage, config, corpus, [trial.params for trial in planned])
        tokenizer = TokenizerRecord(
            size=tokens.tokenizer.size,
            bytes_per_token=corpus.split[0] / len(tokens.train),
            serialized=tokens.tokenizer.serialized,
        )
    precision = _resolve_precision(config.precision, device)
    now = Registration(
        time=datetime.now(UTC),
        planned=len(planned),
        report_threshold=config.report_threshold,
        nuisance=config.nuisance,
    )
    record = StudyRecord(
        config=config.model_copy(update={"precision": precision}),
        corpus=corpus_record(corpus),
        floors=floors,
        tokenizer=tokenizer,
        commands=[options.command],
        artifact_folder=f"{re.sub('[^A-Za-z0-9_-]', '-', name)}-{uuid4().hex[:12]}",
        created_with=current_versions(),
        hypotheses=update_records([], config.hypothesis, now),
        audit_nuisance=audit_nuisance,
    )
    metric = find_measure(config).name
    attributes, choices = record.attributes(), distributions(space)
    if not create_study(storage, name, metric, attributes, choices, planned):
        return ""  # another process has created it meanwhile
    notice = describe_trials("created", len(planned), config)
    if config.precision == "auto":
        notice += f"; precision {precision}: {_describe_bf16(device)}; fixed for this study"
    return notice


def plan_trials(
    storage: LeasedRDBStorage, config: StudyConfig, options: StudyOptions
) -> tuple[list[StoredTrial], SearchSpace]:
    """Return the trials of a new study and its search space."""
    if config.refinement is None:
        grid = config.grid
        assert grid is not None
        combinations = create_sampler(config).combinations
        return [StoredTrial(params) for params in combinations], grid.search_space
    source = load_study(storage, config.refinement.source)
    counts = count_trials(storage, source._study_id)
    record = read_study_record(source)
    keep = record.config.pruning.keep
    trials = read_trials(storage, source._study_id)
    planned = derive_trials(
        trials, counts, config, options.partial, keep, options.confirmed, record
    )
    return planned, observed_search_space(trial.params for trial in planned)


def corpus_record(corpus: Corpus | None) -> CorpusRecord | None:
    """Return what a study stores about its corpus; None in tasks other than text."""
    if corpus is None:
        return None
    return CorpusRecord(
        name=corpus.name, sha256=corpus.sha256, length=len(corpus.text), split=corpus.split
    )


def describe_trials(verb: str, count: int, config: StudyConfig) -> str:
    """Return a notice on how many trials were added."""
    steps = count * config.training.steps
    trials = f"{count:,} trial{'s' * (count != 1)}"
    return f"{verb} with {trials}, {steps:,} training steps in all"


def _resolve_precision(precision: str, device: torch.device) -> str:
    """Return the precision of a new study.

    Resolved once: results must not depend on the hardware of later workers.
    """
    if precision != "auto":
        return precision
    return "bf16" if supports_bf16(device) else "fp32"


def _describe_bf16(device: torch.device) -> str:
    return f"{device} {'supports' if supports_bf16(device) else 'does not support'} bfloat16"
