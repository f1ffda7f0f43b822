"""Reads a study from the lines of its table, and says which cell is wrong."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from optuna.trial import TrialState
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rnn.config import ParamValue
from studies.attributes import (
    SCHEMA_VERSION,
    StudyRecord,
    first_message,
    parse_trial_attribute,
)
from studies.config import to_trial_config
from studies.errors import ConfigError, StudyFormatError
from studies.storage.trials import StoredTrial, check_params, decode_time
from studies.system_attributes import (
    order_trial_attributes,
    parse_study_system_attribute,
    parse_trial_system_attribute,
)
from studies.tables.study_table import (
    COLUMNS,
    COMPLETED,
    FORMAT_VERSION,
    LOSS,
    NUMBER,
    PARAMS,
    STARTED,
    STATE,
    STATES,
    SYSTEM_ATTRS,
    USER_ATTRIBUTES,
    USER_ATTRS,
    VALUE,
    WINDOW_COLUMNS,
    StudyTable,
    format_cell,
    parse_cell,
    parse_number,
)
from studies.tables.table_file import TableRows, find_repeated
from studies.text import check_study_name, shorten

_MAX_STEP = 2**31 - 1
"""Largest step that Optuna's tables hold."""


class _Described(BaseModel):
    """What the first line says about a study."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    direction: Literal["minimize"]
    metric: str
    trials: Annotated[int, Field(ge=1)]
    attributes: dict[str, Any]
    system_attributes: dict[str, Any]
    choices: dict[str, Annotated[list[ParamValue], Field(min_length=1)]]


@dataclass(frozen=True)
class _Columns:
    """Places of the columns in a row, by what they hold."""

    names: Sequence[str]
    params: dict[str, int]
    attributes: dict[str, int]
    system_attributes: dict[str, int]
    windows: dict[str, list[int]]
    steps: dict[int, int]


def read_study_table(path: str, version: str, described: str, lines: Iterator[str]) -> StudyTable:
    """Read a study from its table.

    Args:
        path: name of the file, for messages.
        version: version of the format.
        described: what the first line says about the study, as JSON.
        lines: the lines after the first.

    Raises:
        TableError: if something is not what it should be; the message names row and column.
    """
    rows = TableRows(path, lines, skipped=1)
    if int(version) != FORMAT_VERSION:
        rows.reject(
            f"version {version} of the format, expected {FORMAT_VERSION}: install the version of "
            "this program that wrote it"
        )
    study, record = _parse_study(rows, described)
    columns = _parse_header(rows, study.choices)
    parser = _TrialParser(rows, columns, study.choices, record)
    trials: dict[int, StoredTrial] = {}
    while (cells := rows.read(len(columns.names))) is not None:
        trial = parser.parse(cells)
        if trial.number in trials:
            rows.reject_cell(NUMBER, cells[0], "a number that no row above has")
        trials[trial.number] = trial
    if len(trials) != study.trials:
        rows.reject(f"the table ends with {len(trials):,} trials, expected {study.trials:,}")
    return StudyTable(
        study.name,
        study.metric,
        record,
        study.system_attributes,
        study.choices,
        list(columns.attributes),
        list(columns.system_attributes),
        {name: len(places) for name, places in columns.windows.items()},
        list(columns.steps),
        len(trials),
        [trials[number] for number in sorted(trials)],
    )


def _parse_study(rows: TableRows, described: str) -> tuple[_Described, StudyRecord]:
    """Parse what the first line says about a study."""
    try:
        study = _Described.model_validate_json(described)
        check_study_name(study.name)
        version = study.attributes.get("schema_version")
        if version != SCHEMA_VERSION:
            rows.reject(
                f"schema_version {shorten(repr(version))}, expected {SCHEMA_VERSION}: install the "
                "version of this program that wrote it"
            )
        record = StudyRecord.model_validate({**study.attributes, "artifact_folder": "none"})
        for name, value in study.system_attributes.items():
            parse_study_system_attribute(name, json.dumps(value))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        where = f"{shorten(place)}: " if place else ""
        rows.reject(f"{where}{first_message(error)}; expected a study as JSON", error)
    except (ConfigError, ValueError) as error:
        rows.reject(shorten(str(error), 200), error)
    return study, record


def _parse_header(rows: TableRows, choices: Mapping[str, Sequence[ParamValue]]) -> _Columns:
    """Parse the names of the columns."""
    names = rows.read()
    if names is None:
        rows.reject("nothing follows, expected the names of the columns")
    if (repeated := find_repeated(names)) is not None:
        rows.reject(f"column {shorten(repeated)} is there twice, expected it once")
    for name in (*COLUMNS, *(PARAMS + each for each in choices)):
        if name not in names:
            rows.reject(f"no column {shorten(name)}, expected one")
    columns = _Columns(names, {}, {}, {}, {}, {})
    for place, name in enumerate(names):
        if not (name in COLUMNS or _place_column(columns, choices, name, place)):
            rows.reject(f"column {shorten(repr(name))}, expected one that export-study writes")
    return columns


def _place_column(
    columns: _Columns, choices: Mapping[str, Sequence[ParamValue]], name: str, place: int
) -> bool:
    """Add the place of a column; return whether a table has such a column."""
    for prefix, known, places in (
        (PARAMS, choices, columns.params),
        (USER_ATTRS, USER_ATTRIBUTES, columns.attributes),
        (
            SYSTEM_ATTRS,
            order_trial_attributes([name.removeprefix(SYSTEM_ATTRS)]),
            columns.system_attributes,
        ),
    ):
        key = name.removeprefix(prefix)
        if name.startswith(prefix) and key in known:
            places[key] = place
            return True
    for key, prefix in WINDOW_COLUMNS.items():
        window = len(columns.windows.get(key, ()))
        if name == f"{prefix}{window}":
            columns.windows.setdefault(key, []).append(place)
            return True
    step = name.removeprefix(LOSS)
    if name.startswith(LOSS) and _is_count(step) and int(step) <= _MAX_STEP:
        columns.steps[int(step)] = place
        return True
    return False


def _is_count(text: str, digits: int = 10) -> bool:
    """Return whether a text is an integer from 0, as Python formats it."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= digits
    return is_number and str(int(text)) == text


