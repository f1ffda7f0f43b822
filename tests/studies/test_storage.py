"""The storage: concurrent creation, claims and writes, on both kinds of database."""

import contextlib
import itertools
import json
import os
import pickle
import sqlite3
import subprocess
import sys
import threading

import optuna
import pytest
import sqlalchemy as sa
from helpers import create_small_study, open_and_count, run_simultaneously, wait_for_others
from hooks import HANG_TIMEOUT
from managed_studies import list_files
from optuna.distributions import CategoricalDistribution
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _VersionManager
from optuna.trial import TrialState
from process_runner import query
from sqlalchemy.dialects.postgresql import psycopg as psycopg_dialect

from studies.attributes import Failure
from studies.cli import run_with_exit_code
from studies.errors import LeaseLostError, StorageError
from studies.storage.counts import best_trial_ids, count_trials
from studies.storage.create_study import PlannedTrial, create_study
from studies.storage.open import _LockHeldError, load_study, open_storage, read_storage
from studies.storage.retry import error_message, is_outage, is_transient


def ask_and_tell(url: str, times: int) -> list[int]:
    study = load_study(open_storage(url), "small")
    numbers = []
    for _ in range(times):
        wait_for_others()
        trial = study.ask()
        numbers.append(trial.number)
        study.tell(trial, 0.0)
    return numbers


def test_plain_optuna_claims_each_trial_once(url):
    """Unmodified Optuna gives some waiting trials to two processes on SQLite."""
    create_small_study(open_storage(url), 24)
    asked = run_simultaneously(ask_and_tell, [(url, 6)] * 4)
    assert sorted(itertools.chain.from_iterable(asked)) == list(range(24))


def test_storage_is_created_by_concurrent_processes(url):
    assert run_simultaneously(open_and_count, [(url,)] * 4) == [0] * 4
    study = optuna.create_study(storage=url)  # plain Optuna accepts it
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)


def test_incomplete_storage_is_never_used_by_a_second_process(url, monkeypatch):
    """The second arrives when tables exist, but no version: it creates another file, or waits."""
    counts, second_settled = [], threading.Event()

    def open_second():
        counts.append(open_and_count(url))
        second_settled.set()

    second = threading.Thread(target=open_second)
    init_version, init_error = _VersionManager.__init__, _LockHeldError.__init__

    def start_second(self, *args):
        if not second.ident:
            second.start()
            assert second_settled.wait(HANG_TIMEOUT)
        init_version(self, *args)

    def report_wait(self):
        second_settled.set()
        init_error(self)

    monkeypatch.setattr(_VersionManager, "__init__", start_second)
    monkeypatch.setattr(_LockHeldError, "__init__", report_wait)
    first = open_and_count(url)
    second.join(HANG_TIMEOUT)
    assert (first, counts) == (0, [0])


def test_plain_optuna_reads_complete_and_pruned_trials(url):
    storage = open_storage(url)
    study_id = create_small_study(storage, 2)
    trial_id = storage.claim(study_id, "me")
    storage.report(trial_id, "me", {1: 2.5, 2: float("nan")})
    storage.report(trial_id, "me", {1: 2.25, 3: float("inf")})
    before = optuna.create_study().ask()._cached_frozen_trial.datetime_start
    storage.finish(trial_id, "me", TrialState.COMPLETE, 1.5, {"seconds": 3.0, "host": "h"})
    after = optuna.create_study().ask()._cached_frozen_trial.datetime_start
    paused = storage.claim(study_id, "me")
    storage.pause(paused, "me", {"rung": 20}, {10: 3.0})
    ((since,),) = query(url, "SELECT value_json FROM trial_system_attributes WHERE key = 'paused'")
    assert storage.prune_paused(study_id, 2, {paused: {"reason": "far off"}}) == [paused]
    trial, pruned = optuna.load_study(study_name="small", storage=url).trials
    assert (trial.state, trial.value, trial.params) == (TrialState.COMPLETE, 1.5, {"x": 0})
    assert trial.user_attrs == {"seconds": 3.0, "host": "h"}
    assert repr(sorted(trial.intermediate_values.items())) == "[(1, 2.25), (2, nan), (3, inf)]"
    assert trial.datetime_start <= before <= trial.datetime_complete <= after, "naive UTC"
    assert (pruned.state, pruned.value) == (TrialState.PRUNED, None)
    assert pruned.user_attrs == {"rung": 20, "reason": "far off"}
    assert pruned.datetime_complete.isoformat() == json.loads(since)
    optuna.create_study().add_trial(pruned)  # refuses one that contradicts itself


