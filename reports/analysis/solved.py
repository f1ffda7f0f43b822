"""Which runs are solved, and which changes solve more of them.

If a task says when it is solved, its runs are compared by that and not by their losses. The
``report_threshold`` of a study is another question about the same runs, which changes nothing else.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from reports.results import Results
from reports.stats.design import Contrast
from reports.stats.effects import Effect, FactorialTable
from reports.stats.estimate import adjust_estimates
from reports.stats.shares import SolvedRuns
from studies.measure import Measure
from studies.records import of_task


def arrange_outcomes(results: Results, outcomes: "pd.Series[float]") -> FactorialTable:
    """Arrange the outcomes of the runs of each architecture at its best nuisance values.

    They are 1 for a trial that is solved, 0 for another, NaN if that is not known.
    """
    rows = results.judge()
    rows = rows.assign(value=outcomes[rows.index])
    axes = results.judged_axes
    table = FactorialTable.from_frame(rows, axes, None, True, results.find_traits(axes))
    losses = np.array(results.losses[rows.index], dtype=float)
    kinds = results.find_kinds(rows)
    return replace(table, losses=losses, uncontrasted=results.uncontrasted, kinds=kinds)


def count_solved(outcomes: "pd.Series[float]") -> SolvedRuns:
    """Count the runs that are solved, among those of which that is known."""
    return SolvedRuns(int(outcomes.sum()), int(outcomes.count()))


def count_by_architecture(results: Results) -> dict[str, SolvedRuns]:
    """Count the solved runs of each architecture; none if the task does not say when it is solved.

    Nuisance parameters have their best values.
    """
    if results.outcomes is None:
        return {}
    rows = results.judge()
    groups = results.outcomes[rows.index].groupby(rows["architecture"])
    counts = {str(name): count_solved(outcomes) for name, outcomes in groups}
    return {name: found for name, found in counts.items() if found.runs}


def find_threshold_outcomes(results: Results) -> "pd.Series[float] | None":
    """Return whether each trial is better than the ``report_threshold``.

    None without one, and if trials were pruned: these have no outcome.
    """
    threshold = of_task(results.config.report_threshold)
    if threshold is None or results.is_pruned:
        return None
    return results.code_outcomes(results.losses < results.measure.to_loss(threshold))


def compare_by_threshold(results: Results) -> dict[Contrast, Effect]:
    """Compare the shares of runs that are better than the ``report_threshold``; may be none."""
    outcomes = find_threshold_outcomes(results)
    if outcomes is None:
        return {}
    effects = adjust_estimates(arrange_outcomes(results, outcomes).compute_effects())
    return {effect.contrast: effect for effect in effects}


def describe_threshold(threshold: float, measure: Measure) -> str:
    """Say which runs are better than a threshold: ``validation loss below 1.9 nats``."""
    side = "above" if measure.higher_is_better else "below"
    limit = f"{threshold:.10g}".replace("-", "−")
    return f"{measure.name} {side} {limit} {measure.unit}".rstrip()
