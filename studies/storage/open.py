"""A storage's URL → a storage that is safe for many processes."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

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
from studies.storage.engine import connect, engine_options, parse_url, read_only_url, redact
from studies.storage.retry import retry_on_connection_limit
from studies.storage.storage import LeasedRDBStorage
from studies.storage.trial_rows import TRIALS

DEFAULT_STORAGE = "sqlite:///studies/studies.db"
"""Relative to the working directory. Only for this storage is a missing folder created."""

_VERSION_TABLE = "alembic_version"
_OPTUNA_TABLES = {*models.BaseModel.metadata.tables, _VERSION_TABLE}
_REQUIRED_TABLES = {"studies", "trials", "trial_params", "version_info", _VERSION_TABLE}
CLAIM_INDEX = "ix_trials_study_id_state_number"
"""The one thing that is added to Optuna's tables; nothing means anything else for it."""

_CREATION_LOCK = 0x524E4E  # of PostgreSQL's advisory locks; any number that others do not take


def open_storage(url: str) -> LeasedRDBStorage:
    """Open a storage to work on, and make it if it is not there.

    Any number of processes may do so at the same instant.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql+psycopg://USER@HOST/DATABASE``.

    Raises:
        StorageError: if it cannot be opened, holds another program's data, or is of a schema that
            the installed Optuna does not know; it is left as it was. Passwords are not shown.
    """
    parsed = parse_url(url)
    is_file = parsed.get_backend_name() == "sqlite"
    with _translate_errors(parsed):
        if is_file:
            _create_sqlite(parsed)
        else:
            _create_on_server(parsed)
        found = _inspect(parsed)
        _check_schema(found, parsed)
        storage = LeasedRDBStorage(
            parsed.render_as_string(hide_password=False), engine_options(parsed)
        )
        if is_file:
            # One that plain Optuna made: readers and the writer would hold each other up.
            with contextlib.closing(storage.engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
            with storage.transaction() as transaction:
                # A file that is read-only refuses what could write, and nothing sooner.
                transaction.execute(sa.delete(TRIALS).where(sa.false()))
        if not found.is_indexed:
            _create_claim_index(storage)
        return storage


def read_storage(url: str) -> LeasedRDBStorage:
    """Open a storage to read from. No file and no table is made, and nothing is changed.

    Raises:
        StorageError: as :func:`open_storage` does, and if there is no such storage.
    """
    parsed = parse_url(url)
    is_file = parsed.get_backend_name() == "sqlite"
    with _translate_errors(parsed):
        if is_file and not Path(str(parsed.database)).exists():
            raise StorageNotFoundError(
                f"storage {redact(parsed)} is not there; run a search first, or check --storage"
            )
        if is_file:
            parsed = read_only_url(parsed)
        _check_schema(_inspect(parsed), parsed)
        return LeasedRDBStorage(
            parsed.render_as_string(hide_password=False), engine_options(parsed)
        )


def load_study(storage: LeasedRDBStorage, name: str) -> optuna.Study:
    """Load a study by its name.

    Raises:
        StudyNotFoundError: with the names of those that are there.
    """
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        known = ", ".join(sorted(optuna.get_all_study_names(storage))) or "none yet"
        raise StudyNotFoundError(
            f"study {name!r} is not in {redact(storage.engine.url)}; there: {known}; run it first, "
            "or check the name"
        ) from error


@dataclass(frozen=True)
class _SchemaInfo:
    """What is in a database: tables, the version of Optuna's, and if claims are indexed."""

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


def _check_schema(found: _SchemaInfo, url: URL) -> None:
    if not found.tables and url.get_backend_name() != "sqlite":
        raise StorageNotFoundError(f"storage {redact(url)} holds no study yet; run a search first")
    if not found.tables >= _REQUIRED_TABLES:
        raise StorageError(
            f"storage {redact(url)} is not a database of studies; it was left as it is; "
            "name another file or database"
        )
    known = ScriptDirectory(str(Path(rdb.__file__).parent / "alembic")).get_current_head()
    if found.version != known:
        raise StorageError(
            f"storage {redact(url)} is of schema {found.version}; allowed: {known}, which Optuna "
            f"{optuna.__version__} knows; it was left as it is; name another, or install the "
            "Optuna that made it"
        )


def _create_sqlite(url: URL) -> None:
    """Make an SQLite file that is complete from the instant in which it is there."""
    path = Path(str(url.database))
    if path.exists():
        return
    if url == parse_url(DEFAULT_STORAGE):
        path.parent.mkdir(exist_ok=True)
    if not path.parent.is_dir():
        raise StorageError(
            f"storage {redact(url)}: the folder {path.parent} is not there; make it, or name "
            "another file"
        )
    beside = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        made = RDBStorage(url.set(database=str(beside)).render_as_string(hide_password=False))
        with made.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        made.engine.dispose()
        # Another process may have been quicker: then its file is the one.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(beside)
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            beside.with_name(beside.name + suffix).unlink(missing_ok=True)


def _create_on_server(url: URL) -> None:
    """Make Optuna's tables in a database that has no others.

    One process at a time: of two that create the same table one would fail, and who comes in
    between would find half of them.
    """
    engine = connect(url)
    for attempt in _retry_until_locked():
        with attempt, engine.connect() as connection:
            # A transaction that is open while others are waited for would be ended by the server.
            connection.execution_options(isolation_level="AUTOCOMMIT")
            if _inspect_connection(connection).is_complete:
                return
            if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(_CREATION_LOCK))):
                raise _LockHeldError
            try:
                found = _inspect_connection(connection)
                # Without a version they are not there yet, or who made them was killed meanwhile.
                if found.tables <= _OPTUNA_TABLES and found.version is None:
                    make = retry_on_connection_limit(RDBStorage)
                    make(url.render_as_string(hide_password=False), engine_options(url))
            finally:
                connection.execute(sa.select(sa.func.pg_advisory_unlock(_CREATION_LOCK)))


