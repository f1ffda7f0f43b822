"""Held-out losses of architectures against their cost: parameters, or computing time."""

from collections.abc import Sequence
from statistics import mode
from typing import Literal

import numpy as np
import pandas as pd

from reports.analysis.leaderboard import LeaderboardEntry
from reports.results import Results
from reports.stats import Floats, Integers
from reports.trial_table import list_conditions

Cost = Literal["parameters", "seconds"]
"""Cost of an architecture: its weights and biases, or the computing time of a run in seconds."""

COSTS: tuple[Cost, ...] = ("parameters", "seconds")


def find_front(costs: Floats, losses: Floats) -> Integers:
    """Find the indices of what nothing of the same cost or less beats, the cheapest first.

    What has no cost or no loss is left out; of equal costs and losses the first is taken.
    """
    order = np.lexsort((losses, costs))
    order = order[np.isfinite(costs[order]) & np.isfinite(losses[order])]
    least = np.minimum.accumulate(losses[order])
    least_before = np.concatenate([[np.inf], least])[:-1]
    front: Integers = order[losses[order] < least_before]
    return front


def list_costs(results: Results, entries: Sequence[LeaderboardEntry]) -> tuple[pd.DataFrame, str]:
    """List the architectures with a held-out loss, and their costs.

    Times compare between runs under the same conditions: those of others are left out.

    Args:
        results: results of the study.
        entries: its architectures, each at its best values of the nuisance parameters.

    Returns:
        One row per architecture, the best first: ``architecture``, its ``trial``, ``parameters``,
        ``seconds`` of a run (NaN where it ran under other conditions) and ``loss``; and the most
        common conditions, "" if none are recorded.
    """
    conditions = list_conditions(results.judge(results.complete))
    common = mode([text for text in conditions.values() if text] or [""])
    rows = [
        {
            "architecture": entry.label,
            "trial": entry.number,
            "parameters": entry.parameter_count,
            "seconds": entry.seconds if common and conditions[entry.label] == common else np.nan,
            "loss": entry.validation_loss if results.metric.is_value else entry.mean,
        }
        for entry in entries
    ]
    columns = ["architecture", "trial", "parameters", "seconds", "loss"]
    table = pd.DataFrame(rows, columns=columns)
    return table[np.isfinite(table["loss"].to_numpy(dtype=float))], common
