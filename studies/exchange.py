"""Studies as files: JSON lines, one for the study and one for each trial.

A file leaves out who trained the study and where: machines, workers, commands, messages of errors
and what a dashboard or another program has written; of an absolute path only its last part is in
it. Trials that are not finished are as they start elsewhere, from step 0. The fields have the names
of Optuna's ``FrozenTrial``; JSON lacks numbers that are not finite, which are texts: ``"nan"``,
``"inf"``.
"""

import gzip
import json
import math
import re
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, NoReturn

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.study import StudyDirection
from optuna.trial import TrialState
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NaiveDatetime, ValidationError

from rnn.config import ParamValue
from rnn.errors import UserError
from studies.artifacts import new_folder
from studies.atomic_files import atomic_write, compress, require_regular
from studies.attributes import (
    AUDIT,
    COMMANDS,
    CONFIG,
    EARLIER_FAILURES,
    ERROR,
    HYPOTHESES,
    IS_GRID_TRIAL,
    OBJECTIVE_ATTRIBUTES,
    OBJECTIVE_NAMES,
    SOURCE_TRIALS,
    STUDY_SYSTEM_ATTRIBUTES,
    AuditState,
    StudyRecord,
    StudyResults,
    TrialAttributes,
    TrialResults,
    is_result,
)
from studies.config import Objective
from studies.errors import RowError, StudyFileError, StudyFormatError
from studies.loader import describe_mistakes
from studies.messages import check_study_name, shorten
from studies.storage.counts import count_where, find_study
from studies.storage.database import redact
from studies.storage.edits import to_note_attributes, write_note
from studies.storage.open import list_study_names, open_storage, parse_record, read_storage
from studies.storage.reads import read_study
from studies.storage.tables import insert_study
from studies.storage.trials import StoredStudy, StoredTrial, decode_distribution

SUFFIXES = (".jsonl.gz", ".jsonl")
"""Ends of the names of study files."""

_FORMAT = "rnn-search study"

_VERSION: Literal[1] = 1
"""Version of the format. Raise it when a field or a meaning changes."""

_FIRST_LINE = re.compile(rf'\{{\s*"format"\s*:\s*"{_FORMAT}"')
"""Beginning of a file."""

_GZIP = b"\x1f\x8b"

_USER_ATTRIBUTES = tuple(TrialAttributes.model_fields)
"""User attributes of a trial in a file, in their order."""

_PRIVATE = {"host", "worker", ERROR}
"""Those that are left out, because they name machines, users or folders."""


# ------------------------------------------------------------------ export


@dataclass(frozen=True)
class ExportResult:
    """What was exported.

    Attributes:
        size: size of the file in bytes.
    """

    trials: int
    size: int


def export_study(storage: str, name: str, path: Path) -> ExportResult:
    """Write the grid trials of a study to a file.

    Equal studies give equal files: nothing in them says when or by whom they were written.

    Args:
        storage: URL of the storage that holds it.
        name: name of the study.
        path: file to write, whose name ends in ``.jsonl.gz`` or ``.jsonl``; an earlier file of this
            study is replaced.

    Raises:
        StudyNotFoundError, StudyFormatError: if the study cannot be exported.
        StudyFileError: if the file cannot be written, or exists and is not one of this study; it
            stays unchanged.
        StorageError: if the storage cannot be read.
    """
    if not path.name.endswith(SUFFIXES):
        raise StudyFileError(
            f"{path} is not a study file: expected a name ending in {' or '.join(SUFFIXES)}"
        )
    _require_replaceable(path, name)
    with closing(read_storage(storage)) as opened, opened.reading() as connection:
        study = read_study(opened, name)
        record = parse_record(name, study.attributes)
        count = count_where(connection, find_study(connection, name))
        if not count:
            raise StudyFormatError(f"study {name!r} has no grid trial: expected one or more")
        lines = (
            f"{json.dumps(line, separators=(',', ':'))}\n".encode()
            for line in _format_lines(study, record, count)
        )
        try:
            require_regular(path)
            atomic_write(path, compress(lines, 9) if path.name.endswith(".gz") else lines)
            return ExportResult(count, path.stat().st_size)
        except OSError as error:
            raise StudyFileError(f"cannot write {path}: {error.strerror}") from error


