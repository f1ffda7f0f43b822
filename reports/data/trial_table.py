"""Stored trials as a frame with one row per trial."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from optuna.trial import TrialState

from rnn.config import NetworkConfig
from studies.attributes import (
    EARLIER_CODE,
    EARLIER_TORCH,
    EVAL_WINDOWS,
    SOURCE_TRIALS,
    Failure,
    TrialRecord,
)
from studies.config import StudyConfig, to_trial_config
from studies.errors import StudyFormatError, StudyNotFoundError
from studies.loader import read_study_record
from studies.space import BPTT_STEPS, CELL, GATED_PARAMS, REPLICATE
from studies.storage.open import load_study
from studies.storage.queries import TrialRow, read_trials
from studies.storage.storage import LeasedRDBStorage

DIVERGED = "DIVERGED"
"""State of a trial whose loss was not finite: it failed, or plain Optuna stored that value."""

PAUSED = "PAUSED"
"""State of a waiting trial that the pruner has paused."""

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
"""Recorded attributes in the table: the replicate is a parameter, evaluation windows are apart."""

ARCHITECTURE_PARAMS = [CELL, *GATED_PARAMS, BPTT_STEPS]
"""Parameters that define an architecture, BPTT steps included."""


def build_trial_table(trials: Sequence[TrialRow], config: StudyConfig) -> pd.DataFrame:
    """Build the trial table, see :class:`reports.data.results.Results`."""
    has_bptt = {_bptt_steps(trial, config) for trial in trials} != {1}
    rows = [_make_row(trial, config, has_bptt) for trial in trials]
    table = pd.DataFrame(rows).set_index("number")
    for column in _NUMERIC:  # absent from trials of a study that plain Optuna drives
        table[column] = pd.to_numeric(table[column])
    # By value first, then trials that ended without one, then those that have not ended.
    places = {"RUNNING": 1, PAUSED: 2, "WAITING": 3}
    table = table.sort_values(["value", "number"], na_position="last")
    return table.sort_values("state", kind="stable", key=lambda s: s.map(places).fillna(0))


def read_source_trials(storage: LeasedRDBStorage, config: StudyConfig) -> pd.DataFrame:
    """Read the complete trials of a refinement's source; none if it is gone or not comparable."""
    rows = []
    if config.refinement is not None:
        try:
            source = load_study(storage, config.refinement.source)
            source_config = read_study_record(source).config
            if source_config.tokenizer == config.tokenizer:
                rows = [
                    {
                        "number": trial.number,
                        "value": value,
                        BPTT_STEPS: _bptt_steps(trial, source_config),
                    }
                    | trial.params
                    for trial in read_trials(storage, source._study_id)
                    if (value := _value_by(config.objective, trial, source_config)) is not None
                ]
        except (StudyNotFoundError, StudyFormatError):
            pass
    columns = ["number", "value", *ARCHITECTURE_PARAMS]
    return pd.DataFrame(rows, columns=columns).set_index("number")


def decode_architecture(
    row: "pd.Series[Any] | dict[str, Any]", config: StudyConfig
) -> NetworkConfig:
    """Decode the architecture of a table row, whose values may be NumPy scalars."""
    params = {name: to_python(row[name]) for name in ARCHITECTURE_PARAMS if name in row}
    return to_trial_config(params, config).architecture


def to_python(value: Any) -> Any:
    """Convert a NumPy scalar to a Python value; return other values as they are."""
    return value.item() if isinstance(value, np.generic) else value


def _bptt_steps(trial: TrialRow, config: StudyConfig) -> int:
    steps: int = trial.params.get(BPTT_STEPS, config.training.bptt_steps)
    return steps


def _make_row(trial: TrialRow, config: StudyConfig, has_bptt: bool) -> dict[str, Any]:
    steps = _bptt_steps(trial, config)
    architecture = decode_architecture(trial.params, config).label
    if has_bptt:
        architecture += f", bptt_steps {steps}"
    replicate = f" #{trial.params[REPLICATE]}" if REPLICATE in trial.params else ""
    recorded = {name: trial.attributes.get(name) for name in _RECORDED}
    for name in (EARLIER_CODE, EARLIER_TORCH):
        recorded[name] = ", ".join(recorded[name] or ()) or None
    state = PAUSED if trial.is_paused else trial.state.name
    is_infinite = trial.state is TrialState.COMPLETE and trial.value is None
    has_failed = trial.state is TrialState.FAIL and recorded["failure"] == Failure.DIVERGED
    return recorded | {
        "number": trial.number,
        "architecture": architecture,
        "label": architecture + replicate,
        "state": DIVERGED if has_failed or is_infinite else state,
        "value": trial.value,
        **trial.params,
        BPTT_STEPS: steps,
        SOURCE_TRIALS: trial.attributes.get(SOURCE_TRIALS),
        "started": trial.started,
        "completed": trial.completed,
    }


def _value_by(objective: str, trial: TrialRow, config: StudyConfig) -> float | None:
    """Return the value of a complete trial by an objective that may not be its study's."""
    if trial.value is None or config.objective == objective:
        return trial.value
    recorded: float | None = trial.attributes.get(f"{objective}_loss")
    return recorded