class _TrialParser:
    """Parses the rows of trials."""

    def __init__(
        self,
        rows: TableRows,
        columns: _Columns,
        choices: Mapping[str, Sequence[ParamValue]],
        record: StudyRecord,
    ) -> None:
        self._rows, self._columns, self._record = rows, columns, record
        self._places = {name: columns.names.index(name) for name in COLUMNS}
        self._choices = {
            name: {format_cell(value): value for value in values}
            for name, values in choices.items()
        }

    def parse(self, cells: Sequence[str]) -> StoredTrial:
        """Parse a row."""
        number, state, value = (cells[self._places[name]] for name in (NUMBER, STATE, VALUE))
        if not _is_count(number, 6):
            self._rows.reject_cell(NUMBER, number, "an integer from 0 to 999999")
        if state not in {each.name for each in STATES}:
            expected = f"one of {', '.join(each.name for each in STATES)}"
            self._rows.reject_cell(STATE, state, expected)
        is_complete = state == TrialState.COMPLETE.name
        if bool(value) != is_complete:
            self._rows.reject_cell(VALUE, value, "a number if complete, and nothing otherwise")
        return StoredTrial(
            self._params(cells),
            self._attributes(cells),
            state=TrialState[state],
            value=self._number(VALUE, cells) if is_complete else None,
            number=int(number),
            started=self._time(STARTED, cells),
            completed=self._time(COMPLETED, cells),
            system_attributes=self._system_attributes(cells) | self._windows(cells),
            curve={
                step: self._loss(step, cells[place])
                for step, place in self._columns.steps.items()
                if cells[place] != ""
            },
        )

    def _number(self, column: str, cells: Sequence[str]) -> float:
        text = cells[self._places[column]]
        try:
            number = parse_number(text)
        except ValueError:
            number = math.nan
        if math.isnan(number):
            self._rows.reject_cell(column, text, "a number")
        return number

    def _time(self, column: str, cells: Sequence[str]) -> datetime | None:
        text = cells[self._places[column]]
        try:
            return decode_time(text or None)
        except ValueError as error:
            self._rows.reject_cell(column, text, "a time as in 2026-11-27T12:00:00, UTC", error)

    def _params(self, cells: Sequence[str]) -> dict[str, ParamValue]:
        params = {}
        for name, place in self._columns.params.items():
            if (text := cells[place]) == "":
                continue
            if text not in (choices := self._choices[name]):
                expected = f"one of {shorten(', '.join(choices))}"
                self._rows.reject_cell(PARAMS + name, text, expected)
            params[name] = choices[text]
        try:
            check_params(params)
            to_trial_config(params, self._record.config)
        except ValueError as error:
            self._rows.reject(f"{error}, expected parameters of this study", error)
        except StudyFormatError as error:
            self._rows.reject("a parameter is missing, expected those of this study", error)
        return params

    def _attributes(self, cells: Sequence[str]) -> dict[str, Any]:
        attributes = {}
        for name, place in self._columns.attributes.items():
            if (text := cells[place]) == "":
                continue
            attributes[name] = value = parse_cell(text)
            try:
                parse_trial_attribute(name, json.dumps(value))
            except ValueError as error:
                expected = str(error).partition(": ")[2]
                self._rows.reject_cell(USER_ATTRS + name, text, f"another value: {expected}", error)
        return attributes

    def _system_attributes(self, cells: Sequence[str]) -> dict[str, Any]:
        attributes = {}
        for name, place in self._columns.system_attributes.items():
            if (text := cells[place]) == "":
                continue
            attributes[name] = value = parse_cell(text)
            try:
                parse_trial_system_attribute(name, json.dumps(value))
            except ValueError as error:
                expected = f"another value: {str(error).partition(': ')[2]}"
                self._rows.reject_cell(SYSTEM_ATTRS + name, text, expected, error)
        return attributes

    def _windows(self, cells: Sequence[str]) -> dict[str, list[float]]:
        windows: dict[str, list[float]] = {}
        for name, places in self._columns.windows.items():
            texts = [cells[place] for place in places]
            if not any(texts):
                continue
            losses = []
            for window, text in enumerate(texts):
                try:
                    losses.append(parse_number(text))
                except ValueError:
                    losses.append(math.nan)
                if not math.isfinite(losses[-1]):
                    column = f"{WINDOW_COLUMNS[name]}{window}"
                    unit = " in bits per byte" * self._record.config.is_text
                    self._rows.reject_cell(column, text, f"a loss{unit}")
            windows[name] = losses
        return windows

    def _loss(self, step: int, text: str) -> float:
        try:
            loss = parse_number(text)
        except ValueError as error:
            self._rows.reject_cell(f"{LOSS}{step}", text, "a number, nan or nothing", error)
        return loss