def _require_replaceable(path: Path, name: str) -> None:
    """Require that a path is free, or has an earlier file of a study."""
    if not path.is_file():
        return
    try:
        with open_study_file(path) as study:
            found = f"a file of study {study.name!r}" if study.name != name else ""
    except StudyFileError:
        found = "not a study file"
    if found:
        raise StudyFileError(f"{path} exists and is {found}: expected a new file")


def _format_lines(study: StoredStudy, record: StudyRecord, count: int) -> Iterator[dict[str, Any]]:
    """Yield the line of a study, then that of each grid trial."""
    yield {
        "format": _FORMAT,
        "version": _VERSION,
        "name": study.name,
        "direction": study.direction.name.lower(),
        "metric": study.metric,
        "trials": count,
        "user_attrs": _select_record(record),
        "system_attrs": {
            name: study.system_attributes[name]
            for name in STUDY_SYSTEM_ATTRIBUTES
            if name in study.system_attributes
        },
        "distributions": {
            name: json.loads(distribution_to_json(distribution))
            for name, distribution in study.distributions.items()
        },
    }
    for trial in study.trials:
        if trial.is_grid:
            line = _format_trial(study, trial if trial.state.is_finished() else _reopen(trial))
            yield {key: value for key, value in line.items() if value not in (None, {})}


def _reopen(trial: StoredTrial) -> StoredTrial:
    """Return a trial as it starts where it has no checkpoint."""
    kept = (SOURCE_TRIALS, EARLIER_FAILURES)
    attributes = {key: value for key, value in trial.attributes.items() if key in kept}
    results = {key: value for key, value in trial.system_attributes.items() if key in kept}
    if AUDIT in trial.system_attributes:
        results[AUDIT] = AuditState().model_dump()
    return replace(
        trial,
        state=TrialState.WAITING,
        attributes=attributes,
        system_attributes=results,
        started=None,
        curve={},
    )


def _format_trial(study: StoredStudy, trial: StoredTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": _to_json(trial.values[0]) if trial.values else None,
        "datetime_start": trial.started and trial.started.isoformat(),
        "datetime_complete": trial.completed and trial.completed.isoformat(),
        "params": {
            name: trial.params[name] for name in study.distributions if name in trial.params
        },
        "user_attrs": _select_attributes(trial.attributes) | _select_own(study, trial),
        "system_attrs": _select_results(trial),
        "intermediate_values": {
            str(step): _to_json(trial.curve[step]) for step in sorted(trial.curve)
        },
    }


