"""PostgreSQL ends a connection at any statement: the search goes on."""

from contextlib import closing, contextmanager

import psycopg
import pytest
import sqlalchemy
from helpers import QUICK, TINY
from process_runner import query
from small_searches import STATES
from sqlalchemy.engine import Engine
from test_killed_writers import SOURCE

from search.options import RunOptions
from search.run import run_workers


@contextmanager
def ended_at(url, number):
    """End the connection of this process that is about to run its statement of this number.

    Yields a list, which has the statement once it has been reached.
    """
    reached, count = [], 0
    with closing(psycopg.connect(url.replace("+psycopg", ""), autocommit=True)) as other:

        def end(connection, cursor, statement, parameters, context, is_many):
            nonlocal count
            count += 1
            if count == number:
                reached.append(statement)
                pid = cursor.connection.info.backend_pid
                # The longest time to wait for its end.
                other.execute("SELECT pg_terminate_backend(%s, 60000)", (pid,))

        sqlalchemy.event.listen(Engine, "before_cursor_execute", end)
        try:
            yield reached
        finally:
            sqlalchemy.event.remove(Engine, "before_cursor_execute", end)


@pytest.mark.extended
def test_connection_ended_at_any_statement_ends_no_search(postgresql_url, text, artifacts):
    """At every eleventh, from the one that finds the tables to the last, when all is finished."""
    overrides = tuple(f"{name.replace('_', '.', 1)}={value}" for name, value in SOURCE.items())
    overrides += tuple(option.removeprefix("--set=") for option in TINY)
    places = {"corpus": str(text), "artifacts": str(artifacts)}
    for number in range(1, 1000, 11):
        name = f"study-{number}"
        options = RunOptions(
            study=QUICK,
            storage=postgresql_url,
            name=name,
            overrides=overrides,
            threads=1,
            **places,
        )
        with ended_at(postgresql_url, number) as reached:
            result = run_workers(options)
        assert result.is_finished, reached
        assert result.exit_code == 0, reached
        if not reached:
            break
    assert number > 30
    assert query(postgresql_url, STATES) == [("COMPLETE",)]
    assert query(postgresql_url, "SELECT count(*) FROM trials") == [(number // 11 * 2 + 2,)]
