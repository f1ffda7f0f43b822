"""Tasks on stored data: images and signals with ten classes, series, and labelled sequences."""

import array
import csv
import itertools
import math
import random
import re
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from rnn.errors import TaskError
from rnn.tasks.task import MAX_STEPS, SPLITS, Array, Sample, Split, check_range

MAX_SYMBOLS = 100_000
"""Bound of the tokens and classes of a file: others are numbers that were stored as integers."""

_MAX_SLICES = 20
"""Number of classes up to which results are recorded by class."""


class DataSet:
    """A task on N stored sequences of T steps. Training draws them at random, with replacement.

    Args:
        x: inputs (N, T, …).
        y: targets (N,) or (N, T, …).
        rows: numbers of the sequences of each split.
        mask: weights of the targets (N, T); None if all are 1.
    """

    def __init__(
        self, x: Array, y: Array, rows: dict[Split, Array], mask: Array | None = None
    ) -> None:
        self._arrays = {"inputs": x, "targets": y, **({} if mask is None else {"mask": mask})}
        self._rows = rows

    def sample(self, split: Split, rng: np.random.Generator, count: int) -> Sample:
        rows = self._rows[split]
        if split == "train":
            rows = rng.choice(rows, count)
        drawn: Sample = {name: array[rows] for name, array in self._arrays.items()}
        if getattr(self, "classes", _MAX_SLICES + 1) <= _MAX_SLICES:
            drawn["slices"] = {"class": drawn["targets"]}
        return drawn


def split_rows(count: int, train: int, validation: int) -> dict[Split, Array]:
    """Split numbers below a count at random, the same on every machine.

    Args:
        count: number of sequences.
        train: percentage for training.
        validation: percentage for validation; the rest is for the test.
    """
    # NumPy promises that the numbers of RandomState never change.
    rows = np.random.RandomState(0).permutation(count)
    borders = count * train // 100, count * (train + validation) // 100
    return dict(zip(SPLITS, np.split(rows, borders), strict=True))


class Digits(DataSet):
    """Recognise a handwritten digit, read row by row.

    The data are the 1797 images of 8 × 8 pixels that scikit-learn ships, from Alpaydin & Kaynak
    (1998): 60% for training, 20% each for validation and test. A step is a row of 8 pixels, or with
    ``pixelwise`` one pixel. Results are also recorded by class::

        input    row 1   row 2   …   row 8
        target   -       -       …   7
    """

    classes = 10

    def __init__(self, *, pixelwise: bool = False) -> None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        self.input_size = 1 if pixelwise else 8
        steps = images.reshape(len(images), -1, self.input_size) / 16
        super().__init__(steps, labels, split_rows(len(images), 60, 20))


class MNIST1D(DataSet):
    """Recognise a digit that is drawn as a noisy line of 40 points, read point by point.

    The data are the 5000 lines of Greydanus & Kobak (2024), which need ``pip install
    '.[mnist1d]'``: 3000 for training, 1000 for validation, and the published test of 1000. Results
    are also recorded by class::

        input    -0.6   0.2   …   1.3
        target   -      -     …   4
    """

    input_size = 1
    classes = 10

    def __init__(self) -> None:
        lines, labels = _make_mnist1d()
        rows = np.split(np.arange(len(labels)), (3000, 4000))
        super().__init__(lines, labels, dict(zip(SPLITS, rows, strict=True)))


@cache
def _make_mnist1d() -> tuple[Array, Array]:
    """Return lines (5000, 40, 1) and labels (5000,), those of the published test last."""
    try:
        from mnist1d.data import make_dataset
    except ImportError as error:
        raise TaskError(
            "task mnist1d needs the package mnist1d: install it with pip install "
            "'rnn-search[mnist1d]', or pip install '.[mnist1d]' in a clone"
        ) from error
    # The package seeds the global generators.
    states = random.getstate(), np.random.get_state()
    try:
        data = make_dataset()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    lines = np.concatenate((data["x"], data["x_test"]))[..., None]
    return lines, np.concatenate((data["y"], data["y_test"]))


