"""What the lanes read at one step, told by the symbols that occur.

B is the number of lanes, U the number of distinct symbols, V the size of the vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_GRANULE = 16
"""Distinct symbols are counted up to a multiple of this, so that products have but few shapes."""


class Symbols(NamedTuple):
    """What the lanes read at one step.

    Attributes:
        distinct: (U,) the symbols that are read; one may stand there more than once.
        rows: (B,) for each lane the one of the U that it reads; None if lane b reads the b-th.
    """

    distinct: Tensor
    rows: Tensor | None = None

    @classmethod
    def of(cls, symbols: Tensor) -> "Symbols":
        """Return what lanes with these symbols (B,) read: most symbols are read by many lanes."""
        occurs = torch.bincount(symbols) > 0  # (at most V,)
        distinct = occurs.nonzero()[:, 0]
        rows = (occurs.cumsum(0) - 1)[symbols.long()]
        over = -len(distinct) % _GRANULE
        return cls(torch.cat((distinct, distinct[:1].expand(over))), rows)
