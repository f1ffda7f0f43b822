"""Savings and risks of pruning in a study."""

import math
from dataclasses import dataclass

import pandas as pd
from optuna.trial import TrialState

from reports.data.results import Results
from reports.data.trial_table import DIVERGED
from reports.stats.effects import FactorialTable
from reports.stats.nuisance import build_table
from studies.config import top_count


@dataclass(frozen=True)
class PruningSummary:
    """Savings and risks of pruning in a study.

    Attributes:
        top_count: number of best trials that pruning is to keep.
        expected_share: expected share of them that is complete, by the predictions at the time of
            pruning; NaN until every trial is finished, and without predictions or audited trials,
            which test them.
        step_share: share of the steps of all trials that was trained.
        rungs: one row per rung after which trials were pruned: ``step``, ``trials`` and
            ``keep_probability``, the sum of their probabilities of being among the best.
        common_step: last step that all trials with a curve have reached, failed ones aside.
        missing_count: number of trials that have not reached that step.
        early_table: training losses at that step.
    """

    top_count: int
    expected_share: float
    step_share: float
    rungs: pd.DataFrame
    common_step: int
    missing_count: int
    early_table: FactorialTable


def summarize_pruning(results: Results) -> PruningSummary | None:
    """Summarize the pruning of a study; None if pruning is disabled."""
    settings = results.config.pruning
    if not settings.enabled:
        return None
    table, counts = results.table, results.counts
    kept = top_count(settings.keep, len(table))
    pruned = table[table["state"] == TrialState.PRUNED.name]
    rungs = pruned.groupby("rung")["keep_probability"].agg(["size", "sum"]).reset_index()
    last_steps, common_step = results.curve_ends["last_step"], results.common_step
    failed = table.index[table["state"].isin([DIVERGED, TrialState.FAIL.name])]
    reached = last_steps.drop(failed, errors="ignore")
    early_table = table.assign(value=results.early_losses.reindex(table.index))
    is_final = counts.finished == counts.planned and not pruned["keep_probability"].isna().any()
    is_stated = is_final and table["audited"].any()
    trained_steps = float(last_steps.reindex(table.index).fillna(0).sum())
    return PruningSummary(
        top_count=kept,
        expected_share=1 - float(pruned["keep_probability"].sum()) / kept
        if is_stated
        else math.nan,
        step_share=trained_steps / (results.trained.training.steps * len(table)),
        rungs=rungs.set_axis(["step", "trials", "keep_probability"], axis=1),
        common_step=common_step,
        missing_count=len(table) - len(reached),
        early_table=build_table(results, results.judge(early_table)),
    )