# ------------------------------------------------------------------ files


class Series:
    """Forecast columns of a CSV file, whose lines are equal steps of time.

    A step reads the ``columns`` of one line and predicts the ``targets`` of the line ``horizon``
    later. Both options are names with commas between them, by default all but times. 80% of the
    lines are for training, the next 10% for validation, the last 10% for the test. Training
    windows begin anywhere, and their first ``warmup`` steps have no target (-1: a tenth of them).
    Held-out windows read on with the states of the window before, so that each line is predicted
    once. Numbers are standardized. Below, ``targets`` is "wind" and ``horizon`` is 2::

        wind      4.1   4.6   5.0   5.9   5.2
        rain      0.0   0.0   0.2   1.1   0.9
        target    5.0   5.9   5.2   …     …

    Args:
        file: path of the file, in UTF-8, with the names of the columns in its first line.
        columns: names of the columns to read, with commas between them; "" for all but dates and
            times of day.
        targets: names of those to forecast; "" for all that are read.
        separator: character between two values.
        length: number of steps of a window.
        horizon: number of lines from a step to its target.
        warmup: number of steps at the start of a training window that have no target; -1 for a
            tenth of the window.
    """

    standardize = True
    consecutive = True

    def __init__(
        self,
        *,
        file: str = "",
        columns: str = "",
        targets: str = "",
        separator: Literal[",", ";", "\t"] = ",",
        length: int = 100,
        horizon: int = 1,
        warmup: int = -1,
    ) -> None:
        check_range("length", length, 1, MAX_STEPS)
        check_range("horizon", horizon, 1, MAX_STEPS)
        check_range("warmup", warmup, -1, length - 1)
        names, self._values, times = _read_csv(file, columns, separator)
        self.notices = [f"column {name!r} of {file} has times: it is left out" for name in times]
        self.persistence = _find_columns(file, names, targets)
        self.output_names = [names[column] for column in self.persistence]
        self.input_size = len(names)
        self.output_size = len(self.persistence)
        self.files = [file]
        self.length = length
        self.horizon = horizon
        self.warmup = length // 10 if warmup == -1 else warmup
        lines = len(self._values)
        borders = (0, lines * 80 // 100, lines * 90 // 100, lines)
        if lines < 10 or borders[1] < length + horizon:
            raise TaskError(
                f"{file} has {lines} lines of numbers: expected {length + horizon} or more in the "
                f"first 80%, for length = {length} and horizon = {horizon}, and 10 in all"
            )
        self._spans = dict(zip(SPLITS, itertools.pairwise(borders), strict=True))

    def sample(self, split: Split, rng: np.random.Generator, count: int) -> Sample:
        start, end = self._spans[split]
        step = np.arange(self.length)
        if split == "train":
            first = rng.integers(end - self.length - self.horizon + 1, size=count)
            lines = first[:, None] + step  # (count, T)
            mask = np.broadcast_to(step >= self.warmup, lines.shape)
        else:  # the lines before the split warm up the states of the first window
            first = np.arange(start - self.warmup, end, self.length) - self.horizon
            lines = first[:, None] + step
            mask = (lines + self.horizon >= start) & (lines + self.horizon < end)
        targets = self._values[np.minimum(lines + self.horizon, end - 1)][..., self.persistence]
        return {
            "inputs": self._values[np.minimum(lines, end - 1)],
            "targets": targets,
            "mask": mask,
        }


class LabelledSequences(DataSet):
    """N sequences of T steps and their labels, the arrays that :class:`Sequences` describes.

    Args:
        origin: where the arrays are from, at the start of messages.
        arrays: the arrays by name.

    Attributes:
        data_sha256: hash of the arrays, in hexadecimal digits; None if a file has them.
    """

    standardize = True
    data_sha256: str | None = None

    def __init__(self, origin: str, arrays: dict[str, Array]) -> None:
        x = arrays["x"]
        y = arrays["y"]
        if x.ndim not in (2, 3) or not x.size:
            raise _array_error(origin, "x", x, "(N, T) or (N, T, d)")
        count, steps = x.shape[:2]
        for name, values in arrays.items():
            if values.dtype.kind not in "iubf" or values.shape[:1] != (count,):
                expected = f"numbers of {count} sequences, as many as in x"
                raise _array_error(origin, name, values, expected)
        is_stepwise = y.shape[1:2] == (steps,)
        has_classes = y.dtype.kind in "iub"
        sizes = y.shape[1 + is_stepwise :]
        if 0 in sizes or len(sizes) > 1 - has_classes:
            expected = f"(N,) or (N, {steps}) of integers, or of floats with an axis more or not"
            raise _array_error(origin, "y", y, expected)
        for name, shape in (("lengths", (count,)), ("split", (count,)), ("mask", (count, steps))):
            if name in arrays and arrays[name].shape != shape:
                raise _array_error(origin, name, arrays[name], f"{shape}, by the shape of x")
        if "mask" in arrays and not is_stepwise:
            raise _array_error(origin, "y", y, f"(N, {steps}, …), as there is an array mask")

        lengths = arrays.get("lengths", np.full(count, steps))
        step = np.arange(steps)
        _check_each(origin, "lengths", lengths, np.isin(lengths, step + 1), f"1 to {steps}")
        last = lengths[:, None].astype(int) - 1
        # Padding repeats the last step: zeros would shift the mean.
        x = x[np.arange(count)[:, None], np.minimum(step, last)]
        mask = (step <= last if is_stepwise else step == last) * arrays.get("mask", np.True_)
        if is_stepwise:
            y = np.where(mask.reshape(*mask.shape, *[1] * len(sizes)) > 0, y, 0)
        if x.ndim == 2 and x.dtype.kind in "iub":
            self.vocabulary = _count_symbols(origin, "x", x)
        else:
            _check_each(origin, "x", x, np.isfinite(x), "a finite number")
            self.input_size = 1 if x.ndim == 2 else x.shape[2]
        if has_classes:
            self.classes = _count_symbols(origin, "y", y)
        else:
            _check_each(origin, "y", y, np.isfinite(y), "a finite number")
            self.output_size = sizes[0] if sizes else 1
        if not is_stepwise:
            y = np.broadcast_to(y[:, None], (count, steps, *sizes))

        rows = split_rows(count, 80, 10)
        if "split" in arrays:
            parts = arrays["split"]
            _check_each(origin, "split", parts, np.isin(parts, (0, 1, 2)), "0, 1 or 2")
            rows = {name: np.flatnonzero(parts == number) for number, name in enumerate(SPLITS)}
        for name, chosen in rows.items():
            if not chosen.size:
                raise TaskError(
                    f"{origin} has no sequence for {name}: expected 10 or more in all, or an array "
                    "split of 0 (train), 1 (validation) and 2 (test)"
                )
        super().__init__(x, y, rows, None if mask.dtype == bool and mask.all() else mask)


class Sequences(LabelledSequences):
    """Predict labels of N sequences of T steps, the arrays of an NPZ file.

    Array ``x`` has the inputs, ``y`` a label for each sequence or each step. Sequences of different
    ``lengths`` are padded to T steps. Numbers in ``x`` and ``y`` are standardized. Below is a
    sequence of 3 steps, whose class is 2::

        x        0.2   1.1   0.4   0.0   0.0
        y        -     -     2     -     -

    - ``x``: tokens (N, T) as integers; numbers (N, T) or (N, T, d) as floats
    - ``y``: a class, as an integer, for each sequence (N,) or step (N, T); or one or m numbers, as
      floats, for each sequence (N,), (N, m) or step (N, T), (N, T, m)
    - ``lengths`` (N,), optional: steps of each sequence; the label of a sequence is the target of
      the last of them
    - ``mask`` (N, T), optional: weights of the targets of steps
    - ``split`` (N,), optional: 0 for training, 1 for validation, 2 for the test; without it 80%,
      10% and 10% at random

    Args:
        file: path of the file.
    """

    def __init__(self, *, file: str = "") -> None:
        self.files = [file]
        super().__init__(file, _read_npz(file))


_TIME = re.compile(
    r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}([T ]+\d{1,2}:\d{2}.*)?|\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?"
)
"""A date, with a time of day or without one, or a time of day."""


