"""The text of a study: its corpus, and the corpus in tokens."""

import json
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rnn.errors import CorpusError
from rnn.tasks.corpus import Corpus, load_corpus
from rnn.tasks.tokenizer import TokenCorpus, load_tokenizer, train_tokenizer
from studies.attributes import StudyRecord
from studies.config import StudyConfig
from studies.config_file import ConfigFile
from studies.loader import read_study_record
from studies.space import Params
from studies.storage.open import load_study
from studies.storage.storage import LeasedRDBStorage

CORPUS, SEQUENCE_LENGTH = "corpus", "sequence_length"

_SLICE = 2**14
"""Bytes of each of the four slices of a text that are looked at."""

_REPEATED = 0.02
"""Share that compression leaves of a text that repeats itself; of English it leaves 0.3."""

_NUMERIC = 0.75
"""Share of numbers among the fields of a table; in sums such as ``1 + 2 = 3`` it is 0.6."""


def load_study_corpus(file: ConfigFile, config: StudyConfig) -> Corpus:
    """Load the corpus of a config.

    Args:
        file: config file of the study, with the settings of options.
        config: config of the study.

    Raises:
        CorpusError: if it cannot be loaded.
    """
    folder = file.folder_of(CORPUS)
    try:
        return load_corpus(config.corpus, folder)
    except CorpusError as error:
        if CORPUS in file.overridden:
            raise
        hint = ""
        if file.is_stored or CORPUS not in file.settings:
            origin = file.origin if file.is_stored else f"study {file.source!r}"
            hint = f"; {origin} was trained on it: give its current path with --corpus"
        elif isinstance(error.__cause__, FileNotFoundError) and Path(config.corpus).is_file():
            written = json.dumps(os.path.relpath(config.corpus, folder), ensure_ascii=False)
            hint = f"; the working directory has it: write corpus = {written} in {file.origin}"
        raise CorpusError(f"{error}{hint}") from error


def describe_unsuitable(corpus: Corpus) -> str:
    """Return a warning if a file is hardly meant as a text, judged by a sample of it, or ""."""
    if corpus.path is None:
        return ""
    starts = np.linspace(0, max(0, len(corpus.text) - _SLICE), 4, dtype=int)
    slices = [corpus.text[start : start + _SLICE].tobytes() for start in starts]
    sample = b"".join(slices)
    compressed = len(zlib.compress(sample))
    if compressed < _REPEATED * len(sample):
        return (
            f"corpus {corpus.name} repeats itself ({len(sample):,} bytes of it compress to "
            f"{compressed:,}): every network can predict it, so that their losses say little"
        )
    lines = slices[0].split(b"\n")[1:-1]  # without a header, and the line that is cut
    fields = re.split(rb'[,;\s"]+', b" ".join(lines).strip())
    numbers = [field for field in fields if re.fullmatch(rb"[-+]?[\d.]+(e[-+]?\d+)?", field, re.I)]
    if len(numbers) > _NUMERIC * len(fields):
        return (
            f"corpus {corpus.name} looks like a table of numbers: it is read as text, character by "
            "character"
        )
    return ""


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
        earlier = source.corpus
        is_same_corpus = earlier is not None and earlier.sha256 == corpus.sha256
        if config.refinement.trial is not None and earlier is not None and not is_same_corpus:
            raise CorpusError(
                f"corpus {corpus.name} has SHA-256 {corpus.sha256[:8]}…, that of study "
                f"{config.refinement.source!r} {earlier.sha256[:8]}…: a trial is run once "
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
