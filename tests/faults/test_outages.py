"""Storage outages during a search, temporary or permanent, lose no value."""

import itertools
import signal
import sqlite3
import time
from contextlib import closing, contextmanager

import psycopg
import pytest
import sqlalchemy
from helpers import NO_SYNC, QUICK, TINY
from hooks import HANG_TIMEOUT, Clock, Hooks
from invocation import refused
from process_runner import query
from services import PostgreSQL
from small_searches import (
    BEATING,
    FOUR,
    ONE,
    RETRIES,
    STATES,
    STEP,
    assert_all_complete,
    assert_all_trials_match,
    error_of,
    finish,
    stop,
    wait_for_message,
)
from sqlalchemy.engine import Engine
from test_killed_commands import SOURCE

import rnn_search
from reports import final_report
from reports.final_report import write_final_report
from rnn_search.commands.reports import report
from rnn_search.commands.searches import status
from search.run import run_workers
from search.run_options import RunOptions
from studies.errors import StorageError


@pytest.fixture(scope="module")
def module_server():
    with PostgreSQL(NO_SYNC) as server:
        yield server


@pytest.fixture
def server(module_server):
    """PostgreSQL server that a test may stop; it runs again afterwards."""
    yield module_server
    module_server.restore()


@pytest.fixture
def search_url(server):
    return server.new_database()


@pytest.fixture
def guarded_url(search_url):
    return search_url.replace("tester@", "tester:s3cret@")


# ------------------------------------------------------------------ during training


@contextmanager
def stopped(server, url):
    """A server stops as in a power failure."""
    server.stop("immediate")
    yield "unavailable ("
    server.start()


@contextmanager
def read_only(server, url):
    """A server is read-only, for example, after it became a standby."""
    server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    try:
        server.execute("SELECT pg_reload_conf()")
        yield "unavailable ("
    finally:
        server.execute("ALTER SYSTEM RESET default_transaction_read_only")
        server.execute("SELECT pg_reload_conf()")


@contextmanager
def frozen(server, url=None):
    """A frozen server accepts connections but does not answer."""
    server.signal(signal.SIGSTOP)
    try:
        yield "unavailable ("
    finally:
        server.signal(signal.SIGCONT)


@contextmanager
def locked(server, url):
    """Another program locks a file."""
    file = url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file, isolation_level=None, timeout=HANG_TIMEOUT)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield "storage slow or unavailable (it does not answer)"


@pytest.mark.parametrize(
    "outages",
    [
        (stopped,),
        *(
            pytest.param(each, marks=pytest.mark.extended)
            for each in ((frozen, read_only), (locked,))
        ),
    ],
)
def test_training_continues_during_an_outage_of_two_leases(
    server, search_url, sqlite_url, held, gate, tmp_path, reference_curves, outages
):
    url = sqlite_url if locked in outages else search_url
    clock = Clock(tmp_path / "clock")
    settings = FOUR | {"outage_seconds": 3600, "clock": clock, "patient": False}
    workers = [held(url=url, **settings) for _ in range(2)]
    for number, outage in enumerate(outages, start=1):
        with outage(server, url) as message:
            clock.advance(700)  # makes a heartbeat of both due, which fails
            wait_for_message(message, *workers, times=number)
            clock.advance(700)
        wait_for_message("storage available again", *workers, times=number)
    gate.open()
    finish(*workers)
    assert_all_trials_match(url, reference_curves, FOUR)
    assert not query(url, RETRIES), "the lease of a live worker expired"


@pytest.mark.extended
def test_loop_of_a_user_logs_saves_and_ends_trials_over_an_outage(
    server, search_url, tmp_path, capsys
):
    settings = {"loop": {"metric": "loss", "steps": 4}, "space": {"width": [1, 2]}}
    place = {"storage": search_url, "artifacts": tmp_path}
    study = rnn_search.create_study(settings, name="mine", **place)

    def log_until(trial, step, message):
        output = ""
        while message not in output:
            trial.log(step, loss=1 / step, other=step)
            trial.save(step, b"state")
            time.sleep(0.01)
            output += capsys.readouterr().out

    for trial in study.claim(overrides={"outage.seconds": 3600}):
        with trial:
            trial.log(1, loss=1.0, other=1)
            with stopped(server, search_url) as message:
                log_until(trial, 2, message)
                trial.log(3, loss=1 / 3, other=3)
            if trial.params["width"] == 1:  # the other one ends before that is noticed
                log_until(trial, 4, "available again")
            trial.finish(0.25)
    for trial in study.optuna.trials:
        steps = [1, 2, 3, 4][: 3 + (trial.params["width"] == 1)]
        assert trial.value == 0.25
        assert trial.intermediate_values == {step: 1 / step for step in steps}
        assert trial.system_attrs["curve:other"] == [[step, step] for step in steps]
        assert "retries" not in trial.user_attrs


