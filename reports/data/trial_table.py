"""Points as they are stored → rows of a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from optuna.trial import TrialState

from rnn.config import BaselineConfig, GatedConfig
from studies.attributes import EARLIER_CODE, EVAL_WINDOWS, SOURCE_TRIALS, Failure, TrialRecord
from studies.config import StudyConfig, to_trial_config
from studies.errors import StudyFormatError, StudyNotFoundError
from studies.loader import read_study_record
from studies.space import BPTT_STEPS, PARAM_ORDER, REPLICATE
from studies.storage.open import load_study
from studies.storage.queries import TrialRow, read_trials
from studies.storage.storage import LeasedRDBStorage

DIVERGED = "DIVERGED"
"""The state, in a table, of a trial that failed because its loss was not finite."""

PAUSED = "PAUSED"
"""The state, in a table, of a trial that waits until the pruner wants it."""

_NUMERIC = (
    "value",
    "training_loss",
    "validation_loss",
    "validation_bits_per_byte",
    "validation_stderr",
    "test_bits_per_byte",
    "test_stderr",
    "parameter_count",
    "steps_per_second",
    "seconds",
    "rung",
    "keep_probability",
    "predicted_value",
)


_RECORDED = [
    name for name in TrialRecord.model_fields if name not in (REPLICATE, *EVAL_WINDOWS.values())
]
"""Of what a trial records; a replicate's number is a parameter, where there are any, and the lanes
are read apart."""

ARCHITECTURE_PARAMS = [name for name in PARAM_ORDER if name != REPLICATE]
"""Whatever may be a parameter of an architecture, the gradient window among them."""


def build_trial_table(points: Sequence[TrialRow], config: StudyConfig) -> pd.DataFrame:
    """Return a study's points as the table of :class:`reports.data.results.Results`."""
    windows = {_window(point, config) for point in points}
    names_window = windows != {1}
    rows = [_row(point, config, names_window) for point in points]
    table = pd.DataFrame(rows).set_index("number")
    for record in _NUMERIC:  # which plain Optuna, driving the study, does not keep
        table[record] = pd.to_numeric(table[record])
    # The best first, then those that ended without a value, then those that have not ended.
    table["rank"] = table["state"].map({"RUNNING": 1, PAUSED: 2, "WAITING": 3}).fillna(0)
    table = table.sort_values(["rank", "value", "number"], na_position="last")
    return table.drop(columns="rank")


def read_source_trials(storage: LeasedRDBStorage, config: StudyConfig) -> pd.DataFrame:
    """Read what a derived study's source came to; nothing if that is gone, or not comparable."""
    rows = []
    if config.refinement is not None:
        try:
            source = load_study(storage, config.refinement.source)
            theirs = read_study_record(source).config
            if theirs.tokenizer == config.tokenizer:
                rows = [
                    {
                        "number": point.number,
                        "value": value,
                        BPTT_STEPS: _window(point, theirs),
                    }
                    | point.params
                    for point in read_trials(storage, source._study_id)
                    if (value := _value_by(config.objective, point, theirs)) is not None
                ]
        except (StudyNotFoundError, StudyFormatError):
            pass
    columns = ["number", "value", *ARCHITECTURE_PARAMS]
    return pd.DataFrame(rows, columns=columns).set_index("number")


def decode_architecture(
    row: "pd.Series[Any] | dict[str, Any]", config: StudyConfig
) -> GatedConfig | BaselineConfig:
    """Return the architecture of a table's row, whose numbers may be numpy's."""
    params = {name: to_python(row[name]) for name in ARCHITECTURE_PARAMS if name in row}
    return to_trial_config(params, config).architecture


def to_python(value: Any) -> Any:
    """Return Python's own value for one of numpy's."""
    return value.item() if isinstance(value, np.generic) else value


def _window(point: TrialRow, config: StudyConfig) -> int:
    window: int = point.params.get(BPTT_STEPS, config.training.bptt_steps)
    return window


def _row(point: TrialRow, config: StudyConfig, names_window: bool) -> dict[str, Any]:
    window = _window(point, config)
    architecture = decode_architecture(point.params, config).label
    if names_window:
        architecture += f", bptt_steps {window}"
    replicate = f" #{point.params[REPLICATE]}" if REPLICATE in point.params else ""
    recorded = {name: point.attributes.get(name) for name in _RECORDED}
    recorded[EARLIER_CODE] = ", ".join(recorded[EARLIER_CODE] or ()) or None
    diverged = point.state is TrialState.FAIL and recorded["failure"] == Failure.DIVERGED
    return recorded | {
        "number": point.number,
        "architecture": architecture,
        "label": architecture + replicate,
        "state": DIVERGED if diverged else PAUSED if point.is_paused else point.state.name,
        "value": point.value,
        **point.params,
        BPTT_STEPS: window,
        SOURCE_TRIALS: point.attributes.get(SOURCE_TRIALS),
        "started": point.started,
        "completed": point.completed,
    }


def _value_by(objective: str, point: TrialRow, config: StudyConfig) -> float | None:
    """Return what a complete point came to by an objective that may not be its study's."""
    if point.value is None or config.objective == objective:
        return point.value
    recorded: float | None = point.attributes.get(f"{objective}_loss")
    return recorded
