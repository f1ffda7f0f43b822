"""Chaos test: kill, freeze, resume and stop workers at random; each trial finishes once.

``make chaos`` sends two hundred signals to eight workers on 144 trials. The loop of a user is a
script, by default ``small_loop.py``: ``RNN_SEARCH_CHAOS_SCRIPT`` names another, which has
``SETTINGS`` of a study of the script's name and trains on a single thread.
"""

import json
import os
import random
import re
import runpy
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path

import hooks
import psycopg
import pytest
from helpers import NO_SYNC, create_small_study, run_simultaneously
from hooks import Hooks
from optuna.trial import TrialState
from process_runner import CURVES, FINISHED, METRICS, query, wait_until
from services import PostgreSQL
from small_searches import RETRIES, assert_all_complete, finish

import rnn_search
from search.worker.claims import ClaimManager
from search.worker.shutdown import ShutdownSignal
from studies.storage.open import open_storage

pytestmark = pytest.mark.extended

SIGNALS = int(os.environ.get("RNN_SEARCH_CHAOS_DISTURBANCES", "14"))
WORKERS = int(os.environ.get("RNN_SEARCH_CHAOS_WORKERS", "4"))
TRIALS = int(os.environ.get("RNN_SEARCH_CHAOS_TRIALS", "12"))
STEPS = int(os.environ.get("RNN_SEARCH_CHAOS_STEPS", "400"))
PAUSE = float(os.environ.get("RNN_SEARCH_CHAOS_PAUSE", "0.5"))
SCRIPT = os.environ.get("RNN_SEARCH_CHAOS_SCRIPT", str(Path(__file__).parent / "small_loop.py"))

