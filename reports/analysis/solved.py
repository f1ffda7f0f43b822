"""Which architectures are solved, and which changes solve more of them or fewer.

An architecture is solved if its value is better than the study's ``report_threshold``, or else if
it reaches the thresholds of the task. A change that has no effect on that solves or loses a matched
pair with equal probability: an exact sign test (McNemar, *Note on the Sampling Error of the
Difference between Correlated Proportions*, 1947), corrected for all changes by Holm's method.
Effects among the solved pairs alone would be wrong: they leave out just those that a change solves.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from reports.results import Results
from reports.stats.design import Contrast
from reports.stats.effects import FactorialTable
from reports.stats.estimate import CONFIDENCE, adjust_by_holm
from reports.trial_table import metric_column
from studies.records import of_task
from studies.space import REPLICATE
from studies.storage.trials import TrialStatus
from studies.traits import find_traits

_SOLVED, _UNKNOWN, _UNSOLVED = 0.0, 0.5, 1.0
"""Values of trials. The least of several is that of an architecture at its best: it is solved if
one trial is, and unknown if none is but one may yet be."""


class SolvedChange(NamedTuple):
    """Shares of the matched pairs that are solved before and after a change."""

    before: float
    after: float
    p: float
    """P-value of equal shares, corrected for all changes."""

    @property
    def is_significant(self) -> bool:
        """Whether the change solves more pairs than it loses, or fewer."""
        return self.p < 1 - CONFIDENCE


def count_solved(results: Results) -> tuple[int, int] | None:
    """Return how many architectures are solved, and of how many that is known; None if of none."""
    rows = _judge_solved(results)
    if rows is None:
        return None
    known = rows["value"] != _UNKNOWN
    return int((rows["value"] == _SOLVED).sum()), int(known.sum())


def compare_solved(results: Results) -> dict[Contrast, SolvedChange]:
    """Compare the shares that are solved before and after each change.

    There are none in a pruned study, and in one that does not say when a trial is solved.
    """
    rows = _judge_solved(results)
    parameters = results.judged_parameters
    if rows is None:
        return {}
    table = FactorialTable.from_frame(rows, parameters, traits=find_traits(parameters))
    shares: dict[Contrast, tuple[float, float]] = {}
    p_values = []
    for contrast in table.list_contrasts():
        values = table.values[table.match_contrast(contrast).trials]  # (2, pairs)
        before, after = values[:, (values != _UNKNOWN).all(axis=0)] == _SOLVED
        if not len(before):
            continue
        gained = int((after & ~before).sum())
        lost = int((before & ~after).sum())
        p_values.append(stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0)
        shares[contrast] = float(before.mean()), float(after.mean())
    adjusted = adjust_by_holm(np.array(p_values)).tolist()
    return {
        contrast: SolvedChange(*ends, p)
        for (contrast, ends), p in zip(shares.items(), adjusted, strict=True)
    }


def describe_solved(results: Results) -> str:
    """Say when an architecture is solved, for a reader: ``validation loss below 1.9 nats``."""
    measure = results.measure
    threshold = of_task(results.config.report_threshold)
    task = results.config.task_record
    if threshold is None and task is not None:
        return task.solved_text
    side = "above" if measure.higher_is_better else "below"
    limit = f"{threshold:.10g}".replace("-", "−")
    return f"{measure.name} {side} {limit} {measure.unit}".rstrip()


def _judge_solved(results: Results) -> pd.DataFrame | None:
    """Return a row for each architecture at its best, with its solved value; None without any.

    Replicates count as one trial. It is solved if all of those runs are that every architecture
    has: of more runs, one fails more easily.
    """
    solved = _find_solved(results)
    if solved is None or results.is_pruned:
        return None
    rows = results.judge() if results.has_replicates else results.table
    is_complete = rows["state"] == TrialStatus.COMPLETE
    is_known = is_complete | (rows["state"] == TrialStatus.DIVERGED)
    choices = [is_complete & solved[rows.index], is_known]
    rows = rows.assign(value=np.select(choices, [_SOLVED, _UNSOLVED], _UNKNOWN))
    if not results.has_replicates:
        return results.judge(rows, higher_is_better=False)
    counts = rows.groupby(REPLICATE)["architecture"].nunique()
    shared = counts.index[counts == rows["architecture"].nunique()]
    rows = rows[rows[REPLICATE].isin(shared)].sort_values("value", ascending=False)
    return rows.drop_duplicates("architecture")


def _find_solved(results: Results) -> "pd.Series[bool] | None":
    """Return whether each trial is solved; None if neither study nor task says when."""
    table = results.table
    task = results.config.task_record
    threshold = of_task(results.config.report_threshold)
    if threshold is not None:
        losses = pd.Series(results.measure.to_loss(table["value"]), table.index)
        solved: pd.Series[bool] = losses < results.measure.to_loss(threshold)
        return solved
    if task is None or not task.solved:
        return None
    columns = {metric_column("validation", name): name for name in task.solved}
    if not columns.keys() <= set(table):
        return None
    found = [
        task.has_solved({name: row[column] for column, name in columns.items()})
        for row in table[list(columns)].to_dict("records")
    ]
    return pd.Series(found, table.index, dtype=bool)
