"""Opening and creation of storages, safe for concurrent processes."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import sqlalchemy as sa
import tenacity
from alembic.script import ScriptDirectory
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from optuna.storages import _rdb as rdb
from optuna.storages._rdb import models
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import SQLAlchemyError

from studies.errors import StorageError, StorageNotFoundError, StudyNotFoundError
from studies.files import require_regular
from studies.storage.backup import merge_log
from studies.storage.engine import (
    connect,
    engine_options,
    log_path,
    parse_url,
    read_only_url,
    redact,
)
from studies.storage.retry import retry_on_connection_limit
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trial_rows import STUDIES, TRIALS
from studies.temporary_files import remove_temporary_files_of, temporary_file
from studies.text import did_you_mean

DEFAULT_STORAGE = "sqlite:///studies/studies.db"
"""Default storage, relative to the working directory. Only its folder is created if missing."""

_VERSION_TABLE = "alembic_version"
_OPTUNA_TABLES = {*models.BaseModel.metadata.tables, _VERSION_TABLE}
_REQUIRED_TABLES = {"studies", "trials", "trial_params", "version_info", _VERSION_TABLE}
CLAIM_INDEX = "ix_trials_study_id_state_number"
"""Index added to Optuna's tables, to find the next waiting trial; claims work without it."""

_CREATION_LOCK = 0x524E4E  # arbitrary key of a PostgreSQL advisory lock


def open_storage(url: str) -> LeasedRDBStorage:
    """Open a storage for writing, and create it if it does not exist.

    Any number of processes may do so at the same time.

    Args:
        url: URL of the form ``sqlite:///FILE`` or ``postgresql+psycopg://USER@HOST/DATABASE``.

    Raises:
        StorageError: if the storage cannot be opened, holds another program's data, or has a
            schema that the installed Optuna does not know; it is left unchanged. The message
            contains no password.
    """
    parsed = parse_url(url)
    is_file = parsed.get_backend_name() == "sqlite"
    with _translate_errors(parsed):
        if is_file:
            require_regular(Path(str(parsed.database)))
            _create_sqlite(parsed)
        else:
            _create_on_server(parsed)
        schema = _inspect(parsed)
        _check_schema(schema, parsed)
        storage = LeasedRDBStorage(
            parsed.render_as_string(hide_password=False), engine_options(parsed)
        )
        if is_file:
            # Optuna creates files in another mode, in which readers and writers block each other.
            with contextlib.closing(storage.engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
            with storage.transaction() as transaction:
                # Write nothing: only a statement that could write fails on a read-only file.
                transaction.execute(sa.delete(TRIALS).where(sa.false()))
        if not schema.is_indexed:
            _create_claim_index(storage)
            merge_log(storage)
        return storage


def read_storage(url: str) -> LeasedRDBStorage:
    """Open a storage for reading, without creating or changing anything.

    Raises:
        StorageError: as for :func:`open_storage`, or if the storage does not exist.
    """
    parsed = parse_url(url)
    is_file = parsed.get_backend_name() == "sqlite"
    with _translate_errors(parsed):
        if is_file and not Path(str(parsed.database)).exists():
            raise StorageNotFoundError(
                f"storage {redact(parsed)} does not exist: run a search first, or check --storage"
            )
        if is_file:
            require_regular(Path(str(parsed.database)))
            parsed = read_only_url(parsed)
        _check_schema(_inspect(parsed), parsed)
        return LeasedRDBStorage(
            parsed.render_as_string(hide_password=False), engine_options(parsed)
        )


def load_study(storage: LeasedRDBStorage, name: str) -> optuna.Study:
    """Load a study by its name.

    Raises:
        StudyNotFoundError: if it does not exist; the message lists the studies that do.
    """
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        names = list_study_names(storage)
        known = ", ".join(names) or "none"
        raise StudyNotFoundError(
            f"study {name!r} is not in {redact(storage.engine.url)}: {did_you_mean(name, names)}"
            f"run it first, or check the name (existing studies: {known})"
        ) from error


def list_study_names(storage: LeasedRDBStorage) -> list[str]:
    """Return the names of all studies, sorted; Optuna would read all that they store as well."""
    with storage.engine.begin() as connection:
        return sorted(connection.scalars(sa.select(STUDIES.c.study_name)))


def read_study_name(connection: Connection, study_id: int) -> str | None:
    """Return the name that a study has now; None if it does not exist."""
    query = sa.select(STUDIES.c.study_name).where(STUDIES.c.study_id == study_id)
    name: str | None = connection.scalar(query)
    return name


@dataclass(frozen=True)
class _SchemaInfo:
    """Tables of a database, the version of Optuna's schema, and whether the claim index exists."""

    tables: set[str]
    version: str | None
    is_indexed: bool

    @property
    def is_complete(self) -> bool:
        return self.tables >= _REQUIRED_TABLES and self.version is not None


def _inspect(url: URL) -> _SchemaInfo:
    engine = connect(url)
    try:
        with engine.connect() as connection:
            return _inspect_connection(connection)
    finally:
        engine.dispose()


def _inspect_connection(connection: Connection) -> _SchemaInfo:
    inspector = sa.inspect(connection)
    tables = set(inspector.get_table_names())
    version = None
    if _VERSION_TABLE in tables:
        version = connection.scalar(sa.text(f"SELECT version_num FROM {_VERSION_TABLE}"))
    indexes = inspector.get_indexes(TRIALS.name) if TRIALS.name in tables else []
    return _SchemaInfo(tables, version, any(index["name"] == CLAIM_INDEX for index in indexes))


def _check_schema(schema: _SchemaInfo, url: URL) -> None:
    if not schema.tables and url.get_backend_name() != "sqlite":
        raise StorageNotFoundError(f"storage {redact(url)} holds no study yet: run a search first")
    if not schema.tables >= _REQUIRED_TABLES:
        raise StorageError(
            f"storage {redact(url)} is not a database of studies and was left unchanged: expected "
            "a new database, or one that Optuna created"
        )
    expected = ScriptDirectory(str(Path(rdb.__file__).parent / "alembic")).get_current_head()
    if schema.version != expected:
        raise StorageError(
            f"storage {redact(url)} has schema {schema.version} and was left unchanged: Optuna "
            f"{optuna.__version__} expected {expected}; install the version that created it, or "
            "use another storage"
        )


def _create_sqlite(url: URL) -> None:
    """Create an SQLite file atomically, complete with Optuna's tables."""
    path = Path(str(url.database)).resolve()  # a link may lead to a file that is created
    remove_temporary_files_of(path)
    # Looked for first: a file that exists has a log whenever it is open.
    has_log = log_path(path).exists()
    if path.exists():
        return
    if has_log:  # SQLite would write its content into the new file
        raise StorageError(
            f"storage {redact(url)} was deleted or moved without its log {path.name}-wal: restore "
            f"the file to resume, or delete {path.name}-wal and {path.name}-shm to start anew"
        )
    if url == parse_url(DEFAULT_STORAGE):
        path.parent.mkdir(exist_ok=True)
    if not path.parent.is_dir():
        raise StorageError(
            f"storage {redact(url)}: folder {path.parent} does not exist: create it, or use "
            "another file"
        )
    tables = RDBStorage("sqlite:///:memory:")
    # Another process may be faster: then its file is used.
    while not os.path.lexists(path):
        with temporary_file(path) as temporary, contextlib.suppress(FileExistsError):
            try:
                _copy_database(tables, temporary)
                path.hardlink_to(temporary)
            except (sqlite3.Error, FileNotFoundError):
                if temporary.exists():
                    raise
                # Removed as an old one, because this process stood still for long.
    tables.engine.dispose()


def _copy_database(source: RDBStorage, path: Path) -> None:
    """Copy an SQLite database in memory to an empty file, in WAL mode."""
    with (
        contextlib.closing(source.engine.raw_connection()) as connection,
        contextlib.closing(sqlite3.connect(path)) as copy,
    ):
        memory = connection.driver_connection
        assert isinstance(memory, sqlite3.Connection)
        memory.backup(copy)
        copy.execute("PRAGMA journal_mode = WAL")


def _create_on_server(url: URL) -> None:
    """Create Optuna's tables in an empty database.

    A lock admits one process at a time: of two that create the same table one would fail, and a
    third could see some of the tables only.
    """
    engine = connect(url)
    for attempt in _retry_until_locked():
        with attempt, engine.connect() as connection:
            # The server would end a transaction that stays open during the waits.
            connection.execution_options(isolation_level="AUTOCOMMIT")
            if _inspect_connection(connection).is_complete:
                return
            if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(_CREATION_LOCK))):
                raise _LockHeldError
            try:
                schema = _inspect_connection(connection)
                # Tables without a version were left by a process that was killed: complete them.
                if schema.tables <= _OPTUNA_TABLES and schema.version is None:
                    create = retry_on_connection_limit(RDBStorage)
                    create(url.render_as_string(hide_password=False), engine_options(url))
            finally:
                connection.execute(sa.select(sa.func.pg_advisory_unlock(_CREATION_LOCK)))