def _read_csv(file: str, columns: str, separator: str) -> tuple[list[str], Array, list[str]]:
    """Return the names of the columns to read, their values (lines, columns), and those of times.

    Columns whose first value is a time are left out, unless ``columns`` names them.
    """
    values = array.array("d")
    times: list[str] = []
    try:
        with Path(file).open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, delimiter=separator, strict=True)
            names = [name.strip() for name in next(reader, [])]
            if not any(names) or any(math.isfinite(_to_number(name)) for name in names):
                expected = "the names of the columns, none of them a number"
                raise TaskError(f"{file}, line 1: {names!r:.80}: expected {expected}")
            chosen = _find_columns(file, names, columns)
            for line in reader:
                where = f"{file}, line {reader.line_num}"
                if not line and len(names) > 1:
                    continue
                if len(line) != len(names):
                    raise TaskError(f"{where}: {len(line)} values: expected {len(names)}")
                if not (values or times or columns):  # the first line of values
                    is_time = [bool(_TIME.fullmatch(line[column].strip())) for column in chosen]
                    times = [names[c] for c, found in zip(chosen, is_time, strict=True) if found]
                    chosen = [c for c in chosen if names[c] not in times]
                for column in chosen:
                    values.append(_to_number(line[column]))
                    if not math.isfinite(values[-1]):
                        raise TaskError(
                            f"{where}, column {names[column]!r}: {line[column][:40]!r}: expected a "
                            "finite number; fill the gap, or list other columns in columns"
                        )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, error, "a CSV file in UTF-8") from error
    if not chosen:
        raise TaskError(f"{file} has no column but {times!r:.80}: expected columns of numbers")
    return [names[column] for column in chosen], np.array(values).reshape(-1, len(chosen)), times


