"""The storage: concurrent creation, claims, writes and leases, on both kinds of database."""

import contextlib
import itertools
import math
import multiprocessing
import pickle
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import timedelta

import optuna
import pytest
import sqlalchemy as sa
from helpers import DatabaseUse, create_small_study, run_simultaneously, wait_for_others
from invocation import refused
from managed_studies import list_files
from optuna.distributions import CategoricalDistribution
from optuna.storages._rdb import models
from optuna.trial import TrialState

from studies.attributes import LEASE, Failure
from studies.errors import LeaseLostError, StorageError
from studies.storage import leases
from studies.storage.counts import count_trials, read_active_workers, top_trials
from studies.storage.edits import create_study
from studies.storage.leases import LeaseMonitor, PendingWrite
from studies.storage.open import load_study, open_storage, read_storage
from studies.storage.reads import Rung, TrialReader
from studies.storage.trials import StoredStudy, StoredTrial


def create_and_train(url: str, is_first: bool) -> list[int]:
    """Create a storage with others; return the numbers of the trials that plain Optuna trains."""
    storage, numbers = open_storage(url), []
    assert storage.get_all_studies() == []
    wait_for_others()
    if is_first:
        create_small_study(storage, 24)
    for _ in range(6):
        wait_for_others()
        study = load_study(storage, "small")
        trial = study.ask()
        numbers.append(trial.number)
        study.tell(trial, 0.0)
    return numbers


def test_processes_create_a_storage_together_in_which_plain_optuna_claims_each_trial_once(url):
    """Optuna's own storage gives some waiting trials to two processes on SQLite."""
    asked = run_simultaneously(create_and_train, [(url, place == 0) for place in range(4)])
    assert sorted(itertools.chain.from_iterable(asked)) == list(range(24))
    optuna.create_study(storage=url).optimize(lambda trial: trial.suggest_float("x", 0, 1), 2)


def test_plain_optuna_reads_complete_and_pruned_trials(url):
    storage = open_storage(url)
    study_id = create_small_study(storage, 2)
    trial_id = storage.claim(study_id, "me")
    storage.flush([PendingWrite(trial_id, "me", {1: 2.5, 2: float("nan")})])
    storage.flush([PendingWrite(trial_id, "me", {1: 2.25, 3: float("inf")})])
    before = optuna.create_study().ask()._cached_frozen_trial.datetime_start
    storage.finish(trial_id, "me", TrialState.COMPLETE, 1.5, {"seconds": 3.0, "host": "h"})
    after = optuna.create_study().ask()._cached_frozen_trial.datetime_start
    paused = storage.claim(study_id, "me")
    storage.pause(paused, "me", {"rung": 20}, {10: 3.0})
    since = storage.get_trial(paused).system_attrs["paused"]
    reason = {"reason": "far off"}
    assert storage.prune_paused(study_id, 2, [{paused: reason, trial_id: reason}]) == []
    assert storage.prune_paused(study_id, 2, [{paused: reason}]) == [paused]
    trial, pruned = optuna.load_study(study_name="small", storage=url).trials
    assert (trial.state, trial.value, trial.params) == (TrialState.COMPLETE, 1.5, {"x": 0})
    assert trial.user_attrs == {"seconds": 3.0, "host": "h"}
    assert repr(sorted(trial.intermediate_values.items())) == "[(1, 2.25), (2, nan), (3, inf)]"
    assert trial.datetime_start <= before <= trial.datetime_complete <= after, "naive UTC"
    assert (pruned.state, pruned.value) == (TrialState.PRUNED, None)
    assert pruned.user_attrs == {"rung": 20, "reason": "far off"}
    assert pruned.datetime_complete.isoformat() == since
    optuna.create_study().add_trial(pruned)  # refuses one that contradicts itself