SPACE = {
    "training_steps": STEPS,
    "training_log_every": 50,
    "lease_seconds": 2,
    "checkpoint_seconds": 0.3,
    "space_layers": "[1]",
    "space_state_size": str([4 + index for index in range(TRIALS // 12)]),
    "space_replicates": "2",
    "space_input_gate": "[false]",
    "space_forget_gate": "[false]",
    "space_output_gate": "[false]",
    "space_residual": "[true]",
    "space_exclude": "[]",
}
"""A switch, three state sources and two replicates: twelve trials per state size."""


class ChaosMonkey:
    """Workers that receive random signals and are replaced when a signal ends them."""

    def __init__(self, start, random):
        self._start = start
        self._random = random
        self._frozen = {}  # time at which each frozen worker resumes
        self.started = [start() for _ in range(WORKERS)]
        self.alive = list(self.started)
        self.sent = Counter()

    @property
    def has_ended(self):
        return all(worker.ended.is_set() for worker in self.alive)

    def send_random_signal(self):
        """Send a signal to a worker that is not frozen; resume those whose freeze is over."""
        if awake := [worker for worker in self.alive if worker not in self._frozen]:
            number = self._random.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
            self.send(self._random.choice(awake), number)
        time.sleep(self._random.uniform(0.1, PAUSE))
        self.resume(time.monotonic())

    def resume(self, until=float("inf")):
        for worker in [each for each, end in self._frozen.items() if end <= until]:
            worker.send(signal.SIGCONT)
            del self._frozen[worker]

    def send(self, victim, number):
        victim.send(number)
        self.sent[number.name] += 1
        if number == signal.SIGSTOP:  # for less than its lease, or for longer
            self._frozen[victim] = time.monotonic() + self._random.choice([0.5, 4.0])
        else:
            self.alive.remove(victim)
            self.add()

    def add(self):
        self.started.append(self._start())
        self.alive.append(self.started[-1])

    def describe(self):
        resumed = [bool(re.search("resumes? from step", worker.output)) for worker in self.started]
        signals = ", ".join(f"{name} {count}" for name, count in self.sent.items())
        return f"{len(self.started)} workers, {signals}; {sum(resumed)} resumed a trial"


PRUNED = ("--prune", "--set=pruning.keep=0.25", "--set=pruning.confidence=0.6")
"""Arguments for a search that pauses trials, to be resumed by any worker."""


@pytest.mark.parametrize(
    ("url", "lockstep", "options"),
    [("sqlite", "5", ()), ("postgresql", "1", ()), ("sqlite", "1", PRUNED)],
    ids=["sqlite", "postgresql", "pruned"],
    indirect=["url"],
)
def test_each_trial_finishes_once_with_the_curve_of_a_search_without_faults(
    search, new_gate, artifacts, reference_curves, url, lockstep, options
):
    # Hold each training from the start, so that no search ends before a signal was sent.
    gate = new_gate(STEPS // 2)

    def start():
        return search(*options, url=url, lockstep=lockstep, gate=gate, **SPACE)

    monkey = ChaosMonkey(start, new_random())
    wait_until(lambda: gate.held)
    victim = next(worker for worker in monkey.alive if worker.pid in gate.held)
    monkey.send(victim, signal.SIGKILL)
    while monkey.sent.total() < SIGNALS and not monkey.has_ended:
        monkey.send_random_signal()
    monkey.resume()
    gate.open()
    if monkey.has_ended:
        monkey.add()

    # Every worker exits with 0 or by its signal (some before the handler is installed).
    codes = {worker.wait(): worker.output for worker in monkey.started}
    assert codes.keys() <= {0, 143, -signal.SIGTERM, -signal.SIGKILL}, codes

    finished = query(url, FINISHED)
    curves, expected = query(url, CURVES), reference_curves(**SPACE)
    assert [number for number, *_ in finished] == list(range(TRIALS)), "each trial ended once"
    pruned = {number for number, *end in finished if end == ["PRUNED", 0]}
    assert all(end == ["COMPLETE", 1] for number, *end in finished if number not in pruned)
    assert bool(pruned) == bool(options)
    # Both runs of an architecture; the second ones come after all first ones.
    assert pruned == {(number + TRIALS // 2) % TRIALS for number in pruned}

    # Every curve equals that of a search without faults: bit for bit for networks trained alone,
    # up to rounding in lockstep, since resumed networks join other stacks.
    last = {number: step for number, step, _ in curves}
    expected = [row for row in expected if row[0] not in pruned or row[1] <= last[row[0]]]
    assert [row[:2] for row in curves] == [row[:2] for row in expected]
    tolerance = 0 if lockstep == "1" else 1e-3
    losses = [row[2] for row in expected]
    assert [row[2] for row in curves] == pytest.approx(losses, rel=tolerance, abs=0)
    assert list(artifacts.rglob("*checkpoint*")) == [], "checkpoints remain"
    assert query(url, RETRIES), "no trial was interrupted"
    print(monkey.describe())


def new_random():
    seed = int(os.environ.get("RNN_SEARCH_CHAOS_SEED", random.randrange(10**6)))
    print(f"RNN_SEARCH_CHAOS_SEED={seed}")
    return random.Random(seed)


# ------------------------------------------------------------------ loops of users


@pytest.fixture
def start_script(runner, tmp_path):
    """Function that creates the study of the script, and returns one that starts the script."""
    settings = runpy.run_path(SCRIPT)["SETTINGS"]
    often = {"lease.seconds": 2, "checkpoint.seconds": 0.3}

    def create(url, **overrides):
        name = Path(SCRIPT).stem
        rnn_search.create_study(settings, name=name, storage=url, overrides=often | overrides)
        place = {"RNN_SEARCH_STORAGE": url, "RNN_SEARCH_ARTIFACTS": str(tmp_path / "artifacts")}

        def start(**environment):
            hooks = Hooks(report=False)
            return runner.start(SCRIPT, cwd=tmp_path, hooks=hooks, **place, **environment)

        return start

    return create


def find_pids(url):
    """Return the processes that hold trials."""
    leases = query(url, "SELECT value_json FROM trial_system_attributes WHERE key = 'lease'")
    return {int(json.loads(lease)["claim_token"].split("/")[1]) for (lease,) in leases}


@pytest.mark.parametrize(
    ("url", "overrides"),
    [
        ("sqlite", {}),
        ("postgresql", {}),
        ("sqlite", {"pruning.enabled": True, "pruning.keep": 0.25, "pruning.confidence": 0.6}),
    ],
    ids=["sqlite", "postgresql", "pruned"],
    indirect=["url"],
)
def test_each_trial_of_a_loop_finishes_once_with_the_results_of_one_without_faults(
    start_script, url, overrides, tmp_path
):
    start = start_script(url, **overrides)
    monkey = ChaosMonkey(start, new_random())
    pids = wait_until(lambda: find_pids(url))
    victim = next(worker for worker in monkey.alive if worker.pid in pids)
    monkey.send(victim, signal.SIGKILL)
    while monkey.sent.total() < SIGNALS and not monkey.has_ended:
        monkey.send_random_signal()
    monkey.resume()
    monkey.add()
    codes = {worker.wait(): worker.output for worker in monkey.started}
    assert codes.keys() <= {0, -signal.SIGTERM, -signal.SIGKILL}, codes

    reference = f"sqlite:///{tmp_path}/reference.db"
    finish(start_script(reference)(LOOP_DELAY="0"))
    names = [study.name for study in rnn_search.list_studies(url)]
    assert names == [Path(SCRIPT).stem], "the script's study has not the name of the script"
    ends = query(url, FINISHED)
    expected = query(reference, FINISHED)
    pruned = {number for number, *end in ends if end == ["PRUNED", 0]}
    assert bool(pruned) <= bool(overrides)
    assert [end for end in ends if end[0] not in pruned] == [
        end for end in expected if end[0] not in pruned
    ]
    curves = query(url, CURVES)
    last = {number: step for number, step, _ in curves}
    assert curves == [row for row in query(reference, CURVES) if row[1] <= last[row[0]]]
    assert {last[number] for number, *_ in ends if number not in pruned} == {max(last.values())}
    assert list_metrics(url) == [
        (number, name, [point for point in points if point[0] <= last[number]])
        for number, name, points in list_metrics(reference)
    ]
    values = [value for number, value in query(reference, VALUES_OF) if number not in pruned]
    assert [value for _, value in query(url, VALUES_OF)] == values
    assert list((tmp_path / "artifacts").rglob("*checkpoint*")) == [], "checkpoints remain"
    assert query(url, RETRIES), "no trial was interrupted"
    print(monkey.describe())


def list_metrics(url):
    return [(number, name, json.loads(points)) for number, name, points in query(url, METRICS)]


VALUES_OF = """
    SELECT number, value FROM trials t JOIN trial_values v ON v.trial_id = t.trial_id
    ORDER BY number
"""


# ------------------------------------------------------------------ crowds


CROWD = int(os.environ.get("RNN_SEARCH_CROWD_WORKERS", "16"))
CONNECTIONS = int(os.environ.get("RNN_SEARCH_CROWD_CONNECTIONS", "10"))


def work(url, trials, folder):
    """Create storage and study unless they exist; return the numbers of the claimed trials.

    The first trial ends once a second worker has claimed one, so that claims do compete: each
    worker creates a file in the folder.
    """
    hooks.make_patient()
    storage, numbers = open_storage(url), []
    study_id = create_small_study(storage, trials)
    with ClaimManager(storage, study_id, f"stub/{os.getpid()}", ShutdownSignal()) as manager:
        while claims := manager.claim():
            (claim,) = claims
            numbers.append(claim.trial.number)
            claim.report(1, 1.0)
            (folder / str(os.getpid())).touch()
            wait_until(lambda: len(list(folder.iterdir())) > 1)
            manager.finish(claim, TrialState.COMPLETE, 1.0, {})
    return numbers


def test_more_workers_than_connections_finish_all_trials(tmp_path):
    """All start at once, while no tables exist and every connection is in use."""
    settings = f"-c max_connections={CONNECTIONS} -c superuser_reserved_connections=3"
    with PostgreSQL(f"{NO_SYNC} {settings}") as server, ThreadPoolExecutor() as executor:
        url = server.new_database()
        with ExitStack() as connections:
            with suppress(psycopg.OperationalError):
                while True:
                    connections.enter_context(psycopg.connect(url.replace("+psycopg", "")))
            before = server.log.count("too many clients")
            crowd = executor.submit(run_simultaneously, work, [(url, CROWD, tmp_path)] * CROWD)
            wait_until(lambda: server.log.count("too many clients") > before + CROWD)
        assert Counter(chain(*crowd.result())) == Counter(range(CROWD))
        assert_all_complete(url, CROWD)
