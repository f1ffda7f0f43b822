"""Which trials of a study are below its threshold, and which changes bring them there.

See :mod:`reports.stats.hypotheses`.
"""

import numpy as np
import pandas as pd

from reports.data.results import Results
from reports.data.trial_table import find_traits
from reports.stats.effects import FactorialTable
from reports.stats.hypotheses import BAD, GOOD, UNKNOWN
from reports.stats.scale import NATS, Scale
from studies.space import REPLICATE
from studies.storage.trials import TrialStatus


def list_outcomes(table: pd.DataFrame, threshold: float, scale: Scale = NATS) -> "pd.Series[float]":
    """List the outcome of each row of a trial table."""
    is_complete = table["state"] == TrialStatus.COMPLETE
    is_good = is_complete & (scale.to_loss(table["value"]) < scale.to_loss(threshold))
    is_bad = (is_complete & ~is_good) | (table["state"] == TrialStatus.DIVERGED)
    outcomes = np.select([is_good, is_bad], [GOOD, BAD], UNKNOWN)
    return pd.Series(outcomes, index=table.index, dtype=float)


def build_outcome_table(results: Results, threshold: float) -> FactorialTable:
    """Arrange the outcomes of the architectures, each at its best.

    Replicates count as one trial. It is good if all of those runs are that every architecture has:
    of more runs, one is bad more easily.

    Args:
        results: results of the study; without nuisance parameters, each trial is judged.
        threshold: loss below which a trial is good.
    """
    key = "outcomes", threshold
    if key not in results.computed:
        results.computed[key] = _arrange_outcomes(results, threshold)
    table: FactorialTable = results.computed[key]
    return table


def _arrange_outcomes(results: Results, threshold: float) -> FactorialTable:
    rows, parameters = results.table, results.judged_parameters
    rows = results.judge(rows) if results.has_replicates else rows
    rows = rows.assign(value=list_outcomes(rows, threshold, results.scale))
    if not results.has_replicates:
        rows = results.judge(rows, NATS)  # of outcomes the least is the best
    else:
        counts = rows.groupby(REPLICATE)["architecture"].nunique()
        shared = counts.index[counts == rows["architecture"].nunique()]
        rows = rows[rows[REPLICATE].isin(shared)].sort_values("value", ascending=False)
        rows = rows.drop_duplicates("architecture")
    # Outcomes have no noise to estimate, as those of a grid would.
    return FactorialTable.from_frame(
        rows, parameters, is_grid=False, traits=find_traits(parameters)
    )
