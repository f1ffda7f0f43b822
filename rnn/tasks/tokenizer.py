"""Tokenizers: bytes, or byte pairs learnt from a text."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from rnn.config import BYTE_VOCAB_SIZE
from rnn.errors import UserError
from rnn.tasks.bpe import BPE, PRETOKENIZE_PATTERN
from rnn.tasks.corpus import ByteArray

TokenArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""Tokens of a text: bytes, or uint16 for a larger vocabulary."""

_FORMAT_VERSION = "bpe-1"
_CHUNK_SIZE = 2**20
"""Bytes of text that are handed to the trainer at once."""


class Tokenizer:
    """A lossless map between bytes and tokens: byte pairs, or the bytes if there are no merges.

    Args:
        merges: pairs of tokens to merge; see :class:`rnn.tasks.bpe.BPE`.

    Attributes:
        bpe: the byte-pair encoding.
        size: V, the number of tokens.
        token_byte_lengths: the number of bytes of each token (V,).
    """

    def __init__(self, merges: Sequence[tuple[int, int]] = ()) -> None:
        self.bpe = BPE(merges)
        self.size = len(self.bpe.tokens)
        self.token_byte_lengths = np.array([len(token) for token in self.bpe.tokens], np.int64)

    @property
    def serialized(self) -> str | None:
        """The tokenizer as :func:`load_tokenizer` reads it; None for bytes."""
        if not self.bpe.merges:
            return None
        content = {"format_version": _FORMAT_VERSION, "merges": self.bpe.merges}
        return json.dumps(content, separators=(",", ":"))

    def encode(self, text: ByteArray) -> TokenArray:
        """Return the tokens (m,) of a text (n,); bytes are not copied."""
        if not self.bpe.merges:
            return text
        # Not by the package tokenizers, which takes six times as long.
        tokens = self.bpe.encode(np.ascontiguousarray(text).data)
        return np.fromiter(tokens, np.uint16)

    def decode(self, tokens: Iterable[int]) -> bytes:
        """Return the text of tokens."""
        return self.bpe.decode(tokens)


def train_tokenizer(name: str, training_text: ByteArray) -> Tokenizer:
    """Make the tokenizer of a name; deterministic for a given text.

    Args:
        name: ``bytes``, or ``bpe:N`` for byte-pair encoding (Sennrich et al., *Neural Machine
            Translation of Rare Words with Subword Units*, 2016) with N tokens, or fewer if the
            text has no more pairs.
        training_text: text (n,) to learn the pairs from.
    """
    if name == "bytes":
        return Tokenizer()
    size = int(name.removeprefix("bpe:"))
    return Tokenizer(_train_bpe(training_text, size))


def load_tokenizer(serialized: str | None) -> Tokenizer:
    """Read a serialized tokenizer; None stands for bytes.

    Raises:
        UserError: if it is damaged.
    """
    if serialized is None:
        return Tokenizer()
    try:
        content = json.loads(serialized)
        if content["format_version"] != _FORMAT_VERSION:
            raise ValueError(f"format version is {str(content['format_version'])[:20]!r}")
        return Tokenizer([(left, right) for left, right in content["merges"]])
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(
            f"tokenizer cannot be read ({error}): expected format version {_FORMAT_VERSION!r}"
        ) from error


def _train_bpe(text: ByteArray, size: int) -> list[tuple[int, int]]:
    import tokenizers  # here: only the creation of a study needs it
    from tokenizers import Regex, models, pre_tokenizers, trainers

    # Avoids the library's warning when a process is forked later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    learner = tokenizers.Tokenizer(models.BPE())
    pattern = Regex(PRETOKENIZE_PATTERN.decode("latin-1"))
    learner.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    # The library takes characters: each byte becomes the character of its number, so that bytes
    # need not be UTF-8.
    alphabet = [chr(byte) for byte in range(BYTE_VOCAB_SIZE)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    learner.train_from_iterator(_chunks(text), trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    token_ids = {character: byte for byte, character in enumerate(alphabet)}
    pairs = []
    for left, right in merges:
        pairs.append((token_ids[left], token_ids[right]))
        token_ids.setdefault(left + right, len(token_ids))
    return pairs


def _chunks(text: ByteArray) -> Iterator[str]:
    for first in range(0, len(text), _CHUNK_SIZE):
        yield text[first : first + _CHUNK_SIZE].tobytes().decode("latin-1")
