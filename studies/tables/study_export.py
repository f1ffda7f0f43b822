"""Export of a stored study to a file, without the names of machines, users and folders.

Machines become ``machine-1``, ``machine-2``, … in the order of their trials, so that they can still
be distinguished; paths become their last part, because folders hold users' names.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePath
from typing import Any

from rnn.config import ParamValue
from studies.attributes import ERROR, EVAL_WINDOWS, StudyRecord
from studies.errors import RowError, StudyFormatError, StudyHeldError
from studies.loader import read_record
from studies.measure import find_measure
from studies.records import TaskSettings
from studies.space import param_order
from studies.storage.counts import read_fingerprint
from studies.storage.open import load_study, read_storage
from studies.storage.reads import (
    RECORDS,
    count_points,
    read_choices,
    read_steps,
    read_trials,
    stream_curves,
)
from studies.storage.storage import LeasedRDBStorage
from studies.storage.tables import STUDY_SYSTEM_ATTRS, read_study_attrs
from studies.storage.trials import StoredTrial, reporting_damage
from studies.system_attributes import (
    STUDY_SYSTEM_ATTRIBUTES,
    order_trial_attributes,
    parse_study_system_attribute,
)
from studies.tables.rounding import Rounding
from studies.tables.study_table import USER_ATTRIBUTES, StudyTable
from studies.tables.table_file import require_table_name, write_table

_HOST, _WORKER = "host", "worker"

_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*)://[^\s'\"]*")

_QUOTED_PATH = re.compile(r"""(['"])[^'"=\[\]{}]*/([^/'"=\[\]{}]+)\1""")

_PATH = re.compile(r"""[^\s'"=,;:()\[\]{}]*/(?=[^\s/])""")


@dataclass(frozen=True)
class ExportResult:
    """What was exported.

    Attributes:
        trials: number of trials.
        size: size of the file in bytes.
    """

    trials: int
    size: int


def export_study(storage: str, name: str, path: Path) -> ExportResult:
    """Write a study to a file.

    Args:
        storage: URL of the storage that holds it.
        name: name of the study.
        path: file to write, whose name ends in ``.csv.gz`` or ``.csv``; an earlier one is replaced.

    Raises:
        StudyNotFoundError, StudyHeldError, StudyFormatError: if the study cannot be exported.
        TableError: if the file cannot be written.
        StorageError: if the storage cannot be read.
    """
    require_table_name(path)
    with closing(read_storage(storage)) as opened:
        study = load_study(opened, name)
        with opened.snapshot() as connection:
            before = read_fingerprint(connection, name)
        with reporting_damage(opened, study._study_id):
            table = _read_table(opened, study._study_id, name)

        def read_rows() -> Iterator[list[str]]:
            yield from table.format_rows()
            # What several transactions have read is one state of the study.
            with opened.snapshot() as connection:
                if read_fingerprint(connection, name) != before:
                    raise StudyHeldError(
                        f"study {name!r} changed while it was read: nothing was exported; stop its "
                        "workers and export it again"
                    )

        size = write_table(path, table.format_first_line(), read_rows())
    return ExportResult(table.trial_count, size)


def _read_table(storage: LeasedRDBStorage, study_id: int, name: str) -> StudyTable:
    """Read a study as a table; its curves are read as its rows are."""
    study = load_study(storage, name)
    stored = read_record(study)
    if not stored.config.is_trained:
        raise StudyFormatError(
            f"study {name!r} was imported: write its table with rnn-search report {name} --csv FILE"
        )
    rounding = Rounding(stored.config.objective)
    trials = _read_trials(storage, study_id, rounding)
    if not trials:
        raise StudyFormatError(f"study {name!r} has no grid trial: expected one or more")
    attributes = set(chain.from_iterable(trial.attributes for trial in trials))
    system_attributes = set(chain.from_iterable(trial.system_attributes for trial in trials))
    steps = read_steps(storage, study_id)
    return StudyTable(
        name,
        find_measure(stored.config).name,
        rounding.round_record(anonymize_record(stored)),
        _read_study_system_attributes(storage, study_id),
        _read_choices(storage, study_id),
        [each for each in USER_ATTRIBUTES if each in attributes],
        order_trial_attributes(system_attributes),
        _count_windows(trials),
        steps,
        len(trials),
        _add_curves(storage, study_id, trials),
    )


def _read_trials(storage: LeasedRDBStorage, study_id: int, rounding: Rounding) -> list[StoredTrial]:
    """Read the grid trials without their curves and the names of machines."""
    trials = [
        _round(trial, rounding)
        for trial in read_trials(storage, study_id, columns=RECORDS, is_strict=True)
    ]
    machines = MachineNames()
    for trial in trials:
        machines.add({**trial.attributes, **trial.system_attributes})
    return [
        replace(
            trial,
            attributes=machines.replace(trial.attributes),
            system_attributes=machines.replace(trial.system_attributes),
        )
        for trial in trials
    ]


def _round(trial: StoredTrial, rounding: Rounding) -> StoredTrial:
    system = trial.system_attributes
    names = (*order_trial_attributes(system), *EVAL_WINDOWS.values())
    return replace(
        trial,
        value=rounding.round_value(trial.value),
        attributes=rounding.round_attributes(
            {name: trial.attributes[name] for name in USER_ATTRIBUTES if name in trial.attributes}
        ),
        system_attributes=rounding.round_attributes(
            {name: system[name] for name in names if system.get(name) is not None}
        ),
    )


def _add_curves(
    storage: LeasedRDBStorage, study_id: int, trials: Sequence[StoredTrial]
) -> Iterator[StoredTrial]:
    """Yield trials with their curves, of which few are in memory at a time.

    Raises:
        StudyFormatError: if a curve is damaged.
    """
    curves = stream_curves(storage, study_id)
    points = next(curves, [])
    count = 0
    for trial in trials:
        losses: dict[int, float] = {}
        if points and points[0][0] == trial.number:
            losses = {step: loss for _, step, loss in points}
            points = next(curves, [])
        count += len(losses)
        yield replace(trial, curve=losses)
    _require_points(storage, study_id, count)


def _require_points(storage: LeasedRDBStorage, study_id: int, count: int) -> None:
    """Check that no curve was left out as damaged."""
    if (stored := count_points(storage, study_id)) != count:
        with reporting_damage(storage, study_id):
            raise RowError(f"{count:,} of {stored:,} log points can be read")


def _count_windows(trials: Sequence[StoredTrial]) -> dict[str, int]:
    """Return the number of evaluation windows, by attribute."""
    counts = {}
    for name in EVAL_WINDOWS.values():
        lengths = {len(trial.system_attributes.get(name, ())) for trial in trials} - {0}
        if len(lengths) > 1:
            raise RowError(f"its trials have {' and '.join(map(str, sorted(lengths)))} {name}")
        if lengths:
            counts[name] = lengths.pop()
    return counts


def _read_study_system_attributes(storage: LeasedRDBStorage, study_id: int) -> dict[str, Any]:
    """Read the system attributes of a study that belong to its results."""
    names = STUDY_SYSTEM_ATTRIBUTES
    with storage.reading() as connection:
        stored = read_study_attrs(connection, STUDY_SYSTEM_ATTRS, study_id, names)
    return {
        name: parse_study_system_attribute(name, stored[name]) for name in names if name in stored
    }


def _read_choices(storage: LeasedRDBStorage, study_id: int) -> dict[str, list[ParamValue]]:
    """Read the choices of each parameter of the grid trials."""
    choices: dict[str, dict[ParamValue, None]] = {}
    with storage.reading() as connection:
        for name, found in read_choices(connection, study_id):
            choices.setdefault(name, {}).update(dict.fromkeys(found))
    return {name: list(choices[name]) for name in param_order(choices)}


def shorten_paths(text: str) -> str:
    """Replace each path in a text by its last part, and each URL by its scheme."""
    text = _URL.sub(r"\1:", text)
    text = _QUOTED_PATH.sub(r"\1\2\1", text)
    return _PATH.sub("", text)


def anonymize_record(record: StudyRecord) -> StudyRecord:
    """Return what a study stores about itself without the folders of its files."""
    config = record.config
    corpus = record.corpus
    if corpus is not None:
        corpus = corpus.model_copy(update={"name": PurePath(corpus.name).name})
    cells = {
        name: cell.model_copy(update={"spec": shorten_paths(cell.spec)})
        for name, cell in config.cells.items()
    }
    space = config.space and tuple(
        each.model_copy(update={"cell": each.cell and [shorten_paths(cell) for cell in each.cell]})
        for each in config.space
    )
    changes: dict[str, Any] = {"corpus": PurePath(config.corpus).name, "cells": cells}
    changes |= {"space": space}
    if config.task_record is not None:
        source = shorten_paths(config.task_record.source)
        texts = {
            name: shorten_paths(value)
            for name, value in config.task_record.values.items()
            if isinstance(value, str)
        }
        values = config.task_record.values | texts
        changes["task"] = TaskSettings.model_validate({"source": source, **values})
        changes["task_record"] = config.task_record.model_copy(
            update={"source": source, "values": values, "folder": ""}
        )
    ends = [
        end.model_copy(update={"command": shorten_paths(end.command)})
        for end in record.earlier_ends
    ]
    return record.model_copy(
        update={
            "config": config.model_copy(update=changes),
            "corpus": corpus,
            "commands": [shorten_paths(command) for command in record.commands],
            "earlier_ends": ends,
        }
    )


class MachineNames:
    """Names of machines and workers without what they are called, in the order of their trials."""

    def __init__(self) -> None:
        self._hosts: dict[str, str] = {}
        self._workers: dict[str, str] = {}

    def add(self, value: Any) -> None:
        """Add the machine and the worker that attributes name, and records in them."""
        if isinstance(value, list):
            for item in value:
                self.add(item)
        if not isinstance(value, Mapping):
            return
        if isinstance(host := value.get(_HOST), str):
            self._hosts.setdefault(host, f"machine-{len(self._hosts) + 1}")
        if isinstance(worker := value.get(_WORKER), str) and worker not in self._workers:
            host = worker.partition("/")[0]
            machine = self._hosts.setdefault(host, f"machine-{len(self._hosts) + 1}")
            count = sum(each.startswith(f"{machine}/") for each in self._workers.values())
            self._workers[worker] = f"{machine}/{count + 1}"
        for item in value.values():
            self.add(item)

    def replace(self, value: Any) -> Any:
        """Return attributes with other names of machines and workers, and without paths."""
        if isinstance(value, list):
            return [self.replace(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        replaced = {key: self.replace(item) for key, item in value.items()}
        for key, names in ((_HOST, self._hosts), (_WORKER, self._workers)):
            if key in replaced:
                replaced[key] = names.get(replaced[key], replaced[key])
        if isinstance(error := replaced.get(ERROR), str):
            for host, name in self._hosts.items():
                error = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", name, error)
            replaced[ERROR] = shorten_paths(error)
        return replaced
