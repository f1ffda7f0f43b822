"""A synthetic corpus in which only the token exactly D steps before is informative.

Each position is, with probability one half and independently of all others, a *letter* or an
*answer*. A letter is one of ``abcdefgh``, at random. An answer is one of ``ABCDEFGH``: the capital
of the token D steps before if that is a letter, and random otherwise. In the first case it is a
*recall position*. So a letter is repeated at most once, at one distance; the type of a token, all
letters and all other answers are independent of the entire past, and a network predicts the answers
at recall positions better than by chance, one in eight, only as far as it remembers the token of D
steps before. It is the delayed recall of Hochreiter & Schmidhuber, *Long Short-Term Memory*, 1997,
section 5, and of the copying problem in Arjovsky et al., *Unitary Evolution Recurrent Neural
Networks*, 2016, as a stream that is predicted token by token.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from rnn.errors import CorpusError

RECALL = "recall:"
"""Prefix of the corpus's name; the distance follows."""

RECALL_LENGTH = 1_000_000
"""Number of bytes of a corpus."""

MAX_DISTANCE = 1000

LETTERS = np.frombuffer(b"abcdefgh", np.uint8)
ANSWERS = np.frombuffer(b"ABCDEFGH", np.uint8)
"""The bytes of letters and of their answers, in the same order."""


def parse_distance(name: str) -> int | None:
    """Return the distance D of ``recall:D``; None for the name of another corpus.

    Raises:
        CorpusError: if the distance is not a number from 1 to :data:`MAX_DISTANCE`.
    """
    if not name.startswith(RECALL):
        return None
    text = name.removeprefix(RECALL)
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_DISTANCE))
    if not is_number or not 1 <= int(text) <= MAX_DISTANCE:
        raise CorpusError(
            f"corpus {name!r} has no valid distance: expected a number from 1 to {MAX_DISTANCE}, "
            "as in recall:8; give a file of this name as ./FILE"
        )
    return int(text)


def generate_recall(distance: int) -> npt.NDArray[np.uint8]:
    """Generate the text of a distance, the same on every machine and with every version of NumPy.

    Returns:
        Bytes (RECALL_LENGTH,).
    """
    # An extendable hash function: NumPy does not promise the same numbers in its next version.
    stream = hashlib.shake_128(f"{RECALL}{distance}".encode()).digest(RECALL_LENGTH)
    random = np.frombuffer(stream, np.uint8)
    is_answer = random >= 128
    values = random % len(LETTERS)
    copied = values.copy()
    copied[distance:] = np.where(is_answer[:-distance], values[distance:], values[:-distance])
    return np.where(is_answer, ANSWERS[copied], LETTERS[values])


def find_recall_positions(tokens: npt.NDArray[np.integer], distance: int) -> npt.NDArray[np.bool_]:
    """Return which tokens are answers that repeat a letter of D steps before.

    Args:
        tokens: bytes (n, …), along the first axis in the order of the text.
        distance: D. The first D tokens are no recall positions, since what they repeat is unknown.

    Returns:
        (n, …)
    """
    found = np.isin(tokens, ANSWERS)
    found[distance:] &= np.isin(tokens[:-distance], LETTERS)
    found[:distance] = False
    return found
