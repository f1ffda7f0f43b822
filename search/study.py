"""Making a study, or joining one that is there, on terms that keep its results comparable."""

import re
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from uuid import uuid4

import optuna
import torch
from optuna.pruners import BasePruner, NopPruner

from rnn.data.corpus import Corpus, load_corpus
from rnn.data.tokenizer import ByteTokenizer, TokenCorpus, train_tokenizer
from rnn.errors import CorpusError
from rnn.training.precision import check_precision, supports_bf16
from search.grid import GridSampler, extend, grid_of, is_beginning
from search.parameters import (
    artifact_folder,
    distributions,
    observed_search_space,
    search_space,
    token_corpus,
)
from search.pruning.pruner import TopFractionPruner
from search.refinement import derive_trials
from studies.attributes import (
    ARTIFACT_FOLDER,
    COMMANDS,
    CONFIG,
    CORPUS,
    OBJECTIVE_NAMES,
    TOKENIZER,
    CorpusRecord,
    TokenizerRecord,
    is_grid_trial,
)
from studies.compatibility import PER_WORKER, diff_configs
from studies.config import StudyConfig
from studies.errors import ConfigError, ConfigMismatchError
from studies.loader import ConfigFile, stored_config, stored_corpus
from studies.storage.counts import count_trials
from studies.storage.create import PlannedTrial, create_study
from studies.storage.open import load_study, open_storage, read_storage
from studies.storage.storage import LeasedRDBStorage

_SHOWN = 6
"""How many differences a line of refusal lists."""

_LONGEST_NAME = 200
"""Of a study, in characters."""

_PROCESSOR = torch.device("cpu")

_REASONS = {
    "bf16": "{} multiplies bfloat16 in hardware",
    "fp32": "{} does not multiply bfloat16 in hardware",
}
_FIXED = "it is the study's from now on, whoever works on it"


@dataclass(frozen=True)
class StudyHandle:
    """A study that a worker takes part in.

    Attributes:
        study: as Optuna has it.
        storage: that holds it.
        config: that it was made with; what it says of leases, checkpoints, outages and kept
            weights is the worker's own.
        corpus: its text.
        text: the same in the symbols that its networks read.
        notice: what a person should know of how it was made or joined; may be empty.
    """

    study: optuna.Study
    storage: LeasedRDBStorage
    config: StudyConfig
    corpus: Corpus
    text: TokenCorpus
    notice: str = ""

    @property
    def study_id(self) -> int:
        """The study's id in the storage."""
        return self.study._study_id

    @property
    def folder(self) -> str:
        """The name of the folder that the study's files lie in, and no other's."""
        return artifact_folder(self.study)


@dataclass(frozen=True)
class StudyOptions:
    """What a command line says beside the definition.

    Attributes:
        name: of the study; the definition's own by default.
        corpus: in place of the definition's.
        precision: in place of the definition's.
        prune: give up on points that are unlikely to end among the best.
        extend: add the points that the definition has more than the study.
        partial: derive from a source that is not finished.
        command: as the study is to remember it, if it is made or extended by it.
    """

    name: str | None = None
    corpus: str | None = None
    precision: str | None = None
    prune: bool = False
    extend: bool = False
    partial: bool = False
    command: str = ""