def _to_json(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def _select_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    names = [name for name in _USER_ATTRIBUTES if name in attributes and name not in _PRIVATE]
    return {name: attributes[name] for name in names}


def _select_own(study: StoredStudy, trial: StoredTrial) -> dict[str, Any]:
    """Return the attributes that a loop of one's own has stored of a trial, which are results."""
    if study.attributes[CONFIG].get("loop") is None:
        return {}
    names = trial.attributes.keys() - {*_USER_ATTRIBUTES}
    return {name: _hide_folders(trial.attributes[name]) for name in sorted(names)}


def _select_results(trial: StoredTrial) -> dict[str, Any]:
    """Return the system attributes of a trial that a file has, in a fixed order."""
    results: dict[str, Any] = {IS_GRID_TRIAL: True}
    for name in sorted(filter(is_result, trial.system_attributes)):
        results[name] = trial.system_attributes[name]
    if EARLIER_FAILURES in results:
        results[EARLIER_FAILURES] = [
            {**failure, "attributes": _select_attributes(failure["attributes"])}
            for failure in results[EARLIER_FAILURES]
        ]
    return results


def _select_record(record: StudyRecord) -> dict[str, Any]:
    """Return what a study stores about itself, without commands and folders."""
    attributes = record.attributes()
    del attributes["artifact_folder"]  # each stored study has one of its own
    del attributes[COMMANDS]
    config = attributes[CONFIG]
    for task in (config["task_record"], *config["task_records"].values()):
        if task is not None:
            task["folder"] = ""
    for name in ("cells", "task", "task_record", "task_records", "results"):
        config[name] = _hide_folders(config[name])
    if config["loop"]:  # whose trials have the values of the space, whatever they are
        config["loop"]["function"] = _hide_folders(config["loop"]["function"])
    else:
        config["space"] = _hide_folders(config["space"])
    return attributes


def _hide_folders(value: Any) -> Any:
    """Return a value with each absolute path and each URL in it by its last part."""
    if isinstance(value, dict):
        return {key: _hide_folders(part) for key, part in value.items()}
    if isinstance(value, list):
        return list(map(_hide_folders, value))
    if not isinstance(value, str):
        return value
    if "://" in value:
        return re.sub("://.*/", ":///", value)
    # Also in a text such as sequences:PATH or PATH:Class.
    parts = value.split(":")
    return ":".join(PurePath(part).name if part.startswith("/") else part for part in parts)


# ------------------------------------------------------------------ import


@dataclass(frozen=True)
class ImportResult:
    """A study that was imported.

    Attributes:
        storage: URL of its storage, without the password.
        missing_source: name of the study that it derives from, if the storage lacks that.
    """

    name: str
    storage: str
    trials: int
    missing_source: str | None = None


def import_studies(
    storage: str,
    paths: Sequence[Path],
    name: str | None = None,
    objective: Objective | None = None,
) -> list[ImportResult]:
    """Store the studies of some files: all of them in one transaction, or none.

    Args:
        storage: URL of the storage, which is created if it does not exist.
        paths: the files.
        name: name of the study, if there is one file; None for the name in each file.
        objective: objective to store, see :func:`change_objective`; None for that of each file.

    Raises:
        UserError: if the name cannot be that of a study, or of several.
        StudyFileError: if a file cannot be read; the message names line and field. If it cannot
            have the objective.
        UserError: if a name is taken.
        StorageError: if the storage cannot be used.
    """
    if name is not None:
        if len(paths) > 1:
            raise UserError(f"one name for {len(paths)} files: expected one file, or no --name")
        check_study_name(name)
    checked = []
    for path in paths:  # all are checked before the storage is opened, which may create it
        with open_study_file(path, objective) as study:
            count = sum(1 for _ in study.trials)
        refinement = study.attributes[CONFIG]["refinement"] or {}
        checked.append((name or study.name, count, refinement.get("source")))
    with closing(open_storage(storage)) as opened:
        try:
            with opened.transaction() as connection:
                for path, (stored_name, _, _) in zip(paths, checked, strict=True):
                    with open_study_file(path, objective) as study:
                        insert_study(connection, _complete(study, stored_name))
        except sa.exc.IntegrityError as error:
            raise UserError(
                f"study {stored_name!r} exists there already: expected another name (--name)"
            ) from error
        opened.merge_log()
        names = list_study_names(opened)
        where = redact(opened.engine.url.set(password=None))
    return [
        ImportResult(stored_name, where, count, source if source not in names else None)
        for stored_name, count, source in checked
    ]


def is_exported_study(path: Path) -> bool:
    """Return whether the beginning of a file says that it is a study; a table is not compressed."""
    if path.name.endswith(".gz"):
        return True
    # Where it cannot be read, the import of tables says why.
    with suppress(StudyFileError), closing(_read_lines(path)) as lines:
        return _FIRST_LINE.match(next(lines, "")) is not None
    return False


def _complete(study: StoredStudy, name: str) -> StoredStudy:
    """Return a study under a name, with the folder and the note that it has when it is created."""
    question = study.attributes[CONFIG]["question"]
    text = write_note(name, question, study.attributes[COMMANDS])
    return replace(
        study,
        name=name,
        attributes={**study.attributes, "artifact_folder": new_folder(name)},
        system_attributes={**study.system_attributes, **to_note_attributes(text)},
    )


@contextmanager
def open_study_file(path: Path, objective: Objective | None = None) -> Iterator[StoredStudy]:
    """Open a file as the study that it holds; its trials are read and checked when iterated.

    The artifact folder is missing from its attributes. With an objective, it is that of
    :func:`change_objective`.

    Raises:
        StudyFileError: if it is not a study file, or something in it is not what it should be; the
            message names line and field.
    """
    with closing(_read_lines(path)) as lines:
        first = next(lines, "")
        if not _FIRST_LINE.match(first):
            raise StudyFileError(
                f"{path} is not an exported study: expected a file that rnn-search export-study "
                "wrote"
            )
        study = _FileReader(path).read(first, lines)
        yield study if objective is None else change_objective(study, objective)


def change_objective(study: StoredStudy, objective: Objective) -> StoredStudy:
    """Return a study whose values are the losses that its trials recorded for another objective.

    It has no hypotheses: they were about the other loss.

    Raises:
        StudyFileError: if its trials are no networks of this program, or were pruned by their
            values. When its trials are iterated: if a complete one did not record the loss.
    """
    config = study.attributes[CONFIG]
    name = OBJECTIVE_NAMES[objective]
    wanted = f"study {study.name!r} cannot have the objective {objective!r}"
    if objective == config["objective"]:
        return study
    if config["results"]:
        raise StudyFileError(f"{wanted}: its results are of another program, one value a trial")
    if config["loop"]:
        raise StudyFileError(f"{wanted}: its trials are of a loop, one value a trial")
    if config["pruning"]["enabled"]:
        raise StudyFileError(f"{wanted}: it was pruned by its {study.metric}")

    def change_values() -> Iterator[StoredTrial]:
        for trial in study.trials:
            if trial.state != TrialState.COMPLETE:
                yield trial
                continue
            loss = trial.attributes.get(OBJECTIVE_ATTRIBUTES[objective])
            if loss is None:
                raise StudyFileError(f"{wanted}: trial {trial.number} did not record its {name}")
            yield replace(trial, values={0: loss})

    attributes = {
        **study.attributes,
        CONFIG: {**config, "objective": objective, "hypothesis": []},
        HYPOTHESES: [],
    }
    return replace(study, metric=name, attributes=attributes, trials=change_values())


def _read_lines(path: Path) -> Generator[str]:
    """Yield the lines of a file, unpacked if it is compressed."""
    number = 0
    try:
        with path.open("rb") as file:
            opener = gzip.open if file.read(len(_GZIP)) == _GZIP else open
        with opener(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                number += 1
                yield line
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StudyFileError(
            f"{path} cannot be read after line {number} ({reason}): expected a whole study file"
        ) from error


_Number = Annotated[
    float,
    BeforeValidator(lambda value: float(value) if value in ("nan", "inf", "-inf") else value),
]
_Count = Annotated[int, Field(ge=0, lt=1_000_000)]
_Step = Annotated[int, Field(ge=0, lt=2**31)]


class _StudyLine(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: str
    version: int
    name: str
    direction: Literal["minimize", "maximize"]
    metric: str
    trials: _Count
    user_attrs: dict[str, Any]
    system_attrs: StudyResults
    distributions: dict[str, dict[str, Any]]


class _TrialLine(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    number: _Count
    state: Literal["COMPLETE", "PRUNED", "FAIL", "WAITING"]
    value: _Number | None = None
    datetime_start: NaiveDatetime | None = None
    datetime_complete: NaiveDatetime | None = None
    params: dict[str, ParamValue] = {}
    user_attrs: TrialAttributes = TrialAttributes()
    system_attrs: TrialResults
    intermediate_values: dict[_Step, _Number] = {}


class _LoopAttributes(TrialAttributes):
    model_config = ConfigDict(extra="allow", ser_json_inf_nan="constants")


class _LoopTrialLine(_TrialLine):
    user_attrs: _LoopAttributes = _LoopAttributes()


class _FileReader:
    """Reads and checks the lines of a study file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._line = 1
        self._distributions: dict[str, BaseDistribution] = {}
        self._model: type[_TrialLine] = _TrialLine

    def read(self, first: str, lines: Iterator[str]) -> StoredStudy:
        """Return the study; its trials are read from the lines after the first."""
        header: _StudyLine = self._parse(_StudyLine, first)
        if header.version != _VERSION:
            self._reject(
                f"version {header.version} of the format, expected {_VERSION}: install the version "
                "of this program that wrote it"
            )
        try:
            check_study_name(header.name)
            record = parse_record(header.name, {**header.user_attrs, "artifact_folder": "none"})
        except UserError as error:
            self._reject(shorten(str(error), 200), error)
        if record.config.direction != header.direction:
            self._reject(f"direction {header.direction}, expected {record.config.direction}")
        try:
            self._distributions = {
                name: decode_distribution(json.dumps(stored))
                for name, stored in header.distributions.items()
            }
        except RowError as error:
            self._reject(f"distributions: {shorten(str(error), 200)}", error)
        if record.config.loop is not None:
            self._model = _LoopTrialLine
        attributes = record.attributes()
        del attributes["artifact_folder"]
        return StoredStudy(
            header.name,
            header.metric,
            attributes,
            self._distributions,
            self._read_trials(header.trials, lines),
            StudyDirection[header.direction.upper()],
            header.system_attrs.model_dump(mode="json", by_alias=True, exclude_unset=True),
        )

    def _read_trials(self, count: int, lines: Iterator[str]) -> Iterator[StoredTrial]:
        last = -1
        for line in lines:
            self._line += 1
            parsed: _TrialLine = self._parse(self._model, line)
            if parsed.number <= last:
                self._reject(f"number: {parsed.number}, expected one above {last}")
            last = parsed.number
            yield self._read_trial(parsed)
        if self._line != 1 + count:
            self._reject(f"the file ends with {self._line - 1:,} trials, expected {count:,}")

    def _read_trial(self, line: _TrialLine) -> StoredTrial:
        """Return the trial of a line, whose parameters its study may have."""
        if line.state == TrialState.COMPLETE.name and (
            line.value is None or math.isnan(line.value)
        ):
            self._reject("value: expected a number because the trial is complete")
        if unknown := line.params.keys() - self._distributions.keys():
            self._reject(f"params: {shorten(repr(min(unknown)))} has no distribution, expected one")
        try:
            for name, value in line.params.items():
                self._distributions[name].to_internal_repr(value)
        except ValueError as error:
            self._reject(f"params: {shorten(str(error), 200)}", error)
        return StoredTrial(
            line.params,
            line.user_attrs.model_dump(mode="json", exclude_unset=True),
            state=TrialState[line.state],
            values={} if line.value is None else {0: line.value},
            number=line.number,
            started=line.datetime_start,
            completed=line.datetime_complete,
            system_attributes=line.system_attrs.model_dump(
                mode="json", exclude_unset=True, exclude={IS_GRID_TRIAL}
            ),
            curve=line.intermediate_values,
        )

    def _parse(self, model: Any, text: str) -> Any:
        try:
            return model.model_validate_json(text)
        except ValidationError as error:
            self._reject(shorten(describe_mistakes(error), 200), error)

    def _reject(self, message: str, cause: BaseException | None = None) -> NoReturn:
        """Reject the last line that was read.

        Raises:
            StudyFileError: always.
        """
        raise StudyFileError(f"{self._path}, line {self._line}: {message}") from cause
