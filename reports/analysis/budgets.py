"""Effects of settings that change how much data, or how many updates, a number of steps has.

At equal steps a larger batch has read more tokens, and a longer distance between updates has had
fewer of them. The curves say what each network reached earlier: at the largest number of tokens,
or of updates, that all compared trials have reached (Shallue et al., *Measuring the Effects of Data
Parallelism on Neural Network Training*, 2019, compare batch sizes by steps and by examples).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.analysis.nuisance import build_table
from reports.data.results import BUDGET_PARAMS, Results
from reports.stats.design import Contrast
from reports.stats.effects import Effect


@dataclass(frozen=True)
class Budget:
    """An amount of training at which networks are compared.

    Attributes:
        unit: what is counted: ``steps``, ``updates``, and ``tokens`` or ``inputs``.
        amount: the largest number that all compared trials have reached.
    """

    unit: str
    amount: float


@dataclass(frozen=True)
class BudgetEffect:
    """Effects of one change on the smoothed training loss, at several budgets.

    Attributes:
        contrast: the change.
        effects: effect at each budget, in their order.
    """

    contrast: Contrast
    effects: list[Effect]


@dataclass(frozen=True)
class BudgetComparison:
    """Effects at equal steps, next to those at equal tokens and at equal updates.

    Attributes:
        budgets: the budgets, steps first; others only where trials differ in them at equal steps.
        rows: effects of each change that such a budget depends on.
    """

    budgets: list[Budget]
    rows: list[BudgetEffect]


def compare_budgets(results: Results) -> BudgetComparison | None:
    """Compare the effects of batch size and update distance at equal budgets.

    Only complete trials are compared, each at its curve's value, interpolated between log points.

    Returns:
        None if no trials differ in a budget, if some were pruned, or without their curves.
    """
    if not results.varies_budget or results.is_pruned:
        return None
    complete = results.complete
    curves = {
        number: (points["step"].to_numpy(dtype=float), points["loss"].to_numpy(dtype=float))
        for number, points in results.curves.groupby("number")
        if number in complete.index
    }
    if len(curves) < len(complete):
        return None
    rates = find_rates(results)
    ends = pd.Series({number: steps[-1] for number, (steps, _) in curves.items()})
    varied = [unit for unit in rates if unit == "steps" or rates[unit].nunique() > 1]
    contrasts = build_table(results, results.judge(results.table)).list_contrasts()
    changed = [
        contrast
        for contrast in contrasts
        if contrast.parameter in BUDGET_PARAMS
        and any(_differs(complete, rates[unit], contrast) for unit in varied)
    ]
    budgets, tables = [], []
    for unit in varied:
        amount = float((ends * rates[unit]).min())
        losses = {
            number: np.interp(amount / rates[unit][number], steps, values, left=np.nan)
            for number, (steps, values) in curves.items()
        }
        rows = results.table.assign(value=pd.Series(losses).reindex(results.table.index))
        budgets.append(Budget(unit, amount))
        tables.append(build_table(results, results.judge(rows)))
    found = [
        BudgetEffect(contrast, [table.compute_effect(contrast) for table in tables])
        for contrast in changed
    ]
    found = [row for row in found if all(effect.pairs for effect in row.effects)]
    return BudgetComparison(budgets, found) if found and len(budgets) > 1 else None


def find_rates(results: Results) -> pd.DataFrame:
    """Return how much of each budget a step of each complete trial has, by its unit."""
    complete, training = results.complete, results.config.training
    steps = complete["steps"].fillna(training.steps)
    sizes = complete.get("batch_size", training.batch_size)
    data = f"{results.config.token_name}s" if results.config.is_text else "inputs"
    rates = {
        "steps": pd.Series(1.0, complete.index),
        data: (complete["inputs"] / steps).fillna(sizes),
        "updates": (complete["updates"] / steps).fillna(1),  # older studies: one for each step
    }
    return pd.DataFrame(rates).astype(float)


def _differs(complete: pd.DataFrame, rates: "pd.Series[float]", contrast: Contrast) -> bool:
    """Return whether trials before and after a change differ in a budget at equal steps."""
    column = complete[contrast.parameter]
    before, after = (
        {round(rate, 9) for rate in rates[(column == value).fillna(False).astype(bool)]}
        for value in (contrast.before, contrast.after)
    )
    return before != after
