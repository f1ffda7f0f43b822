"""Users' own cells of a study: loaded from their files, and from the copies that a study keeps.

The class of a user's own task is kept in the same way; :mod:`search.study_tasks` loads it.

A file that the user names is executed by every process that trains a study. Its copy, next to the
study's weights, is executed where there is no such file: in a refinement, and in a study that is
opened by its stored name. A copy is executed only if its SHA-256 is the one in the study's record.
"""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rnn.config import ParamValue
from rnn.errors import CellError, UserError
from rnn.own_code import (
    CellSource,
    CodeSource,
    TaskSource,
    load_class,
    loaded_source,
    read_source,
)
from studies.attributes import RESERVED_OPTION_NAMES
from studies.config import StudyConfig
from studies.errors import ArtifactsError
from studies.files import atomic_write
from studies.loader import ConfigFile
from studies.records import CellOption, CellRecord, TaskRecord, read_options
from studies.space import cell_name
from studies.text import expect_one_of


def load_cells(file: ConfigFile) -> ConfigFile:
    """Load the users' cells that a config file names; return the file with their records.

    A cell of a stored study whose settings are opened by name is not loaded here.

    Raises:
        CellError: if a source cannot be read, or does not define a cell.
    """
    records: dict[str, CellRecord] = {}
    for spec in file.cell_specs:
        try:
            name = cell_name(spec)
        except ValueError:  # reported with the other settings
            continue
        # Two of a name are reported as well.
        if name not in records and name not in file.stored_cells:
            records[name] = load_record(spec, file.folder_of("space.cell"))
    return file.model_copy(update={"cells": records})


def load_record(spec: str, folder: Path) -> CellRecord:
    """Load a cell, as :func:`rnn.own_code.read_source` finds it; return what is stored.

    Raises:
        CellError: if its source cannot be read, or does not define a cell that can be searched.
    """
    source = read_source(spec, folder, CellSource)
    try:
        options = read_options(load_class(source))
        check_option_names(f"cell {source.name}", options)
    except ValueError as error:
        raise CellError(str(error)) from error
    return CellRecord(spec=spec, sha256=source.sha256, options=options)


def check_option_names(subject: str, options: Iterable[str]) -> None:
    """Require that no option of a cell or a task is named like another parameter or a result.

    Raises:
        ValueError: if one is; the message begins with the subject.
    """
    for name in options:
        if name in RESERVED_OPTION_NAMES:
            raise ValueError(
                f"{subject} has an option {name}, which is the name of another parameter or "
                "result of a trial: rename the option"
            )


def read_values(
    subject: str, options: Mapping[str, CellOption], given: Mapping[str, Any]
) -> dict[str, ParamValue]:
    """Return the values that are given for options of a cell or a task, each in its option's type.

    Raises:
        UserError: if an option is unknown, or a value invalid; the message begins with the
            subject.
    """
    values: dict[str, ParamValue] = {}
    for name, value in given.items():
        if name not in options:
            expected = expect_one_of(options, name) if options else "it has no options"
            raise UserError(f"{subject} has no option {name}: {expected}")
        try:
            options[name].check(f"{subject} has {name}", [value])
        except ValueError as error:
            raise UserError(str(error)) from error
        values[name] = options[name].convert(value)
    return values


class CodeStore:
    """Copies of the source files of a study's cells and its task, in a folder of the study."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, cells: Mapping[str, CellRecord], tasks: Iterable[TaskRecord] = ()) -> None:
        """Write the sources of cells, and of the classes of tasks, which are loaded.

        Raises:
            ArtifactsError: if one cannot be written.
        """
        sources: list[CodeSource] = [
            loaded_source(name, record.sha256) for name, record in cells.items()
        ]
        for task in tasks:
            if task.sha256 is not None:
                sources.append(loaded_source(task.name, task.sha256, TaskSource))
        for source in sources:
            try:
                atomic_write(self._path(source.kind, source.name), [source.text.encode()])
            except OSError as error:
                raise ArtifactsError(
                    f"the source of {source.kind} {source.name} cannot be written to "
                    f"{self._folder} ({error}): check --artifacts"
                ) from error

    def load(self, cells: Mapping[str, CellRecord]) -> None:
        """Load cells from their copies, unless they are loaded.

        Raises:
            CellError: if there is no copy, or it is not the file that the study was created with.
        """
        for name, record in cells.items():
            load_class(self.read_source(CellSource, name, record.spec, record.sha256))

    def read_source(self, kind: type[CodeSource], name: str, spec: str, sha256: str) -> CodeSource:
        """Return the source of a class that is loaded, or else its copy.

        Raises:
            CellError, TaskError: if there is no copy, or it is not the file that the study was
                created with.
        """
        with contextlib.suppress(kind.error):
            return loaded_source(name, sha256, kind)
        where = f"the source of {kind.kind} {name} in {self._folder}"
        try:
            content = self._path(kind.kind, name).read_bytes()
        except FileNotFoundError as error:
            raise kind.error(
                f"{where} is missing: check --artifacts, or use the study's own file"
            ) from error
        except OSError as error:
            raise kind.error(f"{where} cannot be read ({error}): check --artifacts") from error
        source = kind(spec, name, content.decode(errors="replace"))
        if source.sha256 != sha256:
            raise kind.error(
                f"{where} is not the file that the study was created with (SHA-256 "
                f"{sha256[:8]}…): restore it"
            )
        return source

    def _path(self, kind: str, name: str) -> Path:
        return self._folder / f"{kind}-{name}.py"


def check_sources(study: str, stored: StudyConfig, local: StudyConfig) -> None:
    """Require the source files of a worker's cells and task to be those of its study.

    Raises:
        UserError: if one is another version.
    """
    pairs: list[tuple[str, str, str | None, str | None]] = [
        (name, cell.spec, cell.sha256, local.cells[name].sha256)
        for name, cell in stored.cells.items()
        if name in local.cells
    ]
    known = local.list_tasks()
    for name, task in stored.list_tasks().items():
        if name in known and task.name == known[name].name:
            pairs.append((task.name, task.source, task.sha256, known[name].sha256))
    for name, spec, old, new in pairs:
        if old and new and old != new:
            raise UserError(
                f"study {study!r} was created with another version of {name} "
                f"({spec.rpartition(':')[0]}, SHA-256 {old[:8]}…, here {new[:8]}…): restore the "
                "file, or choose another --name"
            )