def test_trials_match_if_they_have_the_same_parameters_with_the_same_values(url):
    """As in a union of grids: some have no momentum, or no size."""
    storage, values = open_storage(url), {"cell": ("a", "b"), "size": (32, 256), "momentum": (0.5,)}
    trials = [
        {"cell": "a", "size": 32},
        {"cell": "a", "size": 32, "momentum": 0.5},
        {"cell": "a", "size": 32},
        {"cell": "a"},
        {"cell": "a", "size": 256},
        {"cell": "b", "size": 32},
        {"cell": "a", "size": 32, "momentum": 0.5},
        {"cell": "a"},
    ]
    choices = {name: CategoricalDistribution(each) for name, each in values.items()}
    create_study(storage, StoredStudy("union", "loss", {}, choices, [*map(StoredTrial, trials)]))

    def claim_numbers(*parameters):
        first = storage.claim(1, "me/1")
        return [first - 1, *(i - 1 for i in storage.claim_matching(first, "me/1", 9, parameters))]

    assert claim_numbers(*values, "unknown") == [0, 2]
    assert claim_numbers("cell", "size") == [1, 6]
    assert claim_numbers(*values) == [3, 7]
    assert claim_numbers("size") == [4]
    storage.requeue_all([PendingWrite(5, "me/1")], Failure.LEASE_EXPIRED)
    with pytest.raises(LeaseLostError):
        storage.claim_matching(5, "me/1", 9, [])


def claim_in_forks(url: str) -> list[int]:
    storage = pickle.loads(pickle.dumps(open_storage(url)))
    study_id = create_small_study(storage, 120)

    def claim_pairs(worker: str) -> list[int]:
        claimed = []
        for turn in range(10):
            first = storage.claim(study_id, f"{worker}/{turn}")
            claimed += [first, *storage.claim_matching(first, f"{worker}/{turn}", 1, [])]
        return claimed

    claimed = claim_pairs("parent")
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    children = [
        context.Process(target=lambda name=name: answers.put(claim_pairs(name))) for name in "abcd"
    ]
    for child in children:
        child.start()
    claimed += claim_pairs("parent again")
    for child in children:
        child.join()
        assert child.exitcode == 0
        claimed += answers.get()
    return claimed


def test_forked_processes_claim_each_trial_once(url):
    """Children use the unpickled object that their parent used before and continues to use."""
    (claimed,) = run_simultaneously(claim_in_forks, [(url,)])
    assert len(set(claimed)) == len(claimed) > 100


@pytest.mark.parametrize("name", ["a{b}.db", "h#1.db", "50%.db", "ä b.db"])
def test_file_name_may_contain_special_characters(tmp_path, name):
    create_small_study(open_storage(f"sqlite:///{tmp_path}/{name}"), 1)
    assert len(load_study(read_storage(f"sqlite:///{tmp_path}/{name}"), "small").trials) == 1
    assert {path.name.removesuffix("-wal").removesuffix("-shm") for path in tmp_path.iterdir()} == {
        name
    }


def test_optuna_reads_more_unfinished_trials_than_a_statement_can_name(url):
    storage = open_storage(url)
    study_id = create_small_study(storage, 6)
    unfinished = {*range(1, 300_000)} - {4}
    found = storage._get_trials(study_id, None, unfinished, 5)
    assert [trial.number for trial in found] == [0, 1, 2, 4, 5]


def test_trials_of_plain_optuna_are_left_alone(url):
    """They are neither claimed nor counted, and do not expire."""
    storage = open_storage(url)
    study_id = create_small_study(storage, 1)
    study, monitor = load_study(storage, "small"), LeaseMonitor()
    reader = TrialReader(storage, study_id)
    trial_id = storage.claim(study_id, "me")
    assert len(reader.read()) == 1
    study.ask()
    study.enqueue_trial({"x": 0})
    study.add_trial(optuna.trial.create_trial(value=-1.0))
    assert storage.claim(study_id, "me") is None
    assert top_trials(storage, study_id, 1) == []
    storage.finish(trial_id, "me", TrialState.COMPLETE, 1.0, {"seconds": 1.0})
    assert len(top_trials(storage, study_id, 1)) == 1
    assert count_trials(storage, study_id).planned == len(reader.read()) == 1
    for now in range(0, 1000, 100):
        assert storage.expire_leases(study_id, monitor, lambda now=now: float(now)) == []


# ------------------------------------------------------------------ reading and invalid storages


