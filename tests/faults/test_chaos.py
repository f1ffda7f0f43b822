"""Workers are killed, frozen, woken and stopped at random; each trial is finished once.

``make chaos`` disturbs eight workers on 144 trials two hundred times.
"""

import os
import random
import signal
import time

import pytest
from hooks import Gate
from process_runner import CURVES, FINISHED, query, search_starter, wait_until

pytestmark = pytest.mark.extended

DISTURBANCES = int(os.environ.get("RNN_SEARCH_CHAOS_DISTURBANCES", "14"))
WORKERS = int(os.environ.get("RNN_SEARCH_CHAOS_WORKERS", "4"))
TRIALS = int(os.environ.get("RNN_SEARCH_CHAOS_TRIALS", "12"))
STEPS = int(os.environ.get("RNN_SEARCH_CHAOS_STEPS", "400"))

SPACE = {
    "training_steps": STEPS,
    "training_log_every": 50,
    "lease_seconds": 2,
    "checkpoint_seconds": 0.3,
    "space_layers": "[1]",
    "space_state_size": str([4 + index for index in range(TRIALS // 12)]),
    "space_input_gate": "[false]",
    "space_output_gate": "[false]",
    "space_residual": "[true]",
    "space_exclude": "[]",
}
"""Two switches and three sources: twelve trials a state size."""


class Crew:
    """Workers that are disturbed, and replaced when that ends them.

    Args:
        start: starts a worker.
        random: chooses what is done, to which worker, and when.
    """

    def __init__(self, start, random):
        self._start = start
        self._random = random
        self._frozen = []  # (when to wake it, worker)
        self.workers = [start() for _ in range(WORKERS)]
        self.everyone = list(self.workers)
        self.done = {}

    @property
    def has_ended(self):
        return all(worker.ended.is_set() for worker in self.workers)

    def kill(self, victim):
        self._send(victim, signal.SIGKILL)

    def disturb(self):
        """Do something to a worker that is not frozen, and wake those whose time has come."""
        awake = [worker for worker in self.workers if worker not in dict(self._frozen).values()]
        if awake:
            number = self._random.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
            self._send(self._random.choice(awake), number)
        time.sleep(self._random.uniform(0.1, 0.5))
        self.wake(time.monotonic())

    def wake(self, until_time=float("inf")):
        for at, worker in [each for each in self._frozen if each[0] <= until_time]:
            worker.send(signal.SIGCONT)
            self._frozen.remove((at, worker))

    def add(self):
        self.everyone.append(self._start())
        return self.everyone[-1]

    def _send(self, victim, number):
        victim.send(number)
        self.done[number.name] = self.done.get(number.name, 0) + 1
        if number == signal.SIGSTOP:  # for less than its lease, or for longer
            self._frozen.append((time.monotonic() + self._random.choice([0.5, 4.0]), victim))
        else:
            self.workers[self.workers.index(victim)] = self.add()


PRUNED = ("--prune", "--set=pruning.keep=0.25", "--set=pruning.confidence=0.6")
"""With pauses, each with a checkpoint, and trials that other workers resume."""


@pytest.mark.parametrize(
    ("kind", "lockstep", "words"),
    [("sqlite", "5", ()), ("postgresql", "1", ()), ("sqlite", "1", PRUNED)],
    ids=["sqlite", "postgresql", "pruned"],
)
def test_each_trial_is_finished_once_with_the_curve_of_an_undisturbed_one(
    runner, text, undisturbed, tmp_path, tmp_path_factory, kind, lockstep, words, request
):
    url = request.getfixturevalue(f"{kind}_url")
    search = search_starter(runner, url, text)
    seed = int(os.environ.get("RNN_SEARCH_CHAOS_SEED", random.randrange(10**6)))
    print(f"RNN_SEARCH_CHAOS_SEED={seed}")
    # Holds each training that was not resumed: no search ends before it was disturbed.
    gate = Gate(tmp_path_factory.mktemp("gate") / "gate", STEPS // 2)

    def start():
        own = f"--artifacts={tmp_path}/artifacts"
        return search(own, *words, lockstep=lockstep, gate=gate, **SPACE)

    crew = Crew(start, random.Random(seed))
    wait_until(lambda: gate.held)
    crew.kill(next(worker for worker in crew.workers if worker.pid in gate.held))
    while sum(crew.done.values()) < DISTURBANCES and not crew.has_ended:
        crew.disturb()
    crew.wake()
    gate.open()
    if crew.has_ended:
        crew.add()
    print(f"{kind}: {len(crew.everyone)} workers, {crew.done}")

    # Every worker ended as it was asked to (some before they could listen), none with an error.
    codes = {worker.wait(): worker.output for worker in crew.everyone}
    assert codes.keys() <= {0, 143, -signal.SIGTERM, -signal.SIGKILL}, codes

    # By plain SQL: every trial is finished once, and none runs.
    finished = query(url, FINISHED)
    pruned = {number for number, state, values in finished if (state, values) == ("PRUNED", 0)}
    assert finished == [
        (number, "PRUNED", 0) if number in pruned else (number, "COMPLETE", 1)
        for number in range(TRIALS)
    ]
    assert bool(pruned) == bool(words)

    # Every curve is that of an undisturbed search: of networks that are trained alone bit for bit,
    # of others up to rounding, for their network stack has changed.
    found, expected = query(url, CURVES), undisturbed(**SPACE)
    last = {number: step for number, step, _ in found}
    expected = [row for row in expected if row[0] not in pruned or row[1] <= last[row[0]]]
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    tolerance = 0 if lockstep == "1" else 1e-3
    losses = [row[2] for row in expected]
    assert [row[2] for row in found] == pytest.approx(losses, rel=tolerance, abs=0)
    assert list((tmp_path / "artifacts").rglob("*checkpoint*")) == [], "checkpoints are left"
    retries = query(url, "SELECT value_json FROM trial_user_attributes WHERE key = 'retries'")
    print(f"{kind}: retries {[value for (value,) in retries]}")
    resumed = sum("resumes from step" in worker.output for worker in crew.everyone)
    print(f"{kind}: {resumed} workers resumed a trial")
    assert retries, "nothing has happened to any trial"
