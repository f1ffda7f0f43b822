"""Tables of results that other programs wrote: files, DataFrames, and studies of plain Optuna."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.study import StudyDirection

from rnn.errors import UserError
from studies.attributes import IS_GRID_TRIAL
from studies.text import shorten

if TYPE_CHECKING:
    import pandas as pd

PARAMETER_PREFIXES = {
    "params.": "MLflow",
    "params_": "Optuna",
    "config/": "Ray Tune",
    "param_": "scikit-learn",
    "config.": "W&B, as JSON lines; its CSV has no prefix",
}
"""Prefixes of parameters, and who writes them."""

RESULT_PREFIXES = {"metrics.": "MLflow", "summary.": "W&B, as JSON lines"}


@dataclass
class Table:
    """A table of results.

    Attributes:
        source: file or study that it is of, for a reader.
        columns: cells of each column as Python's values of one type; None where missing.
        rows: number or label of each row, for a message.
        metric: what the value is called, if the source says it.
        maximize: whether a higher value is better, if the source says it.
        is_adaptive: whether a sampler may have chosen rows by the results of earlier ones, if the
            source says it.
    """

    source: str
    columns: dict[str, list[Any]]
    rows: list[Any]
    metric: str = ""
    maximize: bool | None = None
    is_adaptive: bool | None = None

    def find(self, name: str, option: str) -> str:
        """Return a column that a user names, with or without the prefix of a program."""
        found = [column for column in self.columns if strip_prefix(column) == name]
        if name in self.columns or len(found) == 1:
            return name if name in self.columns else found[0]
        raise UserError(
            f"{self.source} has no column {shorten(name, 60)!r}: choose {option}, of "
            f"{join_names(self.columns, 30)}"
        )

    def read_numbers(self, name: str) -> list[float | None]:
        """Return the numbers of a column; None for an empty cell."""
        numbers: list[float | None] = []
        for row, cell in zip(self.rows, self.columns[name], strict=True):
            try:
                numbers.append(None if cell is None else float(cell))
            except ValueError as error:
                raise UserError(
                    f"{self.source}, row {row}, column {shorten(name, 60)!r}: "
                    f"{shorten(cell, 60)!r} is not a number: expected a number, nothing "
                    "for a run that failed, or nan for one that diverged"
                ) from error
        return numbers


def strip_prefix(name: str) -> str:
    """Return the name of a column without the prefix of the program that wrote the table."""
    for prefix in (*PARAMETER_PREFIXES, *RESULT_PREFIXES):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def join_names(names: Iterable[str], limit: int = 8) -> str:
    """Join the names of columns; of many, the first and the number of the others."""
    listed = [shorten(name, 60) for name in names]
    others = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {others:,} more" if others > 0 else "")


def read_file(path: Path) -> Table:
    """Read a table from Parquet, JSON lines, or CSV, for which any other suffix stands.

    Raises:
        UserError: if it is no table.
    """
    import pandas as pd

    name = path.name
    try:
        if path.suffix == ".parquet":
            return read_frame(pd.read_parquet(path), name)
        if path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            # A value of an object in an object is named as by W&B: config.lr.
            rows = pd.json_normalize([json.loads(line) for line in lines if line.strip()])
            return read_frame(rows.set_axis(rows.index + 1), name)
        return _read_csv(path, name)
    except ImportError as error:
        raise UserError(f"{name} needs pyarrow to be read: pip install pyarrow") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{name} is not CSV in UTF-8, JSON lines (.jsonl) or Parquet (.parquet): {error}"
        ) from error


def _read_csv(path: Path, source: str) -> Table:
    cells: list[list[str]] = []
    rows = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True)
        header = next(reader, [])
        for row in reader:
            if not any(row):
                continue
            if len(row) != len(header):
                raise ValueError(f"row {reader.line_num} has {len(row)} cells, not {len(header)}")
            cells.append([cell.strip() for cell in row])
            rows.append(reader.line_num)
    if not rows or len(set(header)) < len(header):
        raise ValueError("it has no rows, or two columns of one name")
    columns = {name: _parse([row[i] for row in cells]) for i, name in enumerate(header)}
    columns.pop("", None)  # pandas writes its index under an empty name
    return Table(source, columns, rows)


def _parse(texts: Sequence[str]) -> list[Any]:
    """Return texts as numbers, as true and false, or as they are; None where missing."""
    booleans = {"true": True, "false": False}
    for parse in (int, float, lambda text: booleans[text.lower()]):
        try:
            # Python takes 1_000 for a number.
            return [parse(text.replace("_", "?")) if text else None for text in texts]
        except (KeyError, ValueError):
            continue
    missing = ("", "NA", "N/A", "NaN", "nan", "null", "<NA>")
    return [None if text in missing else text for text in texts]


def read_frame(frame: "pd.DataFrame", source: str) -> Table:
    """Read a table from a DataFrame, whose named index is columns as well.

    Args:
        frame: the table.
        source: what it is, for a reader.

    Raises:
        UserError: if it has no rows, or two columns of one name.
    """
    if frame.index.names != [None]:
        frame = frame.reset_index()
    frame = frame.rename(columns=str)
    if frame.empty or frame.columns.has_duplicates:
        raise UserError(f"{source} has no rows, or two columns of one name")
    columns = {}
    for name in map(str, frame.columns):
        # Integers are floats next to missing cells.
        column = frame[name].convert_dtypes() if frame[name].isna().any() else frame[name]
        cells = column.astype(object).where(column.notna(), None)
        columns[name] = _to_one_type(cells.tolist())
    return Table(source, columns, frame.index.tolist())


def _to_one_type(cells: Sequence[Any]) -> list[Any]:
    """Return cells as values of one type that a parameter can have; None where missing."""
    cells = [cell.item() if isinstance(cell, np.generic) else cell for cell in cells]
    kinds = {type(cell) for cell in cells if cell is not None}
    if len(kinds) <= 1 and kinds <= {bool, int, float, str}:
        return cells
    kind = float if kinds == {int, float} else str
    return [None if cell is None else kind(cell) for cell in cells]


def read_study(study: optuna.Study, where: str, value: str | None) -> Table:
    """Read a study of plain Optuna as a table, whose curve is that of intermediate values.

    Args:
        study: the study.
        where: where it is stored, for a reader: `` of sqlite:///optuna.db``.
        value: name of the objective; None for the only one.

    Raises:
        UserError: if it is a study of this program, or has several objectives or no results.
    """
    source = f"study {study.study_name}{where}"
    trials = study.get_trials(deepcopy=False)
    if any(IS_GRID_TRIAL in trial.system_attrs for trial in trials):
        raise UserError(
            f"{source} is one of this program: write it to a file with rnn-search export-study, "
            "and import the file"
        )
    if not any(trial.state.is_finished() for trial in trials):
        raise UserError(f"{source} has no finished trial: expected one or more")
    count = len(study.directions)
    names = list(study.metric_names or ())
    known = [*(f"values_{place}" for place in range(count)), *names]
    chosen = "values_0" if count == 1 and value in (None, "value") else value
    if chosen not in known:
        listed = ", ".join(known)
        raise UserError(f"{source} has {count} objectives: choose one with --value, of {listed}")
    place = known.index(chosen) % count
    columns: dict[str, list[Any]] = {
        "state": [trial.state.name for trial in trials],
        "value": [trial.values[place] if trial.values else None for trial in trials],
    }
    for number, trial in enumerate(trials):
        params = {f"params_{name}": param for name, param in trial.params.items()}
        points = {f"value_{step}": loss for step, loss in trial.intermediate_values.items()}
        for name, cell in {**params, **points}.items():
            column = columns.setdefault(name, [None] * len(trials))
            column[number] = "None" if cell is None else cell
    return Table(
        source,
        {name: _to_one_type(cells) for name, cells in columns.items()},
        [trial.number for trial in trials],
        metric=names[place] if names else "value",
        maximize=study.directions[place] == StudyDirection.MAXIMIZE,
        is_adaptive=not all("grid_id" in trial.system_attrs for trial in trials),
    )
