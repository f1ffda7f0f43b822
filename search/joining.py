"""Making a study, or joining one that is there, on terms that keep its results comparable."""

import re
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from uuid import uuid4

import optuna
import torch
from optuna.pruners import BasePruner, NopPruner

from rnn.corpus import Corpus, open_corpus
from rnn.errors import CorpusError
from rnn.precision import has_bfloat16, require_precision
from rnn.vocabulary import ByteVocabulary, Text, train_vocabulary
from search.extension import extend, grid_of, is_beginning
from search.grid import GridSampler
from search.pruner import BestFractionPruner
from search.refinement import derive_points
from search.space import distributions, search_space, search_space_of
from search.stored import folder_of, text_of
from studies.accounting import accounting_of
from studies.definition import Definition
from studies.errors import DefinitionError, IdentityError
from studies.identity import PER_WORKER, differences
from studies.opening import load_study, open_storage, read_storage
from studies.planning import PlannedPoint, create_study
from studies.reading import DefinitionFile
from studies.records import (
    CHECKPOINTS,
    COMMANDS,
    CORPUS,
    DEFINITION,
    METRICS,
    VOCABULARY,
    CorpusRecord,
    VocabularyRecord,
    is_point,
)
from studies.storage import Storage
from studies.stored import stored_corpus, stored_definition

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
class Joined:
    """A study that a worker takes part in.

    Attributes:
        study: as Optuna has it.
        storage: that holds it.
        definition: that it was made with; what it says of leases, checkpoints, outages and kept
            weights is the worker's own.
        corpus: its text.
        text: the same in the symbols that its networks read.
        news: what a person should know of how it was made or joined; may be empty.
    """

    study: optuna.Study
    storage: Storage
    definition: Definition
    corpus: Corpus
    text: Text
    news: str = ""

    @property
    def study_id(self) -> int:
        """The study's id in the storage."""
        return self.study._study_id

    @property
    def folder(self) -> str:
        """The name of the folder that the study's files lie in, and no other's."""
        return folder_of(self.study)


@dataclass(frozen=True)
class Terms:
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


