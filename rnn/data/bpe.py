"""Byte pairs put together in the order in which they were learnt: bytes ↔ symbols.

It needs nothing but Python: whoever is handed a network is handed this file too.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, pairwise

PIECES = (
    b" ?[A-Za-z\x80-\xff]{1,63}| ?[0-9]{1,63}| ?[!-/:-@\\[-`{-~]{1,63}|[\\x00-\\x20\\x7f]{1,64}"
)
"""What a text is cut into first, so that no symbol reaches over two: a word, a number, or signs,
with the space before it; or white space. Letters are ASCII's, and whatever is no ASCII. Pieces are
of 64 bytes at most, for the time that a piece takes grows with its square."""

_LONGEST = 64

_REMEMBERED = 2**18
"""Pieces whose symbols are kept: those of a language come again and again."""


class BPE:
    """A vocabulary of byte pairs (Gage, *A New Algorithm for Data Compression*, 1994).

    Whatever its merges are, every text is encoded, and decoded to the same bytes.

    Args:
        merges: the two symbols that are put together, in the order in which they were learnt. The
            symbols 0 to 255 are the bytes; a merge makes the next one, unless what it makes is
            there already.

    Attributes:
        merges: the same.
        tokens: the bytes of each symbol.

    Raises:
        ValueError: if a merge is of symbols that are not there yet, or makes one that is longer
            than any piece.
    """

    def __init__(self, merges: Sequence[tuple[int, int]]) -> None:
        self.merges = merges
        self.tokens = [bytes([byte]) for byte in range(256)]
        numbers = {token: number for number, token in enumerate(self.tokens)}
        self._ranks: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, (left, right) in enumerate(merges):
            if not (0 <= left < len(self.tokens) and 0 <= right < len(self.tokens)):
                raise ValueError(f"merge {rank} is of {left} and {right}, and one is no symbol yet")
            made = self.tokens[left] + self.tokens[right]
            if len(made) > _LONGEST:
                raise ValueError(f"merge {rank} makes {len(made)} bytes; allowed: {_LONGEST}")
            if made not in numbers:
                numbers[made] = len(self.tokens)
                self.tokens.append(made)
            self._ranks.setdefault((left, right), (rank, numbers[made]))
        self._known = _Remembered(self._merged)

    def encode(self, text: bytes | memoryview) -> Iterator[int]:
        """Yield the symbols of a text."""
        pieces = map(re.Match.group, re.finditer(PIECES, text))
        return chain.from_iterable(map(self._known.__getitem__, pieces))

    def decode(self, tokens: Iterable[int]) -> bytes:
        """Return the bytes of symbols."""
        return b"".join(map(self.tokens.__getitem__, tokens))

    def _merged(self, piece: bytes) -> tuple[int, ...]:
        """Put pairs together, always the one that was learnt first, from the left."""
        tokens = list(piece)
        never = math.inf, 0
        while len(tokens) > 1:
            ranks = [self._ranks.get(pair, never) for pair in pairwise(tokens)]
            first = min(ranks)
            if first is never:
                break
            at = ranks.index(first)
            tokens[at : at + 2] = [first[1]]
        return tuple(tokens)


class _Remembered(dict[bytes, tuple[int, ...]]):
    """What a function makes of pieces, worked out once."""

    def __init__(self, function: Callable[[bytes], tuple[int, ...]]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, piece: bytes) -> tuple[int, ...]:
        made = self._function(piece)
        if len(self) < _REMEMBERED:
            self[piece] = made
        return made
