"""Which trials a page draws of a study that has more of them than a screen can show."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd

from reports.data.results import Results
from reports.stats.scale import NATS, Scale

MAX_DRAWN = 1000
"""Trials that a figure draws. Of more, it draws the best 500, and 500 spread over the others."""

_BEST = 5
"""Number of best networks of which a page may draw what they predict."""

_T = TypeVar("_T")


def select_ranked(ranked: Sequence[_T], limit: int | None = None) -> list[_T]:
    """Select the best half of a limit, and others spread evenly; all if they are no more.

    Args:
        ranked: the best first.
        limit: largest number to select; :data:`MAX_DRAWN` by default.
    """
    limit = MAX_DRAWN if limit is None else limit
    if len(ranked) <= limit:
        return list(ranked)
    best, others = ranked[: limit // 2], ranked[limit // 2 :]
    return [*best, *select_evenly(others, limit - len(best))]


def select_evenly(items: Sequence[_T], limit: int | None = None) -> list[_T]:
    """Select items that are spread evenly, the first and the last among them."""
    limit = MAX_DRAWN if limit is None else limit
    if len(items) <= limit:
        return list(items)
    places = np.linspace(0, len(items) - 1, limit).round().astype(int)
    return [items[i] for i in places.tolist()]


def select_history(
    values: "pd.Series[float]", limit: int | None = None, scale: Scale = NATS
) -> list[int]:
    """Select the numbers of trials spread evenly, and of all that were the best so far.

    Args:
        values: value of each trial, by its number in ascending order.
        limit: number of trials to spread; :data:`MAX_DRAWN` by default.
        scale: says which of two values is better.
    """
    losses = scale.to_loss(values)
    records = values.index[losses.cummin() == losses]
    return sorted({*select_evenly(values.index.tolist(), limit), *_first(records, values)})


def select_drawn_curves(results: Results) -> list[int]:
    """Select the numbers of the trials whose curves are drawn, the best first."""
    with_curve = set(results.curve_ends.index)
    return select_ranked([number for number in results.table.index if number in with_curve])


def select_predictions(results: Results) -> list[int]:
    """Select the numbers of the trials that may be drawn as the best network of an architecture.

    These are few, unless architectures have several runs, of which any may have the best mean.
    """
    rows = results.judge(results.complete)
    best = rows.index[~rows["architecture"].duplicated()]
    return [int(number) for number in best[: MAX_DRAWN if results.has_replicates else _BEST]]


def select_best_of_each(rows: pd.DataFrame, names: Iterable[str], scale: Scale = NATS) -> list[int]:
    """Select the number of the trial with the best value of each combination of parameters."""
    ranked = rows.sort_values("value", kind="stable", key=scale.to_loss)
    return [int(number) for number in ranked.drop_duplicates(list(names)).index]


def describe_selection(drawn: int, total: int) -> str:
    """Say which trials :func:`select_ranked` has selected; "" if all."""
    if drawn >= total:
        return ""
    best = drawn // 2
    return (
        f" {drawn:,} of {total:,} trials are drawn: the best {best:,}, and {drawn - best:,} spread "
        "evenly over the others."
    )


def _first(records: "pd.Index[int]", values: "pd.Series[float]") -> list[int]:
    """Return the first trial of each best value."""
    return [int(number) for number in values[records].drop_duplicates().index]
