"""Byte-pair encoding: bytes ↔ tokens.

It needs the standard library only, because exports of networks include this file.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, pairwise

PRETOKENIZE_PATTERN = (
    b" ?[A-Za-z\x80-\xff]{1,63}| ?[0-9]{1,63}| ?[!-/:-@\\[-`{-~]{1,63}|[\\x00-\\x20\\x7f]{1,64}"
)
"""Pieces that a text is cut into first; no token spans two of them.

A piece is a word, a number or punctuation, with the space before it, or white space. Letters are
ASCII letters and all bytes that are not ASCII. Pieces have at most 64 bytes, because the time to
encode one grows with the square of its length.
"""

MAX_TOKEN_BYTES = 64

_CACHED_PIECES = 2**18
"""Number of pieces whose tokens are cached: the words of a language recur."""


class BPE:
    """Byte-pair encoding (Gage, *A New Algorithm for Data Compression*, 1994).

    Whatever the merges are, every text can be encoded and is decoded to the same bytes.

    Args:
        merges: pairs of tokens to merge, the highest priority first. Tokens 0 to 255 are the bytes;
            each merge adds the next token, unless a token of the same bytes exists.

    Attributes:
        merges: the merges.
        tokens: the bytes of each token.

    Raises:
        ValueError: if a merge refers to a token that does not exist yet, or makes one of more than
            ``MAX_TOKEN_BYTES``.
    """

    def __init__(self, merges: Sequence[tuple[int, int]]) -> None:
        self.merges = merges
        self.tokens = [bytes([byte]) for byte in range(256)]
        token_ids = {token: token_id for token_id, token in enumerate(self.tokens)}
        self._ranks: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, (left, right) in enumerate(merges):
            size = len(self.tokens)
            if not (0 <= left < size and 0 <= right < size):
                raise ValueError(f"merge {rank} is of {left} and {right}: expected tokens < {size}")
            merged = self.tokens[left] + self.tokens[right]
            if len(merged) > MAX_TOKEN_BYTES:
                raise ValueError(
                    f"merge {rank} makes {len(merged)} bytes: expected {MAX_TOKEN_BYTES} or fewer"
                )
            if merged not in token_ids:
                token_ids[merged] = size
                self.tokens.append(merged)
            self._ranks.setdefault((left, right), (rank, token_ids[merged]))
        self._encode_piece = lru_cache(_CACHED_PIECES)(self._apply_merges)

    def encode(self, text: bytes | memoryview) -> Iterator[int]:
        """Yield the tokens of a text."""
        pieces = map(re.Match.group, re.finditer(PRETOKENIZE_PATTERN, text))
        return chain.from_iterable(map(self._encode_piece, pieces))

    def decode(self, tokens: Iterable[int]) -> bytes:
        """Return the text of tokens."""
        return b"".join(map(self.tokens.__getitem__, tokens))

    def _apply_merges(self, piece: bytes) -> tuple[int, ...]:
        """Merge pairs in a piece, always the one of highest priority, from the left."""
        tokens = list(piece)
        no_merge = math.inf, 0
        while len(tokens) > 1:
            ranks = [self._ranks.get(pair, no_merge) for pair in pairwise(tokens)]
            best = min(ranks)
            if best is no_merge:
                break
            start = ranks.index(best)
            tokens[start : start + 2] = [best[1]]
        return tuple(tokens)
