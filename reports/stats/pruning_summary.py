"""What pruning did to a study, and what its effects rest on."""

import math
from dataclasses import dataclass

import pandas as pd
from optuna.trial import TrialState

from reports.charts.effect_subsets import EffectSubset, compute_effect_subset
from reports.data.results import Results
from reports.data.trial_table import DIVERGED
from reports.stats.effects import FactorialTable
from studies.config import top_count


@dataclass(frozen=True)
class PruningSummary:
    """What pruning did to a study.

    Attributes:
        top_count: how many points were to be kept.
        expected: of these, the share that is expected to be complete, by what was foretold when
            the others were pruned; NaN until every point is finished, and where nothing was.
        cost: the share of the steps of all points that was trained.
        rungs: a row a step at which points were pruned: ``step``, ``points`` and
            ``keep_probability``, the
            sum of their chances to end among the best.
        told: complete points that were paused once, and of which something was foretold then.
        off: by how much what was foretold of these was off, mean of the amounts, nats.
        common_step: to which every point has come that has a curve and did not fail.
        early: what each change is worth at that step, over all these points.
        absent: points that have not come there.
    """

    top_count: int
    expected: float
    cost: float
    rungs: pd.DataFrame
    told: int
    off: float
    common_step: int
    early: EffectSubset | None
    absent: int


def summarize_pruning(results: Results) -> PruningSummary | None:
    """Return what pruning did; None where it was not enabled."""
    settings = results.config.pruning
    if not settings.enabled:
        return None
    table, complete = results.table, results.complete
    kept = top_count(settings.keep, len(table))
    pruned = table[table["state"] == TrialState.PRUNED.name]
    rungs = pruned.groupby("rung")["keep_probability"].agg(["size", "sum"]).reset_index()
    told = complete.dropna(subset=["predicted_value"])
    last = results.curves.groupby("number")["step"].max()
    failed = table.index[table["state"].isin([DIVERGED, TrialState.FAIL.name])]
    common = last.drop(failed, errors="ignore")
    counts = results.counts
    is_known = counts.finished == counts.planned and not pruned["keep_probability"].isna().any()
    steps = results.config.training.steps
    common_step = int(common.min()) if len(common) else 0
    return PruningSummary(
        top_count=kept,
        expected=1 - float(pruned["keep_probability"].sum()) / kept if is_known else math.nan,
        cost=float(last.reindex(table.index).fillna(0).sum()) / (steps * len(table)),
        rungs=rungs.set_axis(["step", "points", "keep_probability"], axis=1),
        told=len(told),
        off=float((told["predicted_value"] - told["value"]).abs().mean())
        if len(told)
        else math.nan,
        common_step=common_step,
        early=_early(results, common_step),
        absent=len(table) - len(common),
    )


def _early(results: Results, step: int) -> EffectSubset | None:
    """Return what each change is worth at a step, by the loss there."""
    there = results.curves[results.curves["step"] == step].set_index("number")["loss"]
    table = results.table.assign(value=there.reindex(results.table.index))
    part = compute_effect_subset(
        results, FactorialTable.from_frame(table, results.axes), {}, None, "early"
    )
    return part if part.effects else None