def test_reading_creates_and_changes_no_file_and_sees_what_another_process_writes(
    sqlite_url, tmp_path
):
    with pytest.raises(StorageError, match="does not exist: run a search first"):
        read_storage(sqlite_url)
    assert list_files(tmp_path) == {}
    writer = open_storage(sqlite_url)
    create_small_study(writer, 2)
    writer.engine.dispose()
    before = list_files(tmp_path)
    assert list(before) == ["studies.db"]
    with contextlib.closing(read_storage(sqlite_url)) as reader:
        assert len(load_study(reader, "small").trials) == 2
        reader.engine.dispose()
        assert list_files(tmp_path) == before
        assert len(load_study(reader, "small").trials) == 2
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


def test_file_of_plain_optuna_is_read_as_it_is_and_switched_to_wal_mode_by_a_writer(
    sqlite_url, tmp_path
):
    study = optuna.create_study(storage=sqlite_url, study_name="plain")
    for count in range(2):  # an immutable connection would not see the changes
        with contextlib.closing(read_storage(sqlite_url)) as reader:
            assert len(load_study(reader, "plain").trials) == count
        study.optimize(lambda trial: 1.0, 1)
    storage = open_storage(sqlite_url)
    assert len(load_study(storage, "plain").trials) == 2
    with contextlib.closing(sqlite3.connect(tmp_path / "studies.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        indexes = database.execute("SELECT name FROM sqlite_master WHERE type = 'index'").fetchall()
        assert ("ix_trials_study_id_state_number",) in indexes, "for claims"
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
    urls += ["postgresql+psycopg://me:a@s3cret/b@127.0.0.1:1/none"]
    for url in (*urls, f"postgresql{server}:1/none", f"mysql{server}/none", f"redis{server}"):
        for opener in (open_storage, read_storage):
            with refused(StorageError, ""):
                opener(url)


def test_storage_is_created_where_a_link_leads(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "studies.db"
    link.symlink_to(tmp_path / "disk" / "studies.db")
    storage = open_storage(f"sqlite:///{link}")
    storage.claim(create_small_study(storage, 1), "me")
    with contextlib.closing(read_storage(f"sqlite:///{link}")) as reader:
        assert count_trials(reader, 1).running == 1, "the log is next to the file, not to the link"
    storage.close()
    assert link.is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["studies.db"]


# ------------------------------------------------------------------ progress and cost

RUNGS = [Rung(20, 0), Rung(40, 30), Rung(80, 60)]
STEPS = range(10, 101, 10)


def test_progress_contains_the_mean_losses_without_gaps(sqlite_url):
    storage = open_storage(sqlite_url)
    study_id = create_small_study(storage, 1)
    trial_id = storage.claim(study_id, "me/1")
    late = dict.fromkeys(range(50, 81, 10), 1.0)
    for curve, losses in (
        ({10: 9.0, 20: 7.0, 30: 5.0, 35: 4.0, 40: 3.0, 70: 2.0}, [8.0, 3.5, math.nan]),
        # Values that are not finite are left out of the mean, but the rung is reached.
        ({10: 9.0, 20: math.nan}, [9.0, math.nan, math.nan]),
        # A loop may log its metric seldom. A task's first target may come after a rung.
        ({20: 7.0} | late, [7.0, 7.0, 1.0]),
        (late, [1.0, 1.0, 1.0]),
        ({40: 3.0}, [3.0, 3.0, math.nan]),
    ):
        storage.flush([PendingWrite(trial_id, "me/1", curve, replace_all=True)])
        (trial,) = TrialReader(storage, study_id, rungs=RUNGS).read()
        assert trial.losses == pytest.approx(losses, nan_ok=True)


def measure_worker(url, trials):
    """Return statements and rows of all that a worker does once half of the trials have ended."""
    storage = open_storage(url)
    study_id = create_small_study(storage, trials, f"{trials} trials")
    reader, end = TrialReader(storage, study_id, rungs=RUNGS), (TrialState.COMPLETE, 1.0, {})
    for _ in range(trials // 2):
        finished = storage.claim(study_id, "me/1")
        storage.finish(finished, "me/1", *end, dict.fromkeys(STEPS, 1.0))
    reader.read()
    use, claimed = DatabaseUse(storage), []

    def claim(**which):
        claimed.append(storage.claim(study_id, "me/2", **which))

    yield use.measure(claim)
    yield use.measure(lambda: storage.flush([PendingWrite(claimed[0], "me/2", {10: 1.0, 20: 2.0})]))
    statements, rows = use.measure(reader.read)
    yield statements, rows - trials  # besides the state of each trial
    yield use.measure(lambda: storage.pause(claimed[0], "me/2", {"rung": 20}, {20: 1.0}))
    yield use.measure(lambda: claim(paused_ids=[claimed[0]]))
    yield use.measure(
        lambda: storage.requeue_all([PendingWrite(claimed[0], "me/2")], Failure.INTERRUPTED)
    )
    yield use.measure(claim)
    yield use.measure(lambda: storage.finish(claimed[0], "me/2", *end))
    assert claimed == 3 * [claimed[0]]


def test_statements_and_rows_of_a_worker_do_not_depend_on_the_number_of_trials(sqlite_url):
    """Curves that have not changed are not read again."""
    few, many = ([*measure_worker(sqlite_url, trials)] for trials in (20, 100))
    assert few == many
    assert few[2][1] == 3, "state, parameter and loss of the running trial"


# ------------------------------------------------------------------ leases


@pytest.fixture
def storage(url):
    with closing(open_storage(url)) as storage:
        create_small_study(storage, 6)
        yield storage


def test_heartbeat_between_observation_and_requeue_is_respected(postgresql_url):
    with closing(open_storage(postgresql_url)) as storage:
        create_small_study(storage, 1)
        trial_id = storage.claim(1, "slow", lease_seconds=4)

        class InterruptedMonitor(LeaseMonitor):
            def observe(self, leases, now):
                storage.flush([PendingWrite(trial_id, "slow", heartbeat=True)])
                return [trial_id]

        assert storage.expire_leases(1, InterruptedMonitor(), lambda: 0.0) == []
        assert count_trials(storage, 1).running == 1


def test_wall_clocks_neither_expire_nor_extend_a_lease(storage, monkeypatch):
    """The clock of the worker or the observer jumps by an hour during the lease."""
    monitor, trial_id = LeaseMonitor(), storage.claim(1, "me", lease_seconds=4)
    utcnow, wall_time = leases.utcnow, time.time
    for now, hours in ((0.0, 0), (2.0, 1), (4.0, -1)):
        shift = timedelta(hours=hours)
        monkeypatch.setattr(leases, "utcnow", lambda shift=shift: utcnow() + shift)
        monkeypatch.setattr(time, "time", lambda hours=hours: wall_time() + 3600 * hours)
        assert storage.expire_leases(1, monitor, lambda now=now: now) == []
        storage.flush([PendingWrite(trial_id, "me", heartbeat=True)])
    expired = [storage.expire_leases(1, monitor, lambda now=now: now) for now in (6.0, 8.0, 10.0)]
    assert expired == [[], [], [trial_id]]


def test_workers_are_listed_with_their_trials_the_longest_silent_first(storage):
    for worker in ("node1/17", "node1/17", "node2/5"):
        storage.claim(1, f"{worker}/token")
    plain = load_study(storage, "small").ask()

    def list_workers(heard):
        """Have the database have heard of the worker of trial 2 at another time."""
        lease = storage.get_trial_system_attrs(3)[LEASE]
        storage.set_trial_system_attr(3, LEASE, lease | {"heard": heard})
        with storage.reading() as connection:
            return read_active_workers(connection, 1)

    now = time.time()
    silent, other, optuna = list_workers(now - 95)
    assert (silent.name, silent.host, silent.trials) == ("node2/5", "node2", (2,))
    assert (other.name, other.host, other.trials) == ("node1/17", "node1", (0, 1))
    assert (optuna.name, optuna.host, optuna.trials) == (None, None, (plain.number,))
    assert 0 <= other.silent_seconds < silent.silent_seconds
    assert silent.description.startswith("node2/5 holds trial 2, last heard of ")
    assert "a program without a lease" in optuna.description
    (silent, *_) = list_workers(now - 900)
    assert silent.is_expired
    assert silent.description.endswith("min ago, longer than its lease of 2.0 min")
    (worker,) = (each for each in list_workers(now + 3600) if each.host == "node2")
    assert (worker.silent_seconds, worker.is_expired) == (0, False)
