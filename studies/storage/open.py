"""Opening of storages and of the studies in them; creation, safe for concurrent processes."""

import contextlib
import operator
import shlex
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
import tenacity
from alembic.script import ScriptDirectory
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from pydantic import ValidationError
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from rnn.errors import UserError
from studies.atomic_files import remove_temporary_files_of, require_regular, temporary_file
from studies.attributes import SCHEMA_VERSION, StudyRecord
from studies.errors import StorageError, StorageNotFoundError, StudyFormatError
from studies.locations import DEFAULT_STORAGE
from studies.messages import shorten
from studies.storage.counts import find_study
from studies.storage.database import (
    configure,
    database_path,
    engine_options,
    error_message,
    log_path,
    parse_url,
    redact,
)
from studies.storage.optuna_tables import METADATA, MIGRATIONS
from studies.storage.storage import LeasedRDBStorage
from studies.storage.tables import STUDIES, TRIALS

CLAIM_INDEX = "ix_trials_study_id_state_number"
"""Index added to Optuna's tables, to find the next waiting trial in logarithmic time."""

_TABLES = {*METADATA.tables, "alembic_version"}
"""Tables of Optuna."""


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
            _create_sqlite(parsed)
        else:
            _create_on_server(parsed)
        storage = _open(parsed)
        if is_file:
            # Optuna creates files in another mode, in which readers and writers block each other.
            with contextlib.closing(storage.engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
            with storage.transaction() as transaction:
                # Write nothing: only a statement that could write fails on a read-only file.
                transaction.execute(sa.delete(TRIALS).where(sa.false()))
        if not sa.inspect(storage.engine).has_index(TRIALS.name, CLAIM_INDEX):
            columns = "study_id, state, number"
            create = f"CREATE INDEX IF NOT EXISTS {CLAIM_INDEX} ON {TRIALS.name} ({columns})"
            # Claims work without it: where the privilege is lacking, and while another process
            # creates it.
            with (
                contextlib.suppress(ProgrammingError, IntegrityError),
                storage.transaction() as transaction,
            ):
                transaction.execute(sa.text(create))
            storage.merge_log()
        return storage


def read_storage(url: str) -> LeasedRDBStorage:
    """Open a storage for reading, without creating or changing anything.

    Raises:
        StorageError: as for :func:`open_storage`, or if the storage does not exist.
    """
    parsed = parse_url(url)
    with _translate_errors(parsed):
        if path := database_path(parsed):
            if not path.exists():
                raise StorageNotFoundError(
                    f"storage {redact(parsed)} does not exist: run a search first, or check "
                    "--storage"
                )
            require_regular(path)
            parsed = parsed.update_query_dict({"mode": "ro", "uri": "true"})
        return _open(parsed)


def load_study(storage: LeasedRDBStorage, name: str) -> optuna.Study:
    """Load a study by its name.

    Raises:
        StudyNotFoundError: if it does not exist; the message lists the studies that do.
    """
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        with storage.reading() as connection:
            find_study(connection, name)
        raise  # it was created at this moment


def read_study_record(study: optuna.Study) -> StudyRecord:
    """Read and validate what a study whose trials run here stores about itself.

    Raises:
        UserError: if it was imported.
        StudyFormatError: if another program, or another version of this one, stored it.
    """
    record = read_record(study)
    if record.config.is_imported:
        raise UserError(
            f"study {study.study_name!r} was imported: its trials cannot be trained or derived "
            "from here"
        )
    return record


def read_record(study: optuna.Study) -> StudyRecord:
    """Read and validate what any study of this program stores about itself.

    Raises:
        StudyFormatError: if another program, or another version of this one, stored it.
    """
    return parse_record(study.study_name, study.user_attrs)


def parse_record(name: str, stored: Mapping[str, Any]) -> StudyRecord:
    """Validate the user attributes of a study, as :func:`read_record` does."""
    version = stored.get("schema_version")
    if version != SCHEMA_VERSION:
        if version is None:
            raise StudyFormatError(
                f"study {name!r} has no schema version: another program created it; expected a "
                "study of this one, as rnn-search import STORAGE --study "
                f"{shlex.quote(name)} makes of it"
            )
        raise StudyFormatError(
            f"study {name!r} has schema version {shorten(repr(version))}, expected "
            f"{SCHEMA_VERSION}: another version of this program created it; open it there"
        )
    try:
        return StudyRecord.model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise StudyFormatError(
            f"study {name!r} has an invalid attribute {key} ({first['msg']}): another version of "
            "this program changed it; use that version, or choose another study or --name"
        ) from error


def list_study_names(storage: LeasedRDBStorage) -> list[str]:
    """Return the names of all studies, sorted; Optuna would read all that they store as well."""
    with storage.engine.begin() as connection:
        return sorted(connection.scalars(sa.select(STUDIES.c.study_name)))


@contextlib.contextmanager
def _connect(url: URL) -> Iterator[Connection]:
    engine = sa.create_engine(url, **engine_options(url))
    configure(engine)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _read_schema(connection: Connection) -> tuple[set[str], str | None]:
    """Return the tables of a database, and the version of Optuna's schema if it is complete."""
    tables = set(sa.inspect(connection).get_table_names())
    if "alembic_version" not in tables:
        return tables, None
    return tables, connection.scalar(sa.text("SELECT version_num FROM alembic_version"))


def _open(url: URL) -> LeasedRDBStorage:
    """Open a storage after a check of its schema; Optuna would complete that of another program."""
    with _connect(url) as connection:
        tables, version = _read_schema(connection)
    is_new = version is None and tables <= _TABLES  # another process may be creating them
    if is_new and url.get_backend_name() != "sqlite":
        raise StorageNotFoundError(f"storage {redact(url)} holds no study yet: run a search first")
    if not tables >= {"studies", "trials", "trial_params", "version_info", "alembic_version"}:
        raise StorageError(
            f"storage {redact(url)} is not a database of studies and was left unchanged: expected "
            "a new database, or one that Optuna created"
        )
    expected = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    if version != expected:
        raise StorageError(
            f"storage {redact(url)} has schema {version} and was left unchanged: Optuna "
            f"{optuna.__version__} expected {expected}; install the version that created it, or "
            "use another storage"
        )
    return LeasedRDBStorage(url)


def _create_sqlite(url: URL) -> None:
    """Create an SQLite file atomically, complete with Optuna's tables."""
    path = Path(str(url.database))
    require_regular(path)
    path = path.resolve()  # a link may lead to a file that is created
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
    with contextlib.closing(tables.engine.raw_connection()) as connection:
        source = connection.driver_connection
        assert isinstance(source, sqlite3.Connection)
        with contextlib.suppress(FileExistsError):  # another process was faster
            _write_new(source, path)
    tables.engine.dispose()


def _write_new(source: sqlite3.Connection, path: Path) -> None:
    """Copy a database to a new file in WAL mode, which appears when it is complete.

    Raises:
        FileExistsError: if there is a file.
        OSError, sqlite3.Error: if it cannot be written; nothing is left.
    """
    with temporary_file(path) as temporary:
        with contextlib.closing(sqlite3.connect(temporary)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = WAL")
        try:
            path.hardlink_to(temporary)
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError:  # a file system without hard links
            path.touch(exist_ok=False)  # a rename alone would replace another file
            temporary.replace(path)


@tenacity.retry(
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
    retry=tenacity.retry_if_result(operator.not_),
)
def _create_on_server(url: URL) -> bool:
    """Create Optuna's tables in an empty database; return False if another process does.

    A lock admits one process at a time: of two that create the same table one would fail, and a
    third could see some of the tables only. Waiting for the lock in the database would hold
    connections that its holder may need.
    """
    with _connect(url) as connection:
        # The server would end a transaction that stays open while Optuna connects.
        connection.execution_options(isolation_level="AUTOCOMMIT")
        tables, version = _read_schema(connection)
        # Tables without a version were left by a process that was killed: complete them.
        if version is not None or not tables <= _TABLES:
            return True
        lock = 0x524E4E  # arbitrary key, held until the connection is closed
        if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(lock))):
            return False
        METADATA.create_all(connection)
        LeasedRDBStorage(url)  # inserts the version
        return True


@contextlib.contextmanager
def _translate_errors(url: URL) -> Iterator[None]:
    """Raise database errors as a StorageError: one line, without a password."""
    try:
        yield
    except (SQLAlchemyError, OptunaError, OSError, sqlite3.Error) as error:
        raise StorageError(
            f"storage {redact(url)} cannot be opened ({error_message(error)}): check the address "
            "and that you may write there"
        ) from error
    except ImportError as error:
        raise StorageError(
            f"storage {redact(url)} needs the driver for PostgreSQL: install it with "
            "pip install 'psycopg[binary]'"
        ) from error