def test_trials_match_if_they_have_the_same_parameters_with_the_same_values(url):
    """As in a union of grids: some have no momentum, or no size."""
    storage = open_storage(url)
    distributions = {
        "cell": CategoricalDistribution(("gated", "lstm")),
        "size": CategoricalDistribution((32, 256)),
        "momentum": CategoricalDistribution((0.5, 0.9)),
    }
    trials = [
        {"cell": "gated", "size": 32},
        {"cell": "gated", "size": 32, "momentum": 0.5},
        {"cell": "gated", "size": 32, "momentum": 0.9},
        {"cell": "gated", "size": 32},
        {"cell": "gated"},
        {"cell": "gated", "size": 256},
        {"cell": "lstm", "size": 32},
        {"cell": "gated", "size": 32, "momentum": 0.5},
        {"cell": "gated"},
    ]
    create_study(storage, "union", "loss", {}, distributions, [*map(PlannedTrial, trials)])
    study_id = load_study(storage, "union")._study_id

    def claim_numbers(parameters):
        first = storage.claim(study_id, "me/1")
        trial_ids = [first, *storage.claim_matching(first, "me/1", 99, parameters)]
        return [trial_id - 1 for trial_id in trial_ids]

    names = ["cell", "size", "momentum", "unknown"]
    assert claim_numbers(names) == [0, 3]
    assert claim_numbers(names) == [1, 7]
    assert claim_numbers(["cell", "size"]) == [2]
    assert claim_numbers(names) == [4, 8]
    assert claim_numbers(["size"]) == [5]
    assert claim_numbers(names) == [6]
    storage.requeue(6, "me/1", Failure.LEASE_EXPIRED)
    with pytest.raises(LeaseLostError):
        storage.claim_matching(6, "me/1", 9, [])


