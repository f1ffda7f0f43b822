"""Users' own cells of a study: loaded from their files, and from the copies that a study keeps.

A file that the user names is executed by every process that trains a study. Its copy, next to the
study's weights, is executed where there is no such file: in a refinement, and in a study that is
opened by its stored name. A copy is executed only if its SHA-256 is the one in the study's record.
"""

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path

from optuna.artifacts.exceptions import ArtifactNotFound

from rnn.errors import CellError
from rnn.own_cells import CellSource, load_cell, loaded_source, read_cell_source
from studies.artifacts import Store, store_location
from studies.attributes import RESERVED_OPTION_NAMES
from studies.cell_record import CellRecord, cell_name, read_options
from studies.config import StudyConfig
from studies.config_file import ConfigFile
from studies.errors import ArtifactsError, ConfigMismatchError


def load_cells(file: ConfigFile) -> ConfigFile:
    """Load the users' cells that a config file names; return the file with their records.

    Cells that overrides have removed are loaded for the names of their options.

    A cell of a stored study whose settings are opened by name is not loaded here.

    Raises:
        CellError: if a source cannot be read, or does not define a cell.
    """
    stored = file.settings.get("cells", {}) if file.is_stored else {}
    records: dict[str, CellRecord] = {}
    for spec in file.cell_specs:
        try:
            name = cell_name(spec)
        except ValueError:  # reported with the other settings
            continue
        if name not in records and name not in stored:  # two of a name are reported as well
            records[name] = load_record(spec, file.folder_of("space.cell"))
    for spec in file.removed_specs:
        name = spec.rpartition(":")[2]
        if ":" in spec and name not in stored:
            with contextlib.suppress(CellError):  # it need not be there: it is not trained
                records[name] = load_record(spec, file.folder or Path())
    return file.with_cells(records)


def load_record(spec: str, folder: Path) -> CellRecord:
    """Load a cell, as :func:`rnn.own_cells.read_cell_source` finds it; return what is stored.

    Raises:
        CellError: if its source cannot be read, or does not define a cell that can be searched.
    """
    source = read_cell_source(spec, folder)
    try:
        options = read_options(load_cell(source))
    except ValueError as error:
        raise CellError(str(error)) from error
    for name in options:
        if name in RESERVED_OPTION_NAMES:
            raise CellError(
                f"cell {source.name} has an option {name}, which is the name of another parameter "
                "or result of a trial: rename the option"
            )
    return CellRecord(spec=spec, sha256=source.sha256, options=options)


class CellStore:
    """Copies of the source files of a study's cells.

    Args:
        store: artifact store.
        folder: folder of the study in the store.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._folder = folder

    def save(self, cells: Mapping[str, CellRecord]) -> None:
        """Write the sources of cells, which are loaded.

        Raises:
            ArtifactsError: if one cannot be written.
        """
        for name, record in cells.items():
            text = loaded_source(name, record.sha256).text
            try:
                self._store.write(self._file_name(name), io.BytesIO(text.encode()))
            except Exception as error:  # of the file system or the bucket
                raise ArtifactsError(
                    f"the source of cell {name} cannot be written to {self._location} ({error}): "
                    "check --artifacts"
                ) from error

    def load(self, cells: Mapping[str, CellRecord]) -> None:
        """Load cells from their copies, unless they are loaded.

        Raises:
            CellError: if there is no copy, or it is not the file that the study was created with.
        """
        for name, record in cells.items():
            with contextlib.suppress(CellError):
                loaded_source(name, record.sha256)
                continue
            load_cell(self._read_source(name, record))

    def _read_source(self, name: str, record: CellRecord) -> CellSource:
        where = f"the source of cell {name} in {self._location}"
        try:
            with contextlib.closing(self._store.open_reader(self._file_name(name))) as reader:
                content = reader.read()
        except ArtifactNotFound as error:
            raise CellError(
                f"{where} is missing: check --artifacts, or use the study's own file"
            ) from error
        except Exception as error:  # of the file system or the bucket
            raise CellError(f"{where} cannot be read ({error}): check --artifacts") from error
        source = CellSource(record.spec, name, content.decode(errors="replace"))
        if source.sha256 != record.sha256:
            raise CellError(
                f"{where} is not the file that the study was created with (SHA-256 "
                f"{record.sha256[:8]}…): restore it"
            )
        return source

    @property
    def _location(self) -> str:
        return store_location(self._store, self._folder)

    def _file_name(self, name: str) -> str:
        return f"{self._folder}/cell-{name}.py"


def check_sources(study: str, stored: StudyConfig, local: StudyConfig) -> None:
    """Require the source files of a worker's cells to be those of its study.

    Raises:
        ConfigMismatchError: if one is another version.
    """
    for name in stored.cells.keys() & local.cells.keys():
        old, new = stored.cells[name], local.cells[name]
        if old.sha256 != new.sha256:
            raise ConfigMismatchError(
                f"study {study!r} was created with another version of {name} "
                f"({old.spec.rpartition(':')[0]}, SHA-256 {old.sha256[:8]}…, here "
                f"{new.sha256[:8]}…): restore the file, or choose another --name"
            )
