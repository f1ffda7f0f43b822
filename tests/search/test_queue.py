"""The queue of trials, used by a loop without PyTorch that has a process of its own."""

import subprocess
import sys
from collections import Counter

from helpers import ROOT
from optuna.trial import TrialState
from test_pruned_search import GRID, LOG_EVERY, RUNGS, STEPS, TRIALS
from test_worker import create_study

STOPPED, STOPPED_AT = 7, 6
"""Trial in which the first process is stopped, and the step."""

LOOP = """
import sys
sys.modules["torch"] = None  # its import fails
import json, logging, os, signal
from types import SimpleNamespace
from optuna.trial import TrialState
from search.open_study import open_stored
from search.worker import queue as module
from search.worker.claims import ClaimManager
from search.worker.queue import TrialQueue, TrialResult
from search.worker.shutdown import ShutdownSignal

url = sys.argv[1]
steps, log_every, stopped, stopped_at, *rungs = map(int, sys.argv[2:])
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
logging.getLogger("search").setLevel(logging.DEBUG)  # the ends of paused trials as well
module.POLL_INTERVAL = 0


def decode(claim, content):
    curve = {int(step): value for step, value in json.loads(content).items()}
    return SimpleNamespace(step=max(curve), curve=curve, metrics={})


def train(claim):
    state = queue.checkpoints.resume([claim], decode)[claim]
    curve.clear()
    curve.update(state.curve if state else {})
    for step in range((state.step if state else 0) + log_every, steps + 1, log_every):
        curve[step] = claim.trial.number + 10 / step
        claim.report(step, curve[step])
        if (claim.trial.number, step) == (stopped, stopped_at):
            os.kill(os.getpid(), signal.SIGTERM)
        queue.poll()
        decision = queue.decide([claim]).get(claim) if step in rungs else None
        if decision is not None and decision.is_final:
            return TrialResult(TrialState.PRUNED, None, decision.attributes, "pruned")
        if decision is not None and save([claim]):
            return TrialResult(TrialState.WAITING, None, decision.attributes, "paused")
    return TrialResult(TrialState.COMPLETE, curve[steps], {}, "complete")


def save(claims):
    return queue.checkpoints.write(claims[0], lambda: json.dumps(curve).encode())


curve, stop, study = {}, ShutdownSignal(), open_stored("quick", url)
with stop, ClaimManager(study.storage, study.study_id, "loop", stop) as manager:
    queue = TrialQueue(study, manager, stop)
    for (claim,) in queue.batches():
        with queue.holding(save):
            queue.settle(claim, train(claim))
"""


def run_loop(url, stopped=-1):
    """Work on the study in a process that cannot import PyTorch; return the lines of its output."""
    numbers = map(str, (STEPS, LOG_EVERY, stopped, STOPPED_AT, *RUNGS))
    done = subprocess.run(
        [sys.executable, "-c", LOOP, url, *numbers],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_loop_without_pytorch_trains_a_pruned_study_with_an_interruption(
    sqlite_url, text, tmp_path
):
    joined = create_study(sqlite_url, text, *GRID, prune=True)
    assert f"trial {STOPPED} requeued" in run_loop(sqlite_url, STOPPED)
    lines = run_loop(sqlite_url)
    assert f"trial {STOPPED} resumes from step {STOPPED_AT}" in lines
    assert not any("restarts from step 0" in line for line in lines)
    assert any("  paused  " in line for line in lines)
    trials = joined.study.get_trials()
    states = Counter(trial.state for trial in trials)
    assert states.total() == TRIALS
    assert {*states} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert sum("  complete " in line for line in lines) == states[TrialState.COMPLETE]
    for trial in trials:
        curve = trial.intermediate_values
        reached = STEPS if trial.state is TrialState.COMPLETE else trial.user_attrs["rung"]
        assert curve == {
            step: trial.number + 10 / step for step in range(LOG_EVERY, reached + 1, LOG_EVERY)
        }
    assert list(tmp_path.glob("*.checkpoints/*/*")) == []
