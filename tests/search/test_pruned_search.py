"""A search with pruning: trials are paused with checkpoints, resumed and pruned."""

import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import Future
from unittest.mock import Mock

import hooks
import pytest
from helpers import ROOT, TEXT, join_study
from optuna.trial import TrialState
from test_several_tasks import FLOORS
from test_worker import create_study, work

from rnn.errors import UserError
from search.pruning.policy import PruningPolicy
from search.pruning.scheduler import PauseResumeScheduler, compute_rungs
from search.worker.queue import TrialQueue
from search.worker.shutdown import ShutdownSignal
from studies.artifacts import TrialFiles
from studies.attributes import Failure, TrialRecord
from studies.best import top_count
from studies.storage.counts import count_trials
from studies.storage.leases import PendingWrite

STEPS, LOG_EVERY, TRIALS, KEPT = 60, 6, 24, 2

GRID = [
    "precision='fp32'",
    f"training.steps={STEPS}",
    f"training.log_every={LOG_EVERY}",
    "training.learning_rate=0.02",
    "training.smoothing=0.9",
    "pruning.audit=0",
    "pruning.confidence=0.7",  # tiny networks differ so little that a higher value keeps all
    "seed=4",  # no pruner keeps the best network at every seed
    "space.layers=[1]",
    "space.output_gate=[false, true]",
    "space.state_gate=[false, true]",
]
"""Twenty-four tiny networks, the best two of which are to be kept."""

RUNGS = {rung.step for rung in compute_rungs(STEPS, LOG_EVERY)}


def search(url, text, *overrides, prune=True, **options):
    return work(url, text, [*GRID, *overrides], prune=prune, **options)


def search_in_new_folder(tmp_path_factory, *overrides, **options):
    """Run a search in a new folder; return the folder, the study handle and the messages."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "text").write_bytes(TEXT)
    url = f"sqlite:///{folder}/studies.db"
    with pytest.MonkeyPatch.context() as patch:
        hooks.make_patient(patch.setattr)
        return folder, *search(url, folder / "text", *overrides, lockstep=1, **options)


@pytest.fixture(scope="module")
def unpruned(tmp_path_factory):
    """Trials of the search without pruning, by their parameters."""
    _, joined, _ = search_in_new_folder(tmp_path_factory, prune=False)
    return {tuple(trial.params.items()): trial for trial in joined.study.trials}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A search with pruning: its folder, study handle and messages; read-only."""
    return search_in_new_folder(tmp_path_factory)


def check_curves(joined, unpruned):
    """Each trial is complete or pruned, with the same curve as without pruning."""
    assert len(joined.study.trials) == len(unpruned)
    for trial in joined.study.trials:
        reference = unpruned[tuple(trial.params.items())]
        TrialRecord.model_validate(trial.user_attrs)
        curve = trial.intermediate_values
        beginning = {step: reference.intermediate_values[step] for step in curve}
        assert curve == beginning
        assert list(curve) == list(range(LOG_EVERY, max(curve) + 1, LOG_EVERY))
        if trial.state is TrialState.COMPLETE:
            assert trial.value == reference.value
            assert max(curve) == STEPS
            continue
        assert trial.state is TrialState.PRUNED
        assert trial.value is None
        attributes = trial.user_attrs
        assert attributes["rung"] == max(curve)
        assert attributes["rung"] in RUNGS
        assert 0 <= attributes["keep_probability"] < 1
        predicted = f"predicted {attributes['predicted_value']:.3f}"
        assert f"at step {attributes['rung']} of {STEPS}: {predicted}" in attributes["reason"]


def test_best_trials_complete_and_pruned_curves_are_unchanged(pruned, unpruned):
    folder, joined, messages = pruned
    check_curves(joined, unpruned)
    ranked = sorted(unpruned.values(), key=lambda trial: trial.value)
    states = {tuple(trial.params.items()): trial.state for trial in joined.study.trials}
    kept = [states[tuple(trial.params.items())] is TrialState.COMPLETE for trial in ranked]
    wanted = top_count(0.1, len(kept))
    assert kept[0]
    assert sum(kept[:wanted]) >= wanted - 1
    # Networks so small end close to each other: 11 to 20 of 24 complete, depending on the seed.
    assert sum(kept) < len(kept)
    # Paused trials resumed from their checkpoints, and no checkpoint is left.
    assert any("paused at step" in line for line in messages)
    assert "complete" in messages
    assert not any("restarts from step 0" in line for line in messages)
    assert list(folder.glob("*.checkpoints/*/*")) == []
    counts = count_trials(joined.storage, joined.study_id)
    assert counts.complete + counts.pruned == counts.planned == len(kept)
    assert counts.paused == counts.waiting == 0