class _LockHeldError(Exception):
    """Another process is creating the tables or the index."""


def _retry_until_locked() -> tenacity.Retrying:
    """Return attempts that are repeated, after a random wait, until a lock is acquired.

    Waiting for the lock in the database would hold connections that its holder may need.
    """
    wait = tenacity.wait_random_exponential(multiplier=0.2, max=5)
    return tenacity.Retrying(wait=wait, retry=tenacity.retry_if_exception_type(_LockHeldError))


def _create_claim_index(storage: LeasedRDBStorage) -> None:
    """Create the index with which a claim finds the next waiting trial in logarithmic time."""
    for attempt in _retry_until_locked():
        # Without the privilege to create an index, claims work without it.
        with (
            attempt,
            contextlib.suppress(sa.exc.ProgrammingError),
            storage.transaction() as connection,
        ):
            if connection.dialect.name != "sqlite":
                if _inspect_connection(connection).is_indexed:
                    return
                lock = sa.select(sa.func.pg_try_advisory_xact_lock(_CREATION_LOCK))
                if not connection.scalar(lock):
                    raise _LockHeldError
            columns = "study_id, state, number"
            connection.execute(
                sa.text(f"CREATE INDEX IF NOT EXISTS {CLAIM_INDEX} ON {TRIALS.name} ({columns})")
            )


@contextlib.contextmanager
def _translate_errors(url: URL) -> Iterator[None]:
    """Raise database errors as a StorageError: one line, without a password."""
    try:
        yield
    except (SQLAlchemyError, OptunaError, OSError, sqlite3.Error) as error:
        cause = error.__cause__ or error
        summary = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
        raise StorageError(
            f"storage {redact(url)} cannot be opened ({summary}): check the address and that you "
            "may write there"
        ) from error
    except ImportError as error:
        raise StorageError(
            f"storage {redact(url)} needs the driver for PostgreSQL: install it with "
            "pip install 'psycopg[binary]'"
        ) from error
