"""Further runs of a study's architectures, from which the noise between runs is estimated."""

from collections.abc import Sequence

import pandas as pd

from reports.data.results import Results
from reports.stats.scale import is_missing
from studies.space import CELL, GATED_CELL


def find_replicates(results: Results, others: Sequence[Results]) -> pd.DataFrame | None:
    """Find the replicates of a study's architectures in other studies.

    Studies count that train with the same objective, data and training settings.
    Nuisance parameters may have any value: a study of replicates has the best ones.

    Args:
        results: results of the study; one of replicates has its own runs.
        others: studies on the same page.

    Returns:
        One row per complete trial with the parameters, ``replicate`` and ``value``; None without a
        study of replicates.
    """
    if results.has_replicates:
        return results.complete
    found = [
        _select_architectures(results, other)
        for other in others
        if other.has_replicates and _is_comparable(results, other)
    ]
    found = [rows for rows in found if len(rows)]
    return pd.concat(found, ignore_index=True) if found else None


def _is_comparable(results: Results, other: Results) -> bool:
    """Return whether two studies train and judge a network alike, but for their parameters."""
    ours, theirs = results.config, other.config
    varied = {*results.all_parameters, *other.all_parameters, *ours.nuisance}
    return (
        results.data == other.data
        and ours.objective == theirs.objective
        and (ours.objective == "training" or ours.evaluation == theirs.evaluation)
        and ours.gate_inputs == theirs.gate_inputs
        and all(theirs.cells.get(name, cell) == cell for name, cell in ours.cells.items())
        and ours.training.model_dump(exclude=varied) == theirs.training.model_dump(exclude=varied)
    )


def _select_architectures(results: Results, other: Results) -> pd.DataFrame:
    """Return the runs that have the study's values of all parameters that it does not vary."""
    rows = other.complete
    defaults = {CELL: GATED_CELL} | results.config.training.model_dump()
    names = {*results.all_parameters, *other.all_parameters}
    for name in names.difference(results.axes, results.config.nuisance):
        fixed = results.table[name].iloc[0] if name in results.table else defaults.get(name)
        values = rows[name].tolist() if name in rows else [fixed] * len(rows)
        rows = rows[[is_missing(v) if is_missing(fixed) else v == fixed for v in values]]
    return rows
