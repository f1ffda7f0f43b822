"""Trials of an imported study as a frame with one row per trial."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reports.data.trial_table import arrange_rows, name_state
from reports.formatting import format_param, format_value
from studies.attributes import SOURCE_TRIALS, TrialRecord
from studies.imported import ImportedConfig
from studies.space import REPLICATE
from studies.storage.queries import TrialRow


def build_imported_table(trials: Sequence[TrialRow], config: ImportedConfig) -> pd.DataFrame:
    """Build the table of an imported study, see :class:`reports.data.results.Results`.

    A row's ``architecture`` is its parameters, of which only those that vary are named. Attributes
    that a network records are missing.
    """
    varied = [
        name
        for name in config.parameters
        if len({repr(trial.params.get(name)) for trial in trials}) > 1
    ]
    labels = _format_labels(trials, varied)
    missing = dict.fromkeys([*TrialRecord.model_fields, SOURCE_TRIALS])
    rows = [
        missing
        | {
            "number": trial.number,
            "architecture": label,
            "label": label + (f" #{trial.params[REPLICATE]}" if REPLICATE in trial.params else ""),
            "state": name_state(trial),
            "value": trial.value,
            "audited": False,
            **{name: trial.params[name] for name in config.parameters if name in trial.params},
            "started": trial.started,
            "completed": trial.completed,
        }
        | ({REPLICATE: trial.params[REPLICATE]} if REPLICATE in trial.params else {})
        for trial, label in zip(trials, labels, strict=True)
    ]
    if not any(REPLICATE in trial.params for trial in trials):
        for row in rows:
            del row[REPLICATE]
    params = [trial.params for trial in trials]
    return arrange_rows(rows, params, config.direction == "maximize")


def _format_labels(trials: Sequence[TrialRow], names: Sequence[str]) -> list[str]:
    """Name each row by its parameters: ``depth 3, activation relu``.

    Long numbers are shortened unless different rows would have the same name.
    """
    known = [
        {name: trial.params[name] for name in names if name in trial.params} for trial in trials
    ]
    short = [_join_settings(params, shortens=True) for params in known]
    full = [_join_settings(params, shortens=False) for params in known]
    return short if len(set(short)) == len(set(full)) else full


def _join_settings(params: Mapping[str, Any], shortens: bool) -> str:
    texts = (
        f"{format_param(name)} "
        + (f"{value:.4g}" if shortens and isinstance(value, float) else format_value(value))
        for name, value in params.items()
    )
    return ", ".join(texts) or "no parameter"
