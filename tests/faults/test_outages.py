"""Storage outages during a search, temporary or permanent, lose no value."""

import json
import signal
import sqlite3
from contextlib import contextmanager

import pytest
import small_searches
from helpers import NO_SYNC, QUICK
from hooks import Clock, DecisionGate, Gate, Hooks
from process_runner import CURVES, FINISHED, query, search_starter, wait_until, wait_until_running
from services import PostgreSQL, SlowNetwork
from small_searches import FOUR, STEP, assert_all_trials_match

from reports import cli as command_line
from reports.cli import reports, write_final_report
from rnn_search.cli import run_search
from search.run import run_workers
from search.session import RunOptions
from search.worker.storage_client import SHUTDOWN_GRACE
from studies.errors import StorageError

ONE = small_searches.ONE | {"lease_seconds": 4}
"""One trial, with a lease so short that its worker sends a heartbeat every second."""

STACK = small_searches.ONE | {
    "space_state_size": "[4]",
    "checkpoint_seconds": 1000,
    **{f"space_{name}_gate": "[false, true]" for name in ("input", "forget", "output", "state")},
    "space_residual": "[true, false]",
}
"""32 trials of one shape."""


def has_no_retries(url):
    return not query(url, "SELECT * FROM trial_user_attributes WHERE key = 'retries'")


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
def clock(tmp_path_factory):
    return Clock(tmp_path_factory.mktemp("clock") / "clock")


@pytest.fixture
def held(runner, text, gate, tmp_path):
    """Return a function that starts searches and waits until the gate holds their trainings."""

    def start(url, workers=1, gate=gate, **settings):
        search = search_starter(runner, url, text)
        options = () if url.startswith("sqlite") else (f"--artifacts={tmp_path}/artifacts",)
        commands = [search(*options, gate=gate, **settings) for _ in range(workers)]
        wait_until_running(commands, lambda: gate.held >= {command.pid for command in commands})
        return commands

    return start


def wait_for_message(message, *workers, times=1):
    """Wait until each worker has printed a message a number of times."""
    wait_until_running(
        workers, lambda: all(worker.output.count(message) >= times for worker in workers)
    )


@pytest.fixture
def resume(runner, text, tmp_path):
    """Return a function that runs a search and asserts that it resumes trial 0."""

    def run(url, step=STEP, **settings):
        search = search_starter(runner, url, text)
        command = search(f"--artifacts={tmp_path}/artifacts", **settings)
        assert command.wait() == 0
        assert f"trial 0 resumes from step {step}" in command.output

    return run


def test_training_continues_while_postgresql_is_stopped_for_two_leases(
    server, held, gate, clock, reference_curves
):
    """The server stops as in a power failure."""
    url = server.new_database()
    workers = held(url, workers=2, clock=clock, patient=False, **FOUR)
    server.stop("immediate")
    clock.advance(700)  # makes a heartbeat of both due, which fails
    wait_for_message("unavailable (", *workers)
    clock.advance(700)
    server.start()
    wait_for_message("storage available again", *workers)
    gate.open()
    for worker in workers:
        assert worker.wait() == 0
    assert_all_trials_match(url, reference_curves, FOUR)
    assert has_no_retries(url), "the lease of a live worker expired"


@pytest.mark.extended
@pytest.mark.parametrize("step", [STEP, ONE["training_steps"]], ids=["midst", "last step"])
def test_worker_exits_with_a_checkpoint_after_the_outage_limit(
    server, held, resume, reference_curves, tmp_path, tmp_path_factory, step
):
    """The next worker resumes the trial; after the last step it only evaluates and records."""
    url = server.new_database()
    gate = Gate(tmp_path_factory.mktemp("held") / "gate", step)
    settings = {"outage_seconds": 2, "checkpoint_seconds": 1000}
    (first,) = held(url, patient=False, gate=gate, **ONE | settings)
    server.stop()
    if step > STEP:
        gate.open()
    assert first.wait() == 1
    last = first.output.strip().splitlines()[-1]
    assert last.startswith("error: storage unavailable for")
    assert (
        "longer than 2 s; recorded results are kept; restore it and run the same command to resume"
        in last
    )
    assert "Traceback" not in first.output
    assert len(list(tmp_path.glob("artifacts/*/trial-*.checkpoint"))) == 1
    server.start()
    resume(url, step, **ONE)
    assert_all_trials_match(url, reference_curves, ONE)