@pytest.mark.extended
def test_trials_are_not_paused_without_checkpoints(sqlite_url, text, unpruned, monkeypatch):
    """A pause would lose the training so far."""

    def refuse(self, number, content):
        raise OSError("no room")

    monkeypatch.setattr(TrialFiles, "write", refuse)
    joined, messages = search(sqlite_url, text, lockstep=1)
    check_curves(joined, unpruned)
    assert not any("paused" in line for line in messages)
    assert any("cannot write the checkpoint" in line and "(no room)" in line for line in messages)


def test_trials_continue_in_an_outage(sqlite_url, text):
    joined = create_study(sqlite_url, text, *GRID, prune=True)
    manager = Mock(unavailable_reason="away", submit=lambda read, after_flush: Future())
    queue = TrialQueue(joined, manager, Mock(requested=False))
    assert queue.decide([Mock(trial_id=1, trial=Mock(params={}))]) == {}


def test_paused_trials_do_not_wait_for_one_that_failed_here(sqlite_url, text):
    joined = create_study(sqlite_url, text, *GRID, prune=True)
    storage = joined.storage
    failed, *others = (storage.claim(joined.study_id, "me/1") for _ in range(TRIALS))
    for trial_id in others:
        storage.pause(trial_id, "me/1", {}, {LOG_EVERY: trial_id / 10})
    storage.requeue_all([PendingWrite(failed, "me/1")], Failure.EXCEPTION)
    scheduler = PauseResumeScheduler(storage, joined.study_id, joined.config)
    assert not scheduler.select(scheduler.read(), 0.0).resumed
    assert scheduler.select(scheduler.read(), 0.0, [failed]).resumed


def test_search_finishes_without_pruning_decisions(sqlite_url, text, unpruned, monkeypatch, caplog):
    """Also with trials that were paused before."""

    def fail(self):
        raise IndexError("no such thing")

    joined = create_study(sqlite_url, text, *GRID, prune=True)
    for _ in range(3):
        trial_id = joined.storage.claim(joined.study_id, "paused/1")
        joined.storage.pause(trial_id, "paused/1", {})
    monkeypatch.setattr(PruningPolicy, "prediction", property(fail))
    joined, messages = search(sqlite_url, text, lockstep=1)
    assert count_trials(joined.storage, joined.study_id).complete == TRIALS
    check_curves(joined, unpruned)
    error = "IndexError: no such thing"
    warning = f"warning: pruning decision failed ({error}); paused trials resume without it"
    assert warning in messages
    assert f"warning: pruning decision failed ({error}); the trials continue" in messages
    assert not any("retries" in trial.user_attrs for trial in joined.study.trials)
    assert not any("exception calling callback" in record.message for record in caplog.records)


@pytest.mark.extended
def test_hanging_worker_does_not_block_others_forever(sqlite_url, text, monkeypatch):
    """Another worker hangs with the last trial; this one waits, then ignores it."""
    joined = create_study(sqlite_url, text, *GRID, prune=True)
    assert joined.storage.claim(joined.study_id, "hangs/1") is not None
    waits = []
    monkeypatch.setattr("search.worker.queue.PRUNER_WAIT_TIMEOUT", 0.0)
    monkeypatch.setattr("search.worker.queue.CLAIM_INTERVALS", (0.01, 0.01))
    monkeypatch.setattr(TrialQueue, "_log_wait", lambda self: waits.append(self._batch_started_at))
    # Two waits with no training between them: nothing is left to do.
    ends = property(lambda self: len(waits) > 1 and waits[-1] == waits[-2])
    monkeypatch.setattr(ShutdownSignal, "requested", ends)
    joined, _ = search(sqlite_url, text, lockstep=1)
    counts = count_trials(joined.storage, joined.study_id)
    assert counts.running == 1
    assert counts.complete >= KEPT
    scheduler = PauseResumeScheduler(joined.storage, joined.study_id, joined.config)
    assert not scheduler.select(scheduler.read(), 0, (), True).resumed


