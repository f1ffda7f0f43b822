"""``python -m search.backup FILE``: copy an SQLite file of studies while searches run."""

from studies.interrupts import exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()  # the imports take seconds

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import click

from search.errors import USER_ERRORS
from studies.cli import run_command, storage_options
from studies.errors import StorageError
from studies.storage.backup import BackupContent, copy_database
from studies.storage.engine import (
    SQLITE_BUSY_SECONDS,
    database_path,
    is_in_wal_mode,
    log_path,
    parse_url,
    read_only_uri,
    redact,
)
from studies.storage.open import read_storage


@click.command(
    help="Copy the SQLite file of --storage to the new file FILE, complete and consistent even "
    "while searches run."
)
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path))
@storage_options
def backup(target: Path, storage: str, debug: bool) -> int:
    """Copy a storage."""
    source = _source_path(storage)
    _check_is_new(target, source)
    read_storage(storage).close()  # rejects what is not a storage of studies
    try:
        with closing(_connect(storage, source)) as connection:
            _, content = copy_database(connection, target)
    except sqlite3.Error as error:
        raise OSError(f"cannot copy the database to {target} ({error})") from error
    click.echo(_describe(content, target, source))
    return 0


def _source_path(storage: str) -> Path:
    url = parse_url(storage)
    if (path := database_path(url)) is None:
        raise StorageError(
            f"storage {redact(url)} is not an SQLite file: copy it with pg_dump instead"
        )
    return path


def _check_is_new(target: Path, source: Path) -> None:
    if target.exists() and source.exists() and target.samefile(source):
        raise StorageError(f"{target} is the storage itself: expected a new file")
    if target.exists() or target.is_symlink():
        raise StorageError(f"{target} exists already: expected a new file")
    if (log := log_path(target)).exists():  # SQLite would write its content into the copy
        raise StorageError(
            f"{log} is left of another file of that name: delete it, or use another file"
        )
    if not target.parent.is_dir():
        raise StorageError(f"folder {target.parent} does not exist: create it, or use another file")


def _connect(storage: str, source: Path) -> sqlite3.Connection:
    """Open a file for reading; writable if possible, to remove its log files at the end."""
    is_writable = os.access(source, os.W_OK) and os.access(source.parent, os.W_OK)
    if is_writable:
        uri = f"{source.resolve().as_uri()}?mode=rw"
    else:
        is_unused = not log_path(source).exists() and is_in_wal_mode(source)
        uri = read_only_uri(source, is_unused)
    return sqlite3.connect(uri, uri=True, timeout=SQLITE_BUSY_SECONDS)


def _describe(content: BackupContent, target: Path, source: Path) -> str:
    studies = f"{content.studies} {'study' if content.studies == 1 else 'studies'}"
    line = f"{target}: {studies}, {content.finished} of {content.trials} trials finished"
    if content.finished < content.trials:
        line += (
            f"; checkpoints are not included: copy {source}.checkpoints to {target}.checkpoints, "
            "or unfinished trials restart from step 0"
        )
    return line


if __name__ == "__main__":
    run_command(backup, USER_ERRORS)