@pytest.mark.extended
def test_final_report_waits_for_an_unavailable_server(
    server, runner, text, tmp_path, capsys, monkeypatch
):
    url = server.new_database()
    search = search_starter(runner, url, text)
    assert search(f"--artifacts={tmp_path}/artifacts", **ONE).wait() == 0
    monkeypatch.chdir(tmp_path)
    server.stop()
    monkeypatch.setattr(command_line, "OUTAGE_SECONDS", 1)
    write_final_report(url, ["quick"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("no report: storage postgresql")

    printed = []

    def echo(line):
        printed.append(line)
        if "waiting for the storage" in line:
            server.start()

    monkeypatch.setattr(command_line, "OUTAGE_SECONDS", 600)
    monkeypatch.setattr("reports.cli.click.echo", echo)
    write_final_report(url, ["quick"])
    assert printed[0] == "waiting for the storage to write the report"
    assert printed[1].startswith("report: ")


@contextmanager
def read_only(server):
    """A server is read-only, for example, after it became a standby."""
    server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    try:
        server.execute("SELECT pg_reload_conf()")
        yield "read-only transaction"
    finally:
        server.execute("ALTER SYSTEM RESET default_transaction_read_only")
        server.execute("SELECT pg_reload_conf()")


@contextmanager
def frozen(server):
    """A frozen server accepts connections but does not answer."""
    server.signal(signal.SIGSTOP)
    try:
        yield "unavailable ("
    finally:
        server.signal(signal.SIGCONT)


@pytest.mark.extended
@pytest.mark.parametrize("disturbed", [read_only, frozen])
def test_training_continues_while_the_server_is_disturbed(
    server, held, gate, reference_curves, disturbed
):
    url = server.new_database()
    (worker,) = held(url, patient=disturbed is read_only, **ONE)
    with disturbed(server) as message:
        wait_for_message(message, worker)
    gate.open()
    assert worker.wait() == 0
    assert_all_trials_match(url, reference_curves, ONE)


@pytest.mark.extended
def test_sigterm_exits_with_a_checkpoint_while_the_server_is_unresponsive(
    server, held, resume, reference_curves
):
    url = server.new_database()
    (first,) = held(url, patient=False, **ONE)
    with frozen(server):
        first.send(signal.SIGTERM)
        assert first.wait() == 143
    assert "trial 0 not requeued in time; waiting for lease expiry" in first.output
    resume(url, **ONE)
    assert_all_trials_match(url, reference_curves, ONE)


def with_password(url):
    return url.replace("tester@", "tester:s3cret@")


@pytest.mark.extended
def test_start_waits_for_a_stopped_server(server, runner, text, tmp_path):
    """Once before the study exists, and once to join it."""
    url = server.new_database()
    search = search_starter(runner, with_password(url), text)
    for settings in (ONE, ONE | {"outage_seconds": 599}):
        server.stop()
        options = (f"--artifacts={tmp_path}/artifacts", "--workers=2")
        command = search(*options, **settings)
        wait_for_message("storage unavailable (connection failed: ", command)
        server.start()
        assert command.wait() == 0, command.output
        assert command.output.count("storage unavailable") == 1
        assert command.output.count("storage available again\n") == 1
        assert "s3cret" not in command.output
    assert "waiting for it for up to 599 s\n" in command.output
    assert query(url, FINISHED) == [(0, "COMPLETE", 1)]


@pytest.mark.extended
def test_start_waits_for_the_storage_of_a_stored_study_and_of_a_source(
    server, runner, text, tmp_path
):
    url = server.new_database()
    search = search_starter(runner, url, text)
    artifacts = f"--artifacts={tmp_path}/artifacts"
    assert search(artifacts, "--name=stored", **ONE).wait() == 0
    refinement = tmp_path / "derived.toml"
    refinement.write_text("[refinement]\nsource = 'stored'\ntop = 1\nvariants = [{}]\n")
    common = ("--storage", url, artifacts, "--threads=1")
    for program, study in (
        ("run_search.py", "stored"),
        ("refine.py", str(refinement)),
        ("refine.py", "derived"),
    ):
        server.stop()
        command = runner.start(program, study, *common, hooks=Hooks(report=False))
        wait_for_message("waiting for it for up to 600 s", command)
        server.start()
        assert command.wait() == 0, command.output
    assert query(url, "SELECT state FROM trials") == [("COMPLETE",)] * 2


@pytest.mark.extended
def test_start_exits_after_the_outage_limit_or_at_its_time_limit(server, runner, text):
    url = server.new_database()
    server.stop()
    search = search_starter(runner, with_password(url), text)
    command = search(outage_seconds=0.5, **ONE)
    assert command.wait() == 1
    assert command.stderr.startswith("error: storage unavailable for ")
    assert command.stderr.endswith("longer than 0.5 s; restore it and run the same command again\n")
    assert command.stderr.count("\n") == 1
    assert "s3cret" not in command.output
    command = search("--until=1s", **ONE)
    assert command.wait() == 0
    assert command.output.endswith("stopped before training began: run the same command to start\n")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("tester@", "guarded:wr0ng@", 'password authentication failed for user "guarded"'),
        ("tester@", "stranger:wr0ng@", 'role "stranger" does not exist'),
        ("/test_", "/missing_", "does not exist"),
        ("127.0.0.1", "no-such-host.invalid", "failed to resolve host 'no-such-host.invalid'"),
    ],
    ids=["password", "user", "database", "host"],
)
def test_start_does_not_wait_for_a_refused_address(server, old, new, reason):
    url = server.new_database()
    if "guarded" in new:
        server.execute("CREATE ROLE guarded LOGIN PASSWORD 'r1ght'")
        server.require_password("guarded")
    with pytest.raises(StorageError, match=f"^storage postgresql.*{reason}") as refused:
        run_workers(RunOptions(QUICK, url.replace(old, new), overrides=("outage.seconds=1",)))
    assert "wr0ng" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.extended
