"""Insertion of many rows: by ``COPY`` on PostgreSQL, by one prepared statement on SQLite."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from studies.errors import StorageError
from studies.storage.engine import redact


def insert_rows(target: Connection, table: sa.Table, rows: Iterable[Sequence[Any]]) -> int:
    """Insert rows as a driver returned them; return their number.

    Args:
        target: connection in a writing transaction.
        table: table of Optuna's.
        rows: a value for each of :func:`list_columns`.

    Raises:
        StorageError: if the database refuses one.
    """
    columns = ", ".join(column.name for column in list_columns(table))
    places = ", ".join("?" * len(list_columns(table)))
    count = 0

    def counted() -> Iterator[Sequence[Any]]:
        nonlocal count
        for row in rows:
            count += 1
            yield row

    cursor: Any = target.connection.cursor()
    try:
        if target.dialect.name == "sqlite":
            statement = f"INSERT INTO {table.name} ({columns}) VALUES ({places})"
            cursor.executemany(statement, counted())
        else:
            with cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN") as copy:
                for row in counted():
                    copy.write_row(row)
    except target.dialect.loaded_dbapi.Error as error:
        summary = str(error).partition("\n")[0]
        raise StorageError(
            f"rows of {table.name} cannot be written to {redact(target.engine.url)} ({summary}): "
            "nothing was written"
        ) from error
    return count


def list_columns(table: sa.Table) -> list[sa.Column[Any]]:
    """Return the columns of a table, that of the study or trial first, without its own id."""
    owners = ("study_id", "trial_id")
    others = [each for each in table.columns if not each.primary_key and each.name not in owners]
    return [next(table.c[name] for name in owners if name in table.c), *others]
