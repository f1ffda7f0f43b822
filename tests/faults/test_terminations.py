"""PostgreSQL ends connections at random all the time: every trial is complete once."""

import random
import threading
from contextlib import closing, contextmanager

import psycopg
import pytest
import sqlalchemy
from helpers import QUICK, TINY
from hooks import HANG_TIMEOUT
from process_runner import FINISHED, search_starter
from sqlalchemy.engine import Engine
from test_killed_writers import SOURCE

from search.run import run_workers
from search.session import RunOptions

TERMINATIONS = 40

COUNT = 12
"""Number of trials."""

CHOOSE = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


class Terminator:
    """Context whose thread ends connections to a database, one after the other.

    Attributes:
        ended: number of connections that it has ended.
    """

    def __init__(self, url):
        self.ended = 0
        self.is_done = threading.Event()
        self._stop = threading.Event()
        self._address = url.replace("+psycopg", "")
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join(HANG_TIMEOUT)

    def _run(self):
        with psycopg.connect(self._address, autocommit=True) as connection:
            while self.ended < TERMINATIONS and not self._stop.wait(random.uniform(0, 0.1)):
                if not (found := connection.execute(CHOOSE).fetchall()):
                    continue
                (pid,) = random.choice(found)
                (is_ended,) = connection.execute(
                    "SELECT pg_terminate_backend(%s)", (pid,)
                ).fetchone()
                self.ended += is_ended
        self.is_done.set()


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
def test_connection_ended_at_any_statement_ends_no_search(postgresql_url, text, tmp_path):
    """From the first, which finds the tables, to the last, which finds every trial finished."""
    overrides = tuple(f"{name.replace('_', '.', 1)}={value}" for name, value in SOURCE.items())
    overrides += tuple(option.removeprefix("--set=") for option in TINY)
    for number in range(1, 1000):
        options = RunOptions(
            QUICK,
            postgresql_url,
            name=f"study-{number}",
            corpus=str(text),
            overrides=overrides,
            threads=1,
            artifacts=str(tmp_path),
        )
        with ended_at(postgresql_url, number) as reached:
            result = run_workers(options)
        assert result.is_finished, reached
        assert result.exit_code == 0, reached
        if not reached:
            break
    assert number > 30
    with psycopg.connect(postgresql_url.replace("+psycopg", "")) as connection:
        states = "SELECT state, count(*) FROM trials GROUP BY 1"
        assert connection.execute(states).fetchall() == [("COMPLETE", 2 * number)]


@pytest.mark.extended
def test_connections_ended_at_random_lose_no_trial(runner, postgresql_url, text, tmp_path):
    """Of workers, ``--status``, reports and a refinement, until so many have been ended."""
    url = postgresql_url
    search = search_starter(runner, url, text)
    settings = SOURCE | {
        "space_residual": "[true, false]",
        "space_state_size": "[3, 4, 5]",
        "space_output_gate": "[true, false]",
        "training_steps": 60,
        "training_log_every": 1,
    }
    created = search("--until", "0.01s", **settings)
    assert created.wait() == 0, created.output
    with Terminator(url) as terminator:
        workers = [search(**settings) for _ in range(2)]
        reports = 0
        while not terminator.is_done.is_set():
            table = tmp_path / "trials.csv"
            for words in (
                ("run_search.py", QUICK, "--status", "--storage", url),
                ("-m", "reports", "quick", "--csv", str(table), "--storage", url),
            ):
                done = runner.run(*words)
                assert done.returncode in (0, 1, 2), done.stderr
                lines = done.stderr.splitlines()
                assert len(lines) <= 1, done.stderr
                reports += 1
            if all(worker.ended.is_set() for worker in workers):
                break
        refinement = ("--partial", "--set=refinement.top=1", "--set=refinement.variants=[{}]")
        refined = runner.run(
            "refine.py", "quick-refined", "--storage", url, "--threads", "1", *refinement,
            report=False,
        )  # fmt: skip
        for worker in workers:
            assert worker.wait() == 0, worker.output
    assert terminator.ended > 5
    assert reports
    if refined.returncode:  # its attempt to create the study was not repeated
        again = ("refine.py", "quick-refined", "--storage", url, "--threads", "1", *refinement)
        refined = runner.run(*again, report=False)
    assert refined.returncode == 0, refined.stderr
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        rows = connection.execute(FINISHED.replace("FROM trials t", "FROM trials t ")).fetchall()
        assert sorted(rows) == sorted(
            [(number, "COMPLETE", 1) for number in range(COUNT)] + [(0, "COMPLETE", 1)]
        )
        twice = """
            SELECT trial_id, step FROM trial_intermediate_values GROUP BY 1, 2 HAVING count(*) > 1
        """
        assert connection.execute(twice).fetchall() == []