def test_spawned_workers_wait_for_a_server_that_stops_as_they_start(server, runner, text, tmp_path):
    url = server.new_database()
    search = search_starter(runner, url, text)
    command = search(f"--artifacts={tmp_path}/artifacts", "--workers=2", **FOUR)
    wait_for_message("starting 2 worker processes", command)
    server.stop()
    wait_for_message("storage unavailable", command, times=2)
    server.start()
    assert command.wait() == 0, command.output
    assert query(url, FINISHED) == [(number, "COMPLETE", 1) for number in range(4)]


@pytest.mark.extended
def test_signal_ends_the_wait_for_the_storage_at_the_start(server, runner, text):
    url = server.new_database()
    server.stop()
    command = search_starter(runner, url, text)(**ONE)
    wait_for_message("storage unavailable", command)
    command.send(signal.SIGTERM)
    command.wait()
    assert command.code in (128 + signal.SIGTERM, -signal.SIGTERM)
    assert "Traceback" not in command.output


@pytest.mark.parametrize(
    ("command", "words"), [(run_search, ["quick", "--status"]), (reports, ["quick"])]
)
def test_status_and_report_do_not_wait_for_a_stopped_server(server, command, words):
    url = server.new_database()
    server.stop()
    with pytest.raises(StorageError, match="storage postgresql"):
        command.main([*words, "--storage", url], standalone_mode=False)


