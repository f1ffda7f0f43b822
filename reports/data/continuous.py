"""Parameters of many values, such as learning rates that a sampler has drawn."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

MAX_LEVELS = 20
"""Number of values of a number above which it is continuous: each value has few trials."""

MAX_TEXTS = 10
"""Number of texts above which a parameter is not contrasted: each two would be compared."""


def is_continuous(column: "pd.Series[Any]") -> bool:
    """Return whether a parameter is a number of more values than can be compared one by one."""
    values = column.dropna().unique()
    return len(values) > MAX_LEVELS and not isinstance(values[0], bool | str)


def has_levels(values: Sequence[Any]) -> bool:
    """Return whether the distinct values of a parameter are few enough to contrast them."""
    is_text = bool(values) and isinstance(values[0], str)
    return len(values) <= (MAX_TEXTS if is_text else MAX_LEVELS)