@pytest.mark.extended
def test_worker_exits_with_a_checkpoint_after_the_outage_limit_or_if_stopped_while_unresponsive(
    server, held, search, search_url, new_gate, reference_curves
):
    """The next worker resumes the trial; after the last step it only evaluates and records."""
    settings = BEATING | {"outage_seconds": 2, "checkpoint_seconds": 1000}
    stopped = held(patient=False, gate=new_gate(40), **settings | {"outage_seconds": 600})
    with frozen(server):
        stop(stopped)
    assert "trial 0 not requeued in time; waiting for lease expiry" in stopped.output
    for last_step, step in ((40, STEP), (STEP, ONE["training_steps"])):
        gate = new_gate(step)
        worker = held(patient=False, gate=gate, **settings)
        server.stop()
        if step > STEP:
            gate.open()
        assert worker.wait() == 1
        assert f"trial 0 resumes from step {last_step}" in worker.output
        line = worker.output.strip().splitlines()[-1]
        assert line.startswith("error: storage unavailable for")
        assert line.endswith(
            "longer than 2 s; recorded results are kept; restore it and run the same command to "
            "resume"
        )
        assert "Traceback" not in worker.output
        server.start()
    assert f"trial 0 resumes from step {step}" in finish(search(**ONE))
    assert_all_trials_match(search_url, reference_curves, ONE)


@pytest.mark.extended
def test_final_report_waits_for_an_unavailable_server(
    server, search, search_url, tmp_path, capsys, monkeypatch
):
    finish(search(**ONE))
    monkeypatch.chdir(tmp_path)
    server.stop()
    monkeypatch.setattr(final_report, "OUTAGE_SECONDS", 1)
    write_final_report(search_url, "quick")
    assert capsys.readouterr().out.splitlines()[-1].startswith("no report: storage postgresql")

    printed = []

    def echo(line):
        printed.append(line)
        if "waiting for the storage" in line:
            server.start()

    monkeypatch.setattr(final_report, "OUTAGE_SECONDS", 600)
    monkeypatch.setattr("reports.final_report.click.echo", echo)
    write_final_report(search_url, "quick")
    assert printed[0] == "waiting for the storage to write the report"
    assert printed[1].startswith("report: ")