def _find_columns(file: str, names: list[str], wanted: str) -> list[int]:
    """Return the numbers of columns whose names have commas between them; "" for all."""
    chosen = [name.strip() for name in wanted.split(",")] if wanted else names
    for name in chosen:
        if not name or names.count(name) != 1:
            number = "more than one" if name and name in names else "no"
            raise TaskError(f"{file} has {number} column {name!r}: its columns are {names!r:.200}")
    return [names.index(name) for name in chosen]


def _to_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _read_npz(file: str) -> dict[str, Array]:
    """Return the arrays of a file by name. Pickled objects are refused, as they can be any code."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name]) for name in stored.files}
    except Exception as error:  # what a damaged file raises is not documented
        raise _unreadable(file, error, "an NPZ file without pickled objects") from error
    if not {"x", "y"} <= arrays.keys() <= {"x", "y", "mask", "lengths", "split"}:
        raise TaskError(
            f"{file} has the arrays {', '.join(arrays)[:200]}: expected x and y, and where needed "
            "mask, lengths and split"
        )
    return arrays


def _unreadable(file: str, error: Exception, expected: str) -> TaskError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return TaskError(f"{file or 'the file'} cannot be read ({reason}): expected {expected}")


def _array_error(origin: str, name: str, values: Array, expected: str) -> TaskError:
    given = f"shape {values.shape} and dtype {values.dtype}"
    return TaskError(f"{origin}: {name} has {given}: expected {expected}")


def _check_each(origin: str, name: str, values: Array, is_valid: Array, expected: str) -> None:
    """Require that all values of an array are valid; the error gives the index of the first."""
    for index in np.argwhere(~is_valid)[:1].tolist():
        raise TaskError(f"{origin}: {name}{index} is {values[tuple(index)]}: expected {expected}")


def _count_symbols(origin: str, name: str, values: Array) -> int:
    is_valid = (values >= 0) & (values < MAX_SYMBOLS)
    _check_each(origin, name, values, is_valid, f"0 to {MAX_SYMBOLS - 1}, or floats for numbers")
    return int(values.max()) + 1