def create_or_join(
    file: ConfigFile, url: str, terms: StudyOptions, device: torch.device = _PROCESSOR
) -> StudyHandle:
    """Join the study of a definition; make it first if it is not there.

    Everything that can be refused is refused before anything is written.

    Args:
        file: the definition.
        url: of the storage.
        terms: what the command line says beside it.
        device: on which this worker trains.

    Raises:
        DeviceError: if the device does not have the study's precision.
        DefinitionError, CorpusError: if the definition or the text cannot be used.
        StorageError: if the storage cannot be used.
        ConfigMismatchError: if the study is there with other settings or another text.
        StudyNotFound, SourceUnfinished: if the study that it is to be derived from is not there,
            or not complete.
        StudiesError: if it is to be extended while workers hold points.
    """
    name = terms.name or file.name
    if len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"a name of {len(name)} characters is too long; allowed: {_LONGEST_NAME}; shorten it"
        )
    config = _resolve(file, url, terms)
    if terms.extend and config.space is None:
        raise ConfigMismatchError(
            f"study {name!r} has no grid of its own; allowed with --extend: studies with a "
            "[space]; extend its source and refine that"
        )
    check_precision(config.precision, device)
    corpus = _open_corpus(file, config, terms)
    # Before there is a storage: a text has no more symbols than bytes.
    _require_length(TokenCorpus(corpus, ByteTokenizer()), config)
    record = CorpusRecord(
        name=corpus.name, sha256=corpus.sha256, length=len(corpus.text), split=corpus.split
    )
    notice = ""
    with ExitStack() as if_refused:
        storage = if_refused.enter_context(closing(open_storage(url)))
        if name not in optuna.get_all_study_names(storage):
            made_with = _precision(config.precision, device)
            if config.precision == "auto":
                notice = (
                    f"precision {made_with}, for {_REASONS[made_with].format(device)}; {_FIXED}"
                )
            text = _new_text(storage, config, corpus)
            _create(name, storage, made_with, config, record, text, terms)
        study = load_study(storage, name)
        stored = stored_config(study)
        found = diff_configs(stored, stored_corpus(study), config, record)
        not_of_space = [line for line in found if not line.startswith("space.")]
        is_outgrown = len(not_of_space) < len(found) and _is_outgrown(study, stored, config)
        tolerant = terms.extend or is_outgrown
        _require_none(not_of_space if tolerant else found, name, stored, config)
        if is_outgrown:
            count = len(grid_of(stored).points)
            notice = f"study {name!r} was extended since: its stored grid of {count} trials is used"
        elif terms.extend:
            extended = extend(study, storage, stored, config, terms.command)
            if extended is None:  # another has done so meanwhile
                return create_or_join(file, url, terms, device)
            stored = extended
        check_precision(stored.precision, device)
        text = token_corpus(study, corpus)
        if_refused.pop_all()
    study = optuna.load_study(
        study_name=name, storage=storage, sampler=_sampler(study, stored), pruner=_pruner(stored)
    )
    own = {setting: getattr(config, setting) for setting in PER_WORKER}
    return StudyHandle(study, storage, stored.model_copy(update=own), corpus, text, notice)


def _new_text(storage: LeasedRDBStorage, config: StudyConfig, corpus: Corpus) -> TokenCorpus:
    """Return a corpus in the symbols of the vocabulary that a new study is to have.

    It is the source's, if that has one of the same kind of the same text; else one that is made of
    the training split.

    Raises:
        CorpusError: if the text is too short for the definition.
    """
    text = None
    if config.refinement is not None:
        source = load_study(storage, config.refinement.source)
        is_same_text = stored_corpus(source).sha256 == corpus.sha256
        if is_same_text and stored_config(source).tokenizer == config.tokenizer:
            text = token_corpus(source, corpus)
    if text is None:
        text = TokenCorpus(corpus, train_tokenizer(config.tokenizer, corpus.train))
    _require_length(text, config)
    return text


def _require_length(text: TokenCorpus, config: StudyConfig) -> None:
    training, evaluation = config.training, config.evaluation
    text.check_min_length(training.sequence_length, evaluation.window_length, config.eval_split)


def _precision(asked: str, device: torch.device) -> str:
    """Return the precision that a study is made with.

    It is resolved once: a worker's own hardware must not decide what the study's numbers are.
    """
    if asked != "auto":
        return asked
    return "bf16" if supports_bf16(device) else "fp32"


