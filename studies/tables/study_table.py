"""A study as a table: one row per grid trial, for a CSV file that is kept in place of a database.

The first line holds the format's version and, as JSON, all that the study stores about itself. Then
follow a header, named as by Optuna's ``trials_dataframe``, and the rows. Losses on evaluation
windows and training curves, most of the file, are rounded (:mod:`studies.tables.rounding`).
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState

from rnn.config import ParamValue
from studies.attributes import EVAL_WINDOWS, SOURCE_TRIALS, StudyRecord, TrialRecord
from studies.storage.trials import StoredTrial
from studies.tables.rounding import format_loss

FORMAT_VERSION = 1
"""Version of the format. Raise it when a column or a meaning changes."""

FIRST_LINE = re.compile(r"# rnn-search study (\d{1,9}): (.*)", re.DOTALL)
"""First line of a file: the version and the study as JSON."""

NUMBER, STATE, VALUE = "number", "state", "value"
STARTED, COMPLETED = "datetime_start", "datetime_complete"
COLUMNS = (NUMBER, STATE, VALUE, STARTED, COMPLETED)
"""Columns that every table has."""

PARAMS, USER_ATTRS, SYSTEM_ATTRS = "params_", "user_attrs_", "system_attrs_"
"""Prefixes of the columns of parameters and attributes."""

WINDOW_COLUMNS = {name: name.removesuffix("s") + "_" for name in EVAL_WINDOWS.values()}
"""Prefixes of the columns of losses on evaluation windows, by attribute; the window follows."""

LOSS = "loss_"
"""Prefix of the columns of the training curve; the step follows."""

STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.WAITING)
"""States of the trials of a table."""

USER_ATTRIBUTES = (
    *(name for name in TrialRecord.model_fields if name not in EVAL_WINDOWS.values()),
    SOURCE_TRIALS,
)
"""User attributes of a trial that a table has."""


@dataclass(frozen=True)
class StudyTable:
    """A study as a table.

    Attributes:
        name: name of the study.
        metric: name of the value, which is minimized.
        record: the study's user attributes; the artifact folder is not part of a file.
        system_attributes: its system attributes that belong to its results.
        choices: values of each parameter, in the order of Optuna's choices.
        attributes: names of the user attributes that some trial has.
        trial_system_attributes: names of the system attributes that some trial has, evaluation
            windows aside.
        windows: number of evaluation windows, by attribute.
        steps: log points.
        trial_count: number of trials.
        trials: the trials, by number.
    """

    name: str
    metric: str
    record: StudyRecord
    system_attributes: Mapping[str, Any]
    choices: Mapping[str, Sequence[ParamValue]]
    attributes: Sequence[str]
    trial_system_attributes: Sequence[str]
    windows: Mapping[str, int]
    steps: Sequence[int]
    trial_count: int
    trials: Iterable[StoredTrial]

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [
            *COLUMNS,
            *(PARAMS + name for name in self.choices),
            *(USER_ATTRS + name for name in self.attributes),
            *(SYSTEM_ATTRS + name for name in self.trial_system_attributes),
            *(
                f"{WINDOW_COLUMNS[name]}{window}"
                for name, count in self.windows.items()
                for window in range(count)
            ),
            *(f"{LOSS}{step}" for step in self.steps),
        ]

    def format_rows(self) -> Iterator[list[str]]:
        """Yield the cells of the header and of each trial."""
        yield self.columns
        for trial in self.trials:
            yield self._format_trial(trial)

    def format_first_line(self) -> str:
        """Return the first line, without its end."""
        attributes = self.record.attributes()
        del attributes["artifact_folder"]  # each stored study has one of its own
        described = {
            "name": self.name,
            "direction": "minimize",
            "metric": self.metric,
            "trials": self.trial_count,
            "attributes": attributes,
            "system_attributes": dict(self.system_attributes),
            "choices": {name: list(values) for name, values in self.choices.items()},
        }
        return f"# rnn-search study {FORMAT_VERSION}: {json.dumps(described)}"

    def _format_trial(self, trial: StoredTrial) -> list[str]:
        cells = [
            str(trial.number),
            trial.state.name,
            self._format_value(trial),
            *(
                "" if time is None else time.isoformat()
                for time in (trial.started, trial.completed)
            ),
        ]
        cells += [format_cell(trial.params.get(name)) for name in self.choices]
        cells += [format_cell(trial.attributes.get(name)) for name in self.attributes]
        system = trial.system_attributes
        cells += [format_cell(system.get(name)) for name in self.trial_system_attributes]
        for name, count in self.windows.items():
            losses = system.get(name) or ()
            cells += map(format_loss, losses)
            cells += [""] * (count - len(losses))
        cells += (format_loss(trial.curve.get(step)) for step in self.steps)
        return cells

    @staticmethod
    def _format_value(trial: StoredTrial) -> str:
        if trial.state is TrialState.COMPLETE and trial.value is None:
            return "inf"  # as plain Optuna may have stored
        return "" if trial.value is None else repr(trial.value)


def format_cell(value: Any) -> str:
    """Format a value: a text as it is, all else as JSON, and "" for None.

    A text that could be read as something else, or that would not stay on one line, is JSON too.
    """
    if value is None:
        return ""
    if isinstance(value, str) and value and value.isprintable() and value == value.strip():
        try:
            json.loads(value)
        except (ValueError, RecursionError):
            return value
    return json.dumps(value)


def parse_cell(text: str) -> Any:
    """Return the value of a cell that :func:`format_cell` formats; None for ""."""
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def parse_number(text: str) -> float:
    """Return the number of a cell.

    Raises:
        ValueError: if it is none.
    """
    if "_" in text or text != text.strip():  # which Python reads
        raise ValueError(f"{text!r} is not a number")
    return float(text)
