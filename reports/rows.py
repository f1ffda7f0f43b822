"""Points as they are stored → rows of a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from optuna.trial import TrialState

from rnn.architecture import Architecture
from rnn.known_cell import KnownCell
from studies.definition import Definition
from studies.errors import StudyNotFound
from studies.opening import load_study
from studies.points import StoredPoint, read_points
from studies.records import EARLIER_CODE, LANES, SOURCE_TRIALS, Failure, TrialRecord
from studies.space import ALL_PARAMETERS, GRADIENT_WINDOW, KNOWN_CELL, REPLICATE
from studies.storage import Storage
from studies.stored import stored_definition

DIVERGED = "DIVERGED"
"""The state, in a table, of a trial that failed because its loss was not finite."""

PAUSED = "PAUSED"
"""The state, in a table, of a trial that waits until the pruner wants it."""

_NUMERIC = (
    "value",
    "training_loss",
    "validation_loss",
    "validation_bits_per_character",
    "validation_error",
    "test_bits_per_character",
    "test_error",
    "parameter_count",
    "steps_per_second",
    "seconds",
    "rung",
    "chance",
    "forecast",
)


_RECORDED = [name for name in TrialRecord.model_fields if name not in (REPLICATE, *LANES.values())]
"""Of what a trial records; a replicate's number is a parameter, where there are any, and the lanes
are read apart."""

OF_ARCHITECTURES = [name for name in ALL_PARAMETERS if name != REPLICATE]
"""Whatever may be a parameter of an architecture, the gradient window among them."""


def table_of(points: Sequence[StoredPoint], definition: Definition) -> pd.DataFrame:
    """Return a study's points as the table of :class:`reports.trials.Results`."""
    windows = {_window(point, definition) for point in points}
    names_window = windows != {1}
    rows = [_row(point, definition, names_window) for point in points]
    table = pd.DataFrame(rows).set_index("number")
    for record in _NUMERIC:  # which plain Optuna, driving the study, does not keep
        table[record] = pd.to_numeric(table[record])
    # The best first, then those that ended without a value, then those that have not ended.
    table["rank"] = table["state"].map({"RUNNING": 1, PAUSED: 2, "WAITING": 3}).fillna(0)
    table = table.sort_values(["rank", "value", "number"], na_position="last")
    return table.drop(columns="rank")


def sources_of(storage: Storage, definition: Definition) -> pd.DataFrame:
    """Read what a derived study's source came to; nothing if that is gone, or not comparable."""
    rows = []
    if definition.refinement is not None:
        try:
            source = load_study(storage, definition.refinement.source)
            theirs = stored_definition(source)
            if theirs.vocabulary == definition.vocabulary:
                rows = [
                    {
                        "number": point.number,
                        "value": value,
                        GRADIENT_WINDOW: _window(point, theirs),
                    }
                    | point.params
                    for point in read_points(storage, source._study_id)
                    if (value := _value_by(definition.objective, point, theirs)) is not None
                ]
        except StudyNotFound:
            pass
    columns = ["number", "value", *OF_ARCHITECTURES]
    return pd.DataFrame(rows, columns=columns).set_index("number")


def architecture_of(
    row: "pd.Series[Any] | dict[str, Any]", definition: Definition
) -> Architecture | KnownCell:
    """Return the architecture of a table's row, whose numbers may be numpy's."""
    params = {name: own_value(row[name]) for name in OF_ARCHITECTURES if name in row}
    if "cell" in params:
        return KnownCell(*(params[name] for name in KNOWN_CELL))
    return Architecture.of(params, definition.gate_inputs)


def own_value(value: Any) -> Any:
    """Return Python's own value for one of numpy's."""
    return value.item() if isinstance(value, np.generic) else value


def _window(point: StoredPoint, definition: Definition) -> int:
    window: int = point.params.get(GRADIENT_WINDOW, definition.training.gradient_window)
    return window


def _row(point: StoredPoint, definition: Definition, names_window: bool) -> dict[str, Any]:
    window = _window(point, definition)
    architecture = architecture_of(point.params, definition).label
    if names_window:
        architecture += f", window {window}"
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
        GRADIENT_WINDOW: window,
        SOURCE_TRIALS: point.attributes.get(SOURCE_TRIALS),
        "started": point.started,
        "completed": point.completed,
    }


def _value_by(objective: str, point: StoredPoint, definition: Definition) -> float | None:
    """Return what a complete point came to by an objective that may not be its study's."""
    if point.value is None or definition.objective == objective:
        return point.value
    recorded: float | None = point.attributes.get(f"{objective}_loss")
    return recorded