def _open_corpus(file: ConfigFile, config: StudyConfig, terms: StudyOptions) -> Corpus:
    try:
        return load_corpus(config.corpus)
    except CorpusError as error:
        if not file.is_stored or terms.corpus is not None:
            raise
        raise CorpusError(
            f"{error}; {file.origin} was trained on it: give its present path with --corpus"
        ) from error


def _is_outgrown(study: optuna.Study, stored: StudyConfig, own: StudyConfig) -> bool:
    """Tell whether a definition is one that the study had before it was extended."""
    return (
        len(study.user_attrs.get(COMMANDS, [])) > 1
        and stored.space is not None
        and own.space is not None
        and is_beginning(own.space, stored.space)
    )


def _require_none(
    found: Sequence[str], name: str, stored: StudyConfig, config: StudyConfig
) -> None:
    """Refuse a worker whose settings, or text, differ from the study's."""
    if found:
        shown = "; ".join(found[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        grown = _parameters(stored) == _parameters(config) and all(
            line.startswith("space.") for line in found
        )
        hint = ", or --extend if values were added at the end of a list" if grown else ""
        raise ConfigMismatchError(
            f"study {name!r} was made with other settings: {shown}{more}; use the same, or another "
            f"--name{hint}"
        )


def _parameters(config: StudyConfig) -> tuple[str, ...]:
    return config.space.parameters if config.space else ()


def _resolve(file: ConfigFile, url: str, terms: StudyOptions) -> StudyConfig:
    """Return the definition with all that it inherits from the study that it derives from."""
    settings = {"corpus": terms.corpus, "precision": terms.precision}
    file = file.with_overrides({key: value for key, value in settings.items() if value is not None})
    if terms.prune:
        file = file.with_overrides({"pruning": {"enabled": True}})
    if file.source is None or file.is_stored:
        return file.resolve()
    with closing(read_storage(url)) as storage:
        source = stored_config(load_study(storage, file.source))
    return file.resolve_over(source.model_dump(mode="json"))


def _create(
    name: str,
    storage: LeasedRDBStorage,
    precision: str,
    config: StudyConfig,
    corpus: CorpusRecord,
    text: TokenCorpus,
    terms: StudyOptions,
) -> None:
    if config.refinement is None:
        assert config.space is not None
        space = search_space(config.space)
        planned = [PlannedTrial(point) for point in grid_of(config).points]
    else:
        source = load_study(storage, config.refinement.source)
        counts = count_trials(storage, source._study_id)
        keep = stored_config(source).pruning.keep
        planned = derive_trials(source, counts, config, terms.partial, keep)
        space = observed_search_space(point.params for point in planned)
    config = config.model_copy(update={"precision": precision, "corpus": corpus.name})
    attributes = {
        CONFIG: config.model_dump(mode="json"),
        CORPUS: corpus.model_dump(mode="json"),
        TOKENIZER: TokenizerRecord(
            size=text.tokenizer.size,
            bytes_per_token=corpus.split[0] / len(text.train),
            serialized=text.tokenizer.serialized,
        ).model_dump(mode="json"),
        COMMANDS: [terms.command],
        ARTIFACT_FOLDER: f"{re.sub('[^A-Za-z0-9_-]', '-', name)}-{uuid4().hex[:12]}",
    }
    metric = OBJECTIVE_NAMES[config.objective]
    create_study(storage, name, metric, attributes, distributions(space), planned)


def _pruner(config: StudyConfig) -> BasePruner:
    pruning, training = config.pruning, config.training
    if not pruning.enabled:
        return NopPruner()
    return TopFractionPruner(
        training.steps, training.log_every, keep=pruning.keep, confidence=pruning.confidence
    )


def _sampler(study: optuna.Study, config: StudyConfig) -> GridSampler:
    if config.space is not None:
        return grid_of(config)
    points = [trial.params for trial in study.get_trials(deepcopy=False) if is_grid_trial(trial)]
    return GridSampler(observed_search_space(points), points=points)