@pytest.mark.extended
def test_sigterm_requeues_a_whole_stack_over_a_slow_network(server, held, tmp_path):
    """It needs so few round trips of 30 ms that they fit in the time that a stop has.

    They are counted, because their time also depends on the speed of this machine.
    """
    url = server.new_database()
    with SlowNetwork(server.port, round_trip=0.03) as network:
        slow_url = url.replace(str(server.port), str(network.port))
        (worker,) = held(slow_url, lockstep="32", **STACK)
        worker.send(signal.SIGTERM)
        wait_until(lambda: len(list(tmp_path.glob("artifacts/*/trial-*.checkpoint"))) == 32)
        before = network.round_trips
        running = "SELECT * FROM trials WHERE state = 'RUNNING'"
        wait_until(lambda: not query(url, running))
        round_trips = network.round_trips - before
        assert worker.wait() == 143
    assert round_trips * 0.03 < SHUTDOWN_GRACE
    assert "trials 0-31 requeued\n" in worker.output
    assert query(url, "SELECT DISTINCT state FROM trials") == [("WAITING",)]
    requeued = "SELECT value_json FROM trial_user_attributes WHERE key = 'retries'"
    assert query(url, requeued) == [('{"interrupted": 1}',)] * 32
    assert not query(url, "SELECT * FROM trial_system_attributes WHERE key = 'lease'")


@pytest.mark.extended
def test_training_continues_while_another_program_locks_the_file(
    sqlite_url, held, gate, clock, reference_curves, tmp_path
):
    workers = held(sqlite_url, workers=2, clock=clock, patient=False, **FOUR)
    other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None, timeout=600)
    other.execute("BEGIN IMMEDIATE")
    clock.advance(700)
    wait_for_message("storage slow or unavailable (it does not answer)", *workers)
    clock.advance(700)
    other.execute("ROLLBACK")
    other.close()
    wait_for_message("storage available again", *workers)
    gate.open()
    for worker in workers:
        assert worker.wait() == 0
    assert_all_trials_match(sqlite_url, reference_curves, FOUR)
    assert has_no_retries(sqlite_url)


@pytest.mark.extended
def test_heartbeats_are_sent_while_a_pruning_decision_takes_longer_than_the_lease(
    runner, sqlite_url, text, tmp_path, clock, reference_curves
):
    """The trial trains on, is paused once the decision is known, and resumes."""
    url = sqlite_url
    gate, decisions = Gate(tmp_path / "gate", 150), DecisionGate(tmp_path / "decisions")
    options = ("--prune", f"--artifacts={tmp_path}/artifacts")
    settings = FOUR | {"pruning_keep": 0.75, "pruning_confidence": 0.99}
    search = search_starter(runner, url, text)
    worker = search(*options, gate=gate, clock=clock, decisions=decisions, **settings)
    # The decision at the first rung, step 20, is held; the trial has passed the last one, step 140.
    wait_until_running([worker], lambda: gate.held and decisions.held)
    wait_until_running([worker], lambda: (0, 140) in reached_steps(query(url, CURVES)))
    for _ in range(6):  # 900 seconds by the worker's clock
        before = count_heartbeats(url)
        clock.advance(150)
        wait_until_running([worker], lambda before=before: count_heartbeats(url) > before)
    assert decisions.held
    decisions.open()
    wait_until_running([worker], lambda: not decisions.held)
    gate.open()
    assert worker.wait() == 0
    assert "unavailable" not in worker.output
    assert " from step " not in worker.output
    assert has_no_retries(url), "the lease of a live worker expired"
    rung = "SELECT 1 FROM trial_user_attributes a JOIN trials t ON t.trial_id = a.trial_id"
    assert query(url, f"{rung} WHERE number = 0 AND key = 'rung'"), "it was not paused"
    curves = query(url, CURVES)
    assert curves == [row for row in reference_curves(**FOUR) if row[:2] in reached_steps(curves)]
    assert {state for _, state, _ in query(url, FINISHED)} <= {"COMPLETE", "PRUNED"}
    assert (0, 160) in reached_steps(curves)


def reached_steps(curves):
    """Return the (number, step) pairs of a list of curves."""
    return {(number, step) for number, step, _ in curves}


def count_heartbeats(url):
    """Return the count in the lease of the first trial."""
    leases = "SELECT value_json FROM trial_system_attributes WHERE key = 'lease' ORDER BY trial_id"
    return json.loads(query(url, leases)[0][0])["heartbeats"]