def test_unpickled_storage_begins_as_a_writer(sqlite_url):
    storage = pickle.loads(pickle.dumps(open_storage(sqlite_url)))
    study_id = create_small_study(storage, 1)
    statements = []
    sa.event.listen(storage.engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    assert storage.claim(study_id, "me") is not None
    assert statements[0] == "BEGIN IMMEDIATE"


def test_connection_is_retried_while_the_server_has_too_many(postgresql_url, monkeypatch):
    psycopg = pytest.importorskip("psycopg")
    storage = pickle.loads(pickle.dumps(open_storage(postgresql_url)))
    connect, refusals = storage.engine.dialect.connect, [1, 2, 3]

    def connect_to_full_server(*args, **kwargs):
        if refusals:
            refusals.pop()
            raise psycopg.OperationalError("FATAL:  sorry, too many clients already")
        return connect(*args, **kwargs)

    monkeypatch.setattr(storage.engine.dialect, "connect", connect_to_full_server)
    assert create_small_study(storage, 2) == 1
    assert not refusals


@pytest.fixture
def end_connection(postgresql_server):
    """Return a function that has the server end a connection, as an administrator does."""

    def end(connection):
        pid = connection.info.backend_pid
        postgresql_server.execute(f"SELECT pg_terminate_backend({pid}, 600000)")

    return end


def test_connection_that_is_lost_while_optuna_reads_trials_is_an_outage(
    postgresql_url, end_connection, capsys, caplog
):
    """Optuna sends another statement over it, and logs warnings that hide the cause."""
    storage = open_storage(postgresql_url)
    create_small_study(storage, 2)

    def end_before_reading(connection, cursor, statement, *parameters):
        if "FROM trials" in statement:
            end_connection(cursor.connection)

    sa.event.listen(storage.engine, "before_cursor_execute", end_before_reading)
    with pytest.raises(Exception) as raised:  # noqa: PT011  # its type is what is tested
        storage.get_trials(1, [1, 2])
    assert is_transient(raised.value)
    assert is_outage(raised.value)
    assert "rollback" not in error_message(raised.value)
    caplog.clear()
    with pytest.raises(SystemExit, match="1"):
        run_with_exit_code(lambda: storage.get_trials(1, [1, 2]), ())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: storage failed (")
    assert not caplog.messages


def test_connection_that_is_lost_as_it_is_established_is_an_outage(
    postgresql_url, end_connection, monkeypatch
):
    read_level = psycopg_dialect.PGDialect_psycopg.get_default_isolation_level

    def end_and_read_level(dialect, connection):
        end_connection(connection)
        return read_level(dialect, connection)

    monkeypatch.setattr(
        psycopg_dialect.PGDialect_psycopg, "get_default_isolation_level", end_and_read_level
    )
    with pytest.raises(StorageError, match="cannot be opened") as raised:
        open_storage(postgresql_url)
    assert is_outage(raised.value)


def claim_in_forks(url: str) -> tuple[list[int], list[int]]:
    storage = open_storage(url)
    study_id = create_small_study(storage, 120)

    def claim_pairs(worker: str) -> list[int]:
        claimed = []
        for turn in range(10):
            first = storage.claim(study_id, f"{worker}/{turn}")
            claimed += [first, *storage.claim_matching(first, f"{worker}/{turn}", 1, [])]
        return claimed

    claimed = claim_pairs("parent")
    reader, writer = os.pipe()
    for child in range(4):
        if not os.fork():
            with contextlib.suppress(BaseException):
                os.write(writer, (json.dumps(claim_pairs(f"child {child}")) + "\n").encode())
                os._exit(0)
            os._exit(1)
    claimed += claim_pairs("parent again")
    codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(4)]
    os.close(writer)
    with os.fdopen(reader) as lines:
        claimed += itertools.chain.from_iterable(map(json.loads, lines))
    return codes, claimed


def test_forked_processes_claim_each_trial_once(url):
    """Children use the object that their parent used before and continues to use."""
    ((codes, claimed),) = run_simultaneously(claim_in_forks, [(url,)])
    assert codes == [0] * 4
    assert len(set(claimed)) == len(claimed) > 100


@pytest.mark.parametrize("name", ["a{b}.db", "h#1.db", "50%.db", "ä b.db"])
def test_file_name_may_contain_special_characters(tmp_path, name):
    create_small_study(open_storage(f"sqlite:///{tmp_path}/{name}"), 1)
    assert len(load_study(read_storage(f"sqlite:///{tmp_path}/{name}"), "small").trials) == 1
    assert {path.name.removesuffix("-wal").removesuffix("-shm") for path in tmp_path.iterdir()} == {
        name
    }


def test_trials_outside_the_grid_are_ignored(url):
    storage = open_storage(url)
    study_id = create_small_study(storage, 1)
    study = load_study(storage, "small")
    study.enqueue_trial({"x": 0})
    study.add_trial(optuna.trial.create_trial(value=-1.0))
    trial_id = storage.claim(study_id, "me")
    assert storage.get_trial(trial_id).number == 0
    assert storage.claim(study_id, "me") is None
    assert best_trial_ids(storage, study_id, 1) == []
    storage.finish(trial_id, "me", TrialState.COMPLETE, 1.0, {})
    assert best_trial_ids(storage, study_id, 1) == [trial_id]
    assert count_trials(storage, study_id).planned == 1


def test_reader_of_a_file_without_wal_mode_sees_new_trials(sqlite_url):
    study = optuna.create_study(storage=sqlite_url, study_name="plain")
    for count in range(3):
        with contextlib.closing(read_storage(sqlite_url)) as reader:
            assert len(load_study(reader, "plain").trials) == count
            # An immutable connection would not see the changes of a writer.
            assert "immutable" not in str(reader.engine.url)
        study.optimize(lambda trial: 1.0, 1)


# ------------------------------------------------------------------ reading and invalid storages


def test_reading_creates_and_changes_no_file(sqlite_url, tmp_path):
    with pytest.raises(StorageError, match="does not exist: run a search first"):
        read_storage(sqlite_url)
    assert list_files(tmp_path) == {}
    storage = open_storage(sqlite_url)
    create_small_study(storage, 2)
    storage.engine.dispose()
    before = list_files(tmp_path)
    assert list(before) == ["studies.db"]
    reader = read_storage(sqlite_url)
    assert len(load_study(reader, "small").trials) == 2
    reader.engine.dispose()
    assert list_files(tmp_path) == before


def test_reader_of_an_unused_file_reads_what_another_process_writes_later(sqlite_url, tmp_path):
    writer = open_storage(sqlite_url)
    create_small_study(writer, 2)
    writer.engine.dispose()
    assert list(list_files(tmp_path)) == ["studies.db"]
    with contextlib.closing(read_storage(sqlite_url)) as reader:
        assert len(load_study(reader, "small").trials) == 2
        writer = open_storage(sqlite_url)
        create_small_study(writer, 300, "written")
        assert len(load_study(reader, "written").trials) == 300
        create_small_study(writer, 300, "merged")
        writer.engine.dispose()
        assert len(load_study(reader, "merged").trials) == 300
        assert len(load_study(reader, "small").trials) == 2


def test_reading_keeps_the_locks_of_the_same_process(sqlite_url, tmp_path):
    storage = open_storage(sqlite_url)
    create_small_study(storage, 2)
    with storage.engine.connect() as connection:
        connection.execute(sa.text("SELECT count(*) FROM trials")).all()
        with contextlib.closing(read_storage(sqlite_url)) as reader:
            assert len(load_study(reader, "small").trials) == 2
        # Another process may change the format of the file only while no process has it open.
        other = "import sqlite3, sys; sqlite3.connect(sys.argv[1], 0).execute(sys.argv[2])"
        command = [sys.executable, "-c", other, str(tmp_path / "studies.db")]
        found = subprocess.run(
            [*command, "PRAGMA journal_mode = DELETE"], capture_output=True, text=True, check=False
        )
        assert "database is locked" in found.stderr


def test_file_of_plain_optuna_is_switched_to_wal_mode_in_which_readers_see_a_worker(
    sqlite_url, tmp_path
):
    optuna.create_study(storage=sqlite_url, study_name="plain").optimize(lambda trial: 1.0, 1)
    storage = open_storage(sqlite_url)
    assert len(load_study(storage, "plain").trials) == 1
    with contextlib.closing(sqlite3.connect(tmp_path / "studies.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    study_id = create_small_study(storage, 2)
    storage.claim(study_id, "me")
    reader = read_storage(sqlite_url)
    assert count_trials(reader, study_id).running == 1
    with pytest.raises(Exception, match="readonly"):
        reader.claim(study_id, "you")


@pytest.mark.parametrize(
    ("statement", "content", "message"),
    [
        ("CREATE TABLE songs (name TEXT)", None, "not a database of studies"),
        ("UPDATE alembic_version SET version_num = 'v99.0.0'", None, "schema"),
        (None, b"", "not a database of studies"),
        (None, b"a text that is not a database\n" * 99, "not a database"),
    ],
    ids=["tables", "schema", "empty", "text"],
)
def test_file_of_another_program_is_left_unchanged(tmp_path, statement, content, message):
    path = tmp_path / "other.db"
    if content is not None:
        path.write_bytes(content)
    elif message == "schema":
        open_storage(f"sqlite:///{path}").close()
    if statement is not None:
        with contextlib.closing(sqlite3.connect(path)) as other, other:
            other.execute(statement)
    before = list_files(tmp_path)
    for opener in (open_storage, read_storage):
        with pytest.raises(StorageError, match=message):
            opener(f"sqlite:///{path}")
    assert list_files(tmp_path) == before


def test_server_without_studies_is_read_completed_or_left_unchanged(postgresql_url):
    with pytest.raises(StorageError, match="holds no study yet: run a search first"):
        read_storage(postgresql_url)
    engine = sa.create_engine(postgresql_url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE songs (name TEXT)"))
    with pytest.raises(StorageError, match="not a database of studies"):
        open_storage(postgresql_url)
    assert sa.inspect(engine).get_table_names() == ["songs"]
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE songs"))
        models.StudyModel.__table__.create(connection)  # as by a process that was killed
    create_small_study(open_storage(postgresql_url), 1)
    engine.dispose()


def test_invalid_url_is_reported_in_one_line_without_its_password():
    server, file = "://me:s3cret@127.0.0.1", "sqlite:////no/such/folder/studies.db"
    urls = [f"postgresql+psycopg{server}:1/none", f"postgresql+psycopg{server}:port/none", file]
    urls += ["postgresql+psycopg://me@127.0.0.1:1/none?password=s3cret", "sqlite://", "studies.db"]
    for url in (*urls, f"postgresql{server}:1/none", f"mysql{server}/none", f"redis{server}"):
        for opener in (open_storage, read_storage):
            with pytest.raises(StorageError) as raised:
                opener(url)
            assert "s3cret" not in str(raised.value)
            assert "\n" not in str(raised.value)


def test_storage_is_created_where_a_link_leads(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "studies.db"
    link.symlink_to(tmp_path / "disk" / "studies.db")
    open_storage(f"sqlite:///{link}").close()
    assert link.is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["studies.db"]