@pytest.mark.extended
def test_paused_trials_without_checkpoints_restart_and_finish(
    sqlite_url, text, tmp_path, unpruned, monkeypatch
):
    """They restart, and are not paused again before the step of the last pause."""
    paused: list[int] = []
    settle = TrialQueue.settle

    def noted(self, claim, result):
        settle(self, claim, result)
        if result.state is TrialState.WAITING:
            paused.append(max(claim.trial.intermediate_values, default=0))

    monkeypatch.setattr(TrialQueue, "settle", noted)
    with monkeypatch.context() as patch:
        patch.setattr(ShutdownSignal, "requested", property(lambda self: len(paused) > 30))
        joined, _ = search(sqlite_url, text, lockstep=1)
    assert count_trials(joined.storage, joined.study_id).paused > 10
    (folder,) = tmp_path.glob("*.checkpoints")
    shutil.rmtree(folder)
    paused.clear()
    joined, messages = search(sqlite_url, text, lockstep=1)
    check_curves(joined, unpruned)
    assert not any(re.search("resumes? from", line) for line in messages)
    steps = [int(line.split()[-1]) for line in messages if line.startswith("paused at step ")]
    assert any(paused)
    assert all(before < step for before, step in zip(paused, steps, strict=True))


def test_pruned_study_is_joined_with_the_same_pruning_settings_only(pruned, text):
    url = f"sqlite:///{pruned[0]}/studies.db"
    # A worker that says nothing about pruning prunes as its study does.
    quiet = [setting for setting in GRID if not setting.startswith("pruning.")]
    assert create_study(url, text, *quiet).config.pruning.enabled
    with pytest.raises(UserError, match=r"pruning\.enabled: True in the study, False here"):
        search(url, text, "pruning.enabled=false", prune=False)
    with pytest.raises(UserError, match="start a wider study under"):
        search(url, text, "space.layers=[1, 2]", extend=True)


def test_refinement_of_a_pruned_study_uses_the_kept_trials(pruned):
    """The fraction counts all planned trials, not only complete ones."""
    folder, joined, _ = pruned
    url = f"sqlite:///{folder}/studies.db"
    values = sorted(
        (trial.value, trial.number)
        for trial in joined.study.trials
        if trial.state is TrialState.COMPLETE
    )
    with pytest.raises(UserError, match=r"pruned to its top 2 .*expected at most 2"):
        join_study("quick-refined", url, ["refinement.top=0.2"])
    derived = join_study("quick-refined", url, ["refinement.variants=[{}]"])
    origins = [trial.user_attrs["source_trials"] for trial in derived.study.trials]
    assert origins == [[number] for _, number in values[:KEPT]]
    assert not derived.config.pruning.enabled, "pruning is not inherited"


REPEATED = [
    "space.task=['text', 'adding:6']",
    "report_threshold={text = 2.3, 'adding:6' = 0.2}",
    "space.replicates=2",
    "space.output_gate=[false]",
    "space.state_gate=[false]",
    "space.state_source=['new', 'both']",
    "space.state_size=[4, 6]",
    "training.steps=40",
    "training.log_every=4",
    "pruning.keep=0.2",
]
"""Eight networks, twice on each of two tasks, of which one is to be kept on each."""


@pytest.mark.extended
def test_stopped_search_of_replicates_and_tasks_ends_as_if_it_had_not_stopped(
    tmp_path_factory, monkeypatch
):
    monkeypatch.setattr("search.task_check.check_task", lambda *_: (FLOORS, ""))
    _, without, _ = search_in_new_folder(tmp_path_factory, *REPEATED)
    settle, settled = TrialQueue.settle, []

    def count(self, claim, result):
        settle(self, claim, result)
        settled.append(claim)

    monkeypatch.setattr(TrialQueue, "settle", count)
    folder, url = None, None
    for stop_at in (10, 25, 10**6):  # in the middle of a training, if it lasts
        with monkeypatch.context() as patch:
            ends = property(lambda self, last=stop_at: len(settled) >= last)
            patch.setattr(ShutdownSignal, "requested", ends)
            if folder is None:
                folder, joined, _ = search_in_new_folder(tmp_path_factory, *REPEATED)
                url = f"sqlite:///{folder}/studies.db"
            else:
                joined, _ = search(url, folder / "text", *REPEATED, lockstep=1)
    expected, found = (list(map(summarize, each.study.trials)) for each in (without, joined))
    assert found == expected
    ends = defaultdict(set)
    for trial in joined.study.trials:
        params = {name: of for name, of in trial.params.items() if name != "replicate"}
        ends[tuple(params.items())].add(trial.state)
    assert len(ends) == 16
    assert {len(states) for states in ends.values()} == {1}, "runs end alike"
    for task in ("text", "adding:6"):
        states = {of for params, (of,) in ends.items() if ("task", task) in params}
        assert states == {TrialState.COMPLETE, TrialState.PRUNED}


def summarize(trial):
    """Return what does not depend on when a trial was trained."""
    rung = trial.user_attrs.get("rung")
    return trial.params, trial.state, trial.value, trial.intermediate_values, rung


# ------------------------------------------------------------------ a loop without PyTorch


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
    return TrialResult(TrialState.COMPLETE, curve[steps], {"seconds": 1.0}, "complete")


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
