"""Studies of which matched pairs do not compare every parameter, such as a random search.

See :mod:`reports.stats.additive_model`.
"""

from collections.abc import Sequence

from reports.data.results import Results
from reports.data.trial_table import is_continuous, to_python
from reports.stats.additive_model import AdditiveModel, fit_additive_model
from reports.stats.effects import Effect
from reports.stats.scale import is_missing


def fit_sweep(results: Results, effects: Sequence[Effect]) -> AdditiveModel | None:
    """Fit an additive model to the complete trials; None where matched pairs suffice.

    They do not if a parameter has too many values, or if trials are no grid and have too few of
    them. Trials that were selected by their results, by pruning or from another study, have no
    model.

    Args:
        results: results of the study.
        effects: its effects over matched pairs.
    """
    names, config = results.parameters, results.config
    is_swept = any(is_continuous(results.table[name]) for name in names)
    has_too_few = not (results.is_grid or any(effect.is_decidable for effect in effects))
    if not names or not (is_swept or has_too_few):
        return None
    if results.is_pruned or config.refinement is not None or not results.is_finished:
        return None
    rows = results.complete
    columns = {
        name: [None if is_missing(value) else to_python(value) for value in rows[name]]
        for name in names
    }
    settings = results.number_settings(rows).to_numpy()
    return fit_additive_model(columns, rows["value"].to_numpy(dtype=float), settings, results.scale)