def join(file: DefinitionFile, url: str, terms: Terms, device: torch.device = _PROCESSOR) -> Joined:
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
        IdentityError: if the study is there with other settings or another text.
        StudyNotFound, SourceUnfinished: if the study that it is to be derived from is not there,
            or not complete.
        StudiesError: if it is to be extended while workers hold points.
    """
    name = terms.name or file.name
    if len(name) > _LONGEST_NAME:
        raise DefinitionError(
            f"a name of {len(name)} characters is too long; allowed: {_LONGEST_NAME}; shorten it"
        )
    definition = _resolve(file, url, terms)
    if terms.extend and definition.space is None:
        raise IdentityError(
            f"study {name!r} has no grid of its own; allowed with --extend: studies with a "
            "[space]; extend its source and refine that"
        )
    require_precision(definition.precision, device)
    corpus = _open_corpus(file, definition, terms)
    # Before there is a storage: a text has no more symbols than bytes.
    _require_length(Text(corpus, ByteVocabulary()), definition)
    record = CorpusRecord(
        name=corpus.name, sha256=corpus.sha256, length=len(corpus.text), split=corpus.split
    )
    news = ""
    with ExitStack() as if_refused:
        storage = if_refused.enter_context(closing(open_storage(url)))
        if name not in optuna.get_all_study_names(storage):
            made_with = _precision(definition.precision, device)
            if definition.precision == "auto":
                news = f"precision {made_with}, for {_REASONS[made_with].format(device)}; {_FIXED}"
            text = _new_text(storage, definition, corpus)
            _create(name, storage, made_with, definition, record, text, terms)
        study = load_study(storage, name)
        stored = stored_definition(study)
        found = differences(stored, stored_corpus(study), definition, record)
        not_of_space = [line for line in found if not line.startswith("space.")]
        is_outgrown = len(not_of_space) < len(found) and _is_outgrown(study, stored, definition)
        tolerant = terms.extend or is_outgrown
        _require_none(not_of_space if tolerant else found, name, stored, definition)
        if is_outgrown:
            count = len(grid_of(stored).points)
            news = f"study {name!r} was extended since: its stored grid of {count} trials is used"
        elif terms.extend:
            extended = extend(study, storage, stored, definition, terms.command)
            if extended is None:  # another has done so meanwhile
                return join(file, url, terms, device)
            stored = extended
        require_precision(stored.precision, device)
        text = text_of(study, corpus)
        if_refused.pop_all()
    study = optuna.load_study(
        study_name=name, storage=storage, sampler=_sampler(study, stored), pruner=_pruner(stored)
    )
    own = {setting: getattr(definition, setting) for setting in PER_WORKER}
    return Joined(study, storage, stored.model_copy(update=own), corpus, text, news)


def _new_text(storage: Storage, definition: Definition, corpus: Corpus) -> Text:
    """Return a corpus in the symbols of the vocabulary that a new study is to have.

    It is the source's, if that has one of the same kind of the same text; else one that is made of
    the training split.

    Raises:
        CorpusError: if the text is too short for the definition.
    """
    text = None
    if definition.refinement is not None:
        source = load_study(storage, definition.refinement.source)
        is_same_text = stored_corpus(source).sha256 == corpus.sha256
        if is_same_text and stored_definition(source).vocabulary == definition.vocabulary:
            text = text_of(source, corpus)
    if text is None:
        text = Text(corpus, train_vocabulary(definition.vocabulary, corpus.train))
    _require_length(text, definition)
    return text


def _require_length(text: Text, definition: Definition) -> None:
    training, evaluation = definition.training, definition.evaluation
    text.require(training.sequence_length, evaluation.lane_length, definition.evaluate)


def _precision(asked: str, device: torch.device) -> str:
    """Return the precision that a study is made with.

    It is resolved once: a worker's own hardware must not decide what the study's numbers are.
    """
    if asked != "auto":
        return asked
    return "bf16" if has_bfloat16(device) else "fp32"


def _open_corpus(file: DefinitionFile, definition: Definition, terms: Terms) -> Corpus:
    try:
        return open_corpus(definition.corpus)
    except CorpusError as error:
        if not file.is_stored or terms.corpus is not None:
            raise
        raise CorpusError(
            f"{error}; {file.origin} was trained on it: give its present path with --corpus"
        ) from error


def _is_outgrown(study: optuna.Study, stored: Definition, own: Definition) -> bool:
    """Tell whether a definition is one that the study had before it was extended."""
    return (
        len(study.user_attrs.get(COMMANDS, [])) > 1
        and stored.space is not None
        and own.space is not None
        and is_beginning(own.space, stored.space)
    )


def _require_none(
    found: Sequence[str], name: str, stored: Definition, definition: Definition
) -> None:
    """Refuse a worker whose settings, or text, differ from the study's."""
    if found:
        shown = "; ".join(found[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        grown = _parameters(stored) == _parameters(definition) and all(
            line.startswith("space.") for line in found
        )
        hint = ", or --extend if values were added at the end of a list" if grown else ""
        raise IdentityError(
            f"study {name!r} was made with other settings: {shown}{more}; use the same, or another "
            f"--name{hint}"
        )


def _parameters(definition: Definition) -> tuple[str, ...]:
    return definition.space.parameters if definition.space else ()


def _resolve(file: DefinitionFile, url: str, terms: Terms) -> Definition:
    """Return the definition with all that it inherits from the study that it derives from."""
    stated = {"corpus": terms.corpus, "precision": terms.precision}
    file = file.stating({key: value for key, value in stated.items() if value is not None})
    if terms.prune:
        file = file.stating({"pruning": {"enabled": True}})
    if file.source is None or file.is_stored:
        return file.validate_alone()
    with closing(read_storage(url)) as storage:
        source = stored_definition(load_study(storage, file.source))
    return file.validate_over(source.model_dump(mode="json"))


def _create(
    name: str,
    storage: Storage,
    precision: str,
    definition: Definition,
    corpus: CorpusRecord,
    text: Text,
    terms: Terms,
) -> None:
    if definition.refinement is None:
        assert definition.space is not None
        space = search_space(definition.space)
        planned = [PlannedPoint(point) for point in grid_of(definition).points]
    else:
        source = load_study(storage, definition.refinement.source)
        accounting = accounting_of(storage, source._study_id)
        keep = stored_definition(source).pruning.keep
        planned = derive_points(source, accounting, definition, terms.partial, keep)
        space = search_space_of(point.params for point in planned)
    definition = definition.model_copy(update={"precision": precision, "corpus": corpus.name})
    attributes = {
        DEFINITION: definition.model_dump(mode="json"),
        CORPUS: corpus.model_dump(mode="json"),
        VOCABULARY: VocabularyRecord(
            size=text.vocabulary.size,
            bytes_per_symbol=corpus.split[0] / len(text.train),
            written=text.vocabulary.written,
        ).model_dump(mode="json"),
        COMMANDS: [terms.command],
        CHECKPOINTS: f"{re.sub('[^A-Za-z0-9_-]', '-', name)}-{uuid4().hex[:12]}",
    }
    metric = METRICS[definition.objective]
    create_study(storage, name, metric, attributes, distributions(space), planned)


def _pruner(definition: Definition) -> BasePruner:
    pruning, training = definition.pruning, definition.training
    if not pruning.enabled:
        return NopPruner()
    return BestFractionPruner(
        training.steps, training.log_every, keep=pruning.keep, confidence=pruning.confidence
    )


def _sampler(study: optuna.Study, definition: Definition) -> GridSampler:
    if definition.space is not None:
        return grid_of(definition)
    points = [trial.params for trial in study.get_trials(deepcopy=False) if is_point(trial)]
    return GridSampler(search_space_of(points), points=points)
