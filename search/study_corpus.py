"""The text of a study: its corpus, and the corpus in tokens."""

from collections.abc import Iterable

from rnn.data.corpus import Corpus, load_corpus
from rnn.data.tokenizer import TokenCorpus, load_tokenizer, train_tokenizer
from rnn.errors import CorpusError
from studies.attributes import StudyRecord
from studies.config import StudyConfig
from studies.config_file import ConfigFile
from studies.loader import read_study_record
from studies.space import Params
from studies.storage.open import load_study
from studies.storage.storage import LeasedRDBStorage

SEQUENCE_LENGTH = "sequence_length"


def load_study_corpus(file: ConfigFile, config: StudyConfig, is_given: bool) -> Corpus:
    """Load the corpus of a config.

    Args:
        file: config file of the study.
        config: config of the study.
        is_given: whether the command line names the corpus.

    Raises:
        CorpusError: if it cannot be loaded.
    """
    try:
        return load_corpus(config.corpus)
    except CorpusError as error:
        is_repeated = config.refinement is not None and config.refinement.trial is not None
        if is_given or not (file.is_stored or is_repeated):
            raise
        raise CorpusError(
            f"{error}; {file.origin} was trained on it: give its current path with --corpus"
        ) from error


def tokenize(
    storage: LeasedRDBStorage, config: StudyConfig, corpus: Corpus, trials: Iterable[Params]
) -> TokenCorpus:
    """Return the token corpus of a new study.

    A refinement reuses the tokenizer of its source if kind and corpus are the same; otherwise a
    tokenizer is trained on the training split.

    Raises:
        CorpusError: if the corpus is too short for the config or a trial, or is not that of a
            trial that is run once more.
    """
    tokens = None
    if config.refinement is not None:
        source = read_study_record(load_study(storage, config.refinement.source))
        is_same_corpus = source.corpus.sha256 == corpus.sha256
        if config.refinement.trial is not None and not is_same_corpus:
            raise CorpusError(
                f"corpus {corpus.name} has SHA-256 {corpus.sha256[:8]}…, that of study "
                f"{config.refinement.source!r} {source.corpus.sha256[:8]}…: a trial is run once "
                "more on the same text; give its path with --corpus"
            )
        if is_same_corpus and source.config.tokenizer == config.tokenizer:
            tokens = read_token_corpus(source, corpus)
    if tokens is None:
        tokens = TokenCorpus(corpus, train_tokenizer(config.tokenizer, corpus.train))
    check_length(tokens, config, trials)
    return tokens


def read_token_corpus(record: StudyRecord, corpus: Corpus) -> TokenCorpus:
    """Return a corpus in the tokens of a stored study."""
    return TokenCorpus(corpus, load_tokenizer(record.tokenizer.serialized))


def check_length(tokens: TokenCorpus, config: StudyConfig, trials: Iterable[Params] = ()) -> None:
    """Check that each split is as long as a config and, if given, each trial needs.

    Raises:
        CorpusError: if one is too short, or a length does not suit the corpus ``recall:D``.
    """
    if tokens.corpus.recall_distance is not None and config.tokenizer != "bytes":
        raise CorpusError(
            f"corpus {tokens.corpus.name} has tokenizer {config.tokenizer!r}: expected 'bytes', in "
            "which its distance is counted"
        )
    grid, study_length = config.grid, config.training.sequence_length
    values = grid.search_space.get(SEQUENCE_LENGTH) if grid else None
    lengths = [int(value) for value in values or [study_length]]
    lengths += [int(params.get(SEQUENCE_LENGTH, study_length)) for params in trials]
    tokens.check_min_length(max(lengths), config.evaluation.window_length, config.eval_split)