@pytest.mark.extended
def test_connection_ended_at_any_statement_ends_no_search(postgresql_url, text, artifacts):
    """At some, from the one that finds the tables to the last, when all is finished."""
    apart = 17
    overrides = tuple(f"{name.replace('_', '.', 1)}={value}" for name, value in SOURCE.items())
    overrides += tuple(option.removeprefix("--set=") for option in TINY)
    places = {"corpus": str(text), "artifacts": str(artifacts)}
    for number in range(1, 1000, apart):
        places |= {"study": QUICK, "storage": postgresql_url, "name": f"{number}"}
        options = RunOptions(**places, overrides=overrides, threads=1)
        with ended_at(postgresql_url, number) as reached:
            result = run_workers(options)
        assert (result.is_finished, result.exit_code) == (True, 0), reached
        if not reached:
            break
    assert number > 30
    assert query(postgresql_url, STATES) == [("COMPLETE",)]
    assert query(postgresql_url, "SELECT count(*) FROM trials") == [(number // apart * 2 + 2,)]


@contextmanager
def ended_at(url, number):
    """End the connection of this process that is about to run its statement of this number.

    Yields a list, which has the statement once it has been reached.
    """
    reached, count = [], itertools.count(1)
    with closing(psycopg.connect(url.replace("+psycopg", ""), autocommit=True)) as other:

        def end(connection, cursor, statement, *others):
            if next(count) == number:
                reached.append(statement)
                pid = cursor.connection.info.backend_pid
                # The longest time to wait for its end.
                other.execute("SELECT pg_terminate_backend(%s, 60000)", (pid,))

        sqlalchemy.event.listen(Engine, "before_cursor_execute", end)
        try:
            yield reached
        finally:
            sqlalchemy.event.remove(Engine, "before_cursor_execute", end)


# ------------------------------------------------------------------ at the start


@pytest.mark.extended
def test_start_waits_for_a_stopped_server(server, search, guarded_url, runner, artifacts, tmp_path):
    """To create a study, join it, continue it by its name, derive another and continue that."""
    refinement = tmp_path / "derived.toml"
    refinement.write_text("[refinement]\nsource = 'stored'\ntop = 1\nvariants = [{}]\n")

    def start(program, study):
        common = ("--storage", guarded_url, f"--artifacts={artifacts}", "--threads=1")
        return runner.start(program, study, *common, hooks=Hooks(report=False))

    for begin in (
        lambda: search("--name=stored", url=guarded_url, **ONE),
        lambda: search("--name=stored", url=guarded_url, **ONE),
        lambda: start("run_search.py", "stored"),
        lambda: start("refine.py", str(refinement)),
        lambda: start("refine.py", "derived"),
    ):
        server.stop()
        command = begin()
        wait_for_message("storage unavailable (connection failed: ", command)
        server.start()
        output = finish(command)
        assert output.count("storage unavailable") == 1
        assert output.count("waiting for it for up to 600 s\n") == 1
        assert output.count("storage available again\n") == 1
        assert "s3cret" not in output
    assert query(guarded_url, "SELECT state FROM trials") == [("COMPLETE",)] * 2


@pytest.mark.extended
def test_spawned_workers_wait_for_a_server_that_stops_as_they_start(server, search, search_url):
    command = search("--workers=2", **FOUR)
    wait_for_message("starting 2 worker processes", command)
    server.stop()
    wait_for_message("storage unavailable", command, times=2)
    server.start()
    finish(command)
    assert_all_complete(search_url, 4)


@pytest.mark.extended
def test_start_exits_after_the_outage_limit_at_its_time_limit_or_by_a_signal(
    server, search, guarded_url
):
    server.stop()
    line = error_of(search(url=guarded_url, outage_seconds=0.5, **ONE))
    assert line.startswith("error: storage unavailable for ")
    assert line.endswith("longer than 0.5 s; restore it and run the same command again")
    assert "s3cret" not in line
    output = finish(search("--until=1s", url=guarded_url, **ONE))
    assert output.endswith("stopped while waiting for the storage: run the same command again\n")
    command = search(url=guarded_url, **ONE)
    wait_for_message("storage unavailable", command)
    command.send(signal.SIGTERM)
    assert command.wait() in (128 + signal.SIGTERM, -signal.SIGTERM)
    assert "Traceback" not in command.output


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("tester@", "guarded:s3cret@", 'password authentication failed for user "guarded"'),
        ("tester@", "stranger:s3cret@", 'role "stranger" does not exist'),
        ("/test_", "/missing_", "does not exist"),
        ("127.0.0.1", "no-such-host.invalid", "failed to resolve host 'no-such-host.invalid'"),
    ],
    ids=["password", "user", "database", "host"],
)
def test_start_does_not_wait_for_a_refused_address(server, search_url, old, new, reason):
    if "guarded" in new:
        server.execute("CREATE ROLE guarded LOGIN PASSWORD 'r1ght'")
        server.require_password("guarded")
    url = search_url.replace(old, new)
    with refused(StorageError, reason):
        run_workers(RunOptions(study=QUICK, storage=url, overrides=("outage.seconds=1",)))


@pytest.mark.parametrize(("command", "words"), [(status, ["quick"]), (report, ["quick"])])
def test_status_and_report_do_not_wait_for_a_stopped_server(server, search_url, command, words):
    server.stop()
    with pytest.raises(StorageError, match="storage postgresql"):
        command.main([*words, "--storage", search_url], standalone_mode=False)