class _LockHeldError(Exception):
    """Another process makes tables or the index now."""


def _retry_until_locked() -> tenacity.Retrying:
    """Return the attempts at something that one process at a time does, and the others wait for.

    They try its lock, and do not wait for it: they would hold a connection each meanwhile, and the
    one at work needs some more of its own.
    """
    wait = tenacity.wait_random_exponential(multiplier=0.2, max=5)
    return tenacity.Retrying(wait=wait, retry=tenacity.retry_if_exception_type(_LockHeldError))


def _create_claim_index(storage: LeasedRDBStorage) -> None:
    """Let the next waiting point be found at once, however many there are."""
    for attempt in _retry_until_locked():
        # Who may not make an index in somebody's database claims without it.
        with (
            attempt,
            contextlib.suppress(sa.exc.ProgrammingError),
            storage.transaction() as connection,
        ):
            if connection.dialect.name != "sqlite":
                if _inspect_connection(connection).is_indexed:
                    return
                own = sa.select(sa.func.pg_try_advisory_xact_lock(_CREATION_LOCK))
                if not connection.scalar(own):
                    raise _LockHeldError
            columns = "study_id, state, number"
            connection.execute(
                sa.text(f"CREATE INDEX IF NOT EXISTS {CLAIM_INDEX} ON {TRIALS.name} ({columns})")
            )


@contextlib.contextmanager
def _translate_errors(url: URL) -> Iterator[None]:
    """Turn whatever a database raises while it is opened into one line without a password."""
    try:
        yield
    except (SQLAlchemyError, OptunaError, OSError) as error:
        cause = error.__cause__ or error
        error_message = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
        raise StorageError(
            f"storage {redact(url)} cannot be opened ({error_message}); "
            "check the address and that you may "
            "write there"
        ) from error
    except ImportError as error:
        raise StorageError(
            f"storage {redact(url)} needs the driver for PostgreSQL; install it with "
            "pip install 'psycopg[binary]'"
        ) from error
