"""What a network reads one of at each step: bytes, or tokens that are learnt from a text."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from rnn.config import BYTE_VOCAB_SIZE
from rnn.data.bpe import BPE, PIECES
from rnn.data.corpus import Bytes, Corpus, TokenArray
from rnn.errors import CorpusError, TokenizerError

_FORM = "byte pairs 1"
_LARGEST = 2**16
_CHUNK = 2**20
"""Bytes of text that a learner is handed at once."""


class Tokenizer(Protocol):
    """A finite set of symbols that every text can be written in, and read back byte for byte."""

    @property
    def size(self) -> int:
        """V, the number of symbols."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The number of bytes of each symbol (V,)."""

    @property
    def serialized(self) -> str | None:
        """What :func:`load_tokenizer` makes the same vocabulary of."""

    def encode(self, text: Bytes) -> TokenArray:
        """Return the symbols (m,) of a text (n,)."""

    def decode(self, tokens: Iterable[int]) -> bytes:
        """Return the text of symbols."""


class ByteTokenizer:
    """Each byte is a symbol; nothing is copied."""

    size = BYTE_VOCAB_SIZE
    serialized = None

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """One for each symbol (256,)."""
        return np.ones(BYTE_VOCAB_SIZE, np.int64)

    def encode(self, text: Bytes) -> TokenArray:
        """Return the text itself."""
        return text

    def decode(self, tokens: Iterable[int]) -> bytes:
        """Return the bytes."""
        return bytes(tokens)


class BPETokenizer:
    """Bytes, and what is made of them by merging pairs.

    Args:
        pairs: that are merged.
    """

    def __init__(self, pairs: BPE) -> None:
        self.pairs = pairs

    @property
    def size(self) -> int:
        """V, the number of symbols."""
        return len(self.pairs.tokens)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The number of bytes of each symbol (V,)."""
        return np.array([len(token) for token in self.pairs.tokens], np.int64)

    @cached_property
    def serialized(self) -> str:
        """The merges, as JSON."""
        content = {"form": _FORM, "merges": self.pairs.merges}
        return json.dumps(content, separators=(",", ":"))

    def encode(self, text: Bytes) -> TokenArray:
        """Return the symbols (m,) of a text (n,)."""
        tokens = self.pairs.encode(np.ascontiguousarray(text).data)
        return np.fromiter(tokens, np.uint16)

    def decode(self, tokens: Iterable[int]) -> bytes:
        """Return the text of symbols."""
        return self.pairs.decode(tokens)


def train_tokenizer(name: str, training_text: Bytes) -> Tokenizer:
    """Make the vocabulary of a name: the same one of the same text, whoever does it.

    Args:
        name: ``bytes``, or ``bpe:N`` for the bytes and what the most frequent pairs are merged to
            (Sennrich et al., *Neural Machine Translation of Rare Words with Subword Units*, 2016),
            N symbols in all, or fewer if the text has no more pairs.
        training_text: (n,), from which pairs are learnt.
    """
    if name == "bytes":
        return ByteTokenizer()
    size = int(name.removeprefix("bpe:"))
    return BPETokenizer(BPE(_learn_merges(training_text, size)))


def load_tokenizer(written: str | None) -> Tokenizer:
    """Return the vocabulary that was written down; of None the bytes.

    Raises:
        TokenizerError: if it is damaged.
    """
    if written is None:
        return ByteTokenizer()
    try:
        content = json.loads(written)
        if content["form"] != _FORM:
            raise ValueError(f"it has the form {content['form']!r}")
        pairs = BPE([(int(left), int(right)) for left, right in content["merges"]])
        if len(pairs.tokens) > _LARGEST:
            raise ValueError(f"it has {len(pairs.tokens):,} symbols")
    except (ValueError, TypeError, LookupError) as error:
        raise TokenizerError(
            f"a vocabulary cannot be read ({error}); allowed: the form {_FORM!r} and its merges, "
            f"{_LARGEST:,} symbols at most; take a sound copy"
        ) from error
    return BPETokenizer(pairs)


def _learn_merges(text: Bytes, size: int) -> list[tuple[int, int]]:
    # Imported here, as only who makes a study learns. It takes characters: each byte is the one of
    # its number, so that bytes that are no UTF-8 are as good as others.
    import tokenizers
    from tokenizers import Regex, models, pre_tokenizers, trainers

    # Said by whoever uses threads of its own, or a process that is forked later is warned of them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES.decode("latin-1")), "isolated")
    alphabet = [chr(byte) for byte in range(BYTE_VOCAB_SIZE)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    learner.train_from_iterator(_chunks(text), trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    numbers = {character: byte for byte, character in enumerate(alphabet)}
    learnt = []
    for left, right in merges:
        learnt.append((numbers[left], numbers[right]))
        numbers.setdefault(left + right, len(numbers))
    return learnt


def _chunks(text: Bytes) -> Iterator[str]:
    for first in range(0, len(text), _CHUNK):
        yield text[first : first + _CHUNK].tobytes().decode("latin-1")


@dataclass(frozen=True)
class TokenCorpus:
    """A corpus in the symbols of a vocabulary; a split is read when it is first asked for.

    Attributes:
        corpus: the bytes.
        tokenizer: of the symbols.
    """

    corpus: Corpus
    tokenizer: Tokenizer

    @cached_property
    def train(self) -> TokenArray:
        """The symbols of the training split."""
        return self.tokenizer.encode(self.corpus.train)

    @cached_property
    def validation(self) -> TokenArray:
        """The symbols of the validation split."""
        return self.tokenizer.encode(self.corpus.validation)

    @cached_property
    def test(self) -> TokenArray:
        """The symbols of the test split."""
        return self.tokenizer.encode(self.corpus.test)

    def require(
        self,
        sequence_length: int,
        window_length: int,
        evaluate: Literal["validation", "test"] = "validation",
    ) -> None:
        """Refuse a text too short for one sequence, and one lane of evaluation.

        Args:
            sequence_length: of training, in symbols.
            window_length: of evaluation, in symbols.
            evaluate: ``test`` if the test split is to be read too.

        Raises:
            CorpusError: with the lengths that there are.
        """
        lane = window_length, "evaluation.window_length"
        needed = {"train": (sequence_length, "training.sequence_length"), "validation": lane}
        needed[evaluate] = lane
        for split, (length, setting) in needed.items():
            count = len(getattr(self, split))
            if count < length:
                raise CorpusError(
                    f"corpus {self.corpus.name} has {count:,} tokens of a vocabulary of "
                    f"{self.tokenizer.size:,} in its {split} split; allowed: {length:,} or more; "
                    f"take a longer text, a smaller vocabulary or a smaller {setting}"
                )
