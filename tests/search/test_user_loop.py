"""Training loops of users: trials that a script claims, and what becomes of them."""

import itertools
import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter, OrderedDict
from contextlib import closing, contextmanager
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from helpers import ROOT
from invocation import refused, unchanged
from optuna.trial import TrialState
from process_runner import CURVES, FINISHED, METRICS, query, wait_until_running

import rnn_search
from rnn.errors import UserError
from rnn_search import TrialStoppedError
from search.errors import ShutdownRequestedError
from search.pruning.policy import PruneDecision
from search.worker.loop_trial import derive_seed
from search.worker.shutdown import ShutdownSignal
from studies.storage.leases import LeaseMonitor
from studies.storage.open import open_storage

LOOP = {"metric": "accuracy", "direction": "maximize", "steps": 20, "log_every": 5}

ONE = {"loop": LOOP, "space": {"width": [3]}}

FOUR = {"loop": LOOP, "space": {"width": [1, 2], "act": ["relu", "tanh"]}}

OFTEN = {"checkpoint.seconds": 1e-9}
"""Settings with which each save writes."""


@pytest.fixture(autouse=True)
def _poll_at_once(monkeypatch):
    """Have each log look for signals and lost leases."""
    monkeypatch.setattr("search.worker.queue.POLL_INTERVAL", 0.0)


@pytest.fixture
def create(sqlite_url):
    """Function that creates a study in an empty storage."""

    def create_study(settings=ONE, name="mine", **options):
        options = {"storage": sqlite_url} | options
        return rnn_search.create_study(settings, name=name, **options)

    return create_study


def follow(trial, start=0, end=20, **others):
    """Log a curve that follows from the trial's parameters; return its last value."""
    for step in range(start + 1, end + 1):
        value = 1 - 1 / (step + trial.params["width"])
        trial.log(step, accuracy=value, **others)
    return value


def run_all(study, **options):
    for trial in study.claim(**options):
        with trial:
            trial.finish(follow(trial))


def expected_curve(width):
    return {step: 1 - 1 / (step + width) for step in (5, 10, 15, 20)}


def read(study, number=0):
    """Return a stored trial as Optuna shows it."""
    return study.optuna.trials[number]


def states(study):
    return Counter(trial.state.name for trial in study.optuna.trials)


def lose(study):
    """Have the leases of a study's running trials expire, as another worker observes it."""
    with closing(open_storage(study.storage)) as storage:
        monitor = LeaseMonitor()
        clock = itertools.count(0, 10**6)
        study_id = study.optuna._study_id
        assert any(storage.expire_leases(study_id, monitor, lambda: next(clock)) for _ in range(4))


@contextmanager
def interrupted(study, error=RuntimeError, message=""):
    """Require that a loop ends by an exception, and that its trials wait again."""
    with refused(error, message) if message else pytest.raises(error):
        yield
    assert states(study)["RUNNING"] == 0


# ------------------------------------------------------------------ creating


def test_study_is_created_once_and_joined_if_that_is_wanted(create, tmp_path):
    study = create(FOUR)
    assert states(study) == {"WAITING": 4}
    with refused(UserError, ["'mine' exists", "load_if_exists=True"], tmp_path):
        create(FOUR)
    with refused(UserError, "loop.steps", tmp_path):
        create(FOUR, load_if_exists=True, overrides={"loop.steps": 30})
    with unchanged(tmp_path):
        assert create(FOUR, load_if_exists=True) == study


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loop": LOOP | {"log_every": 30}}, "log_every is 30"),
        ({"loop": LOOP | {"step": 30}}, "step"),
        ({"loop": LOOP | {"direction": "up"}}, "direction"),
        ({"loop": LOOP | {"function": "missing.py:train"}}, "missing.py not found"),
        ({"training": {"steps": 5}}, "training"),
        ({"space": {"width": []}}, "width"),
        ({"space": {"width": [float("nan")]}}, "width"),
        ({"space": {"width": [{"a": 1}]}}, "width"),
    ],
)
def test_bad_settings_are_refused_and_write_nothing(create, tmp_path, settings, message):
    with refused(UserError, message, tmp_path):
        create(ONE | settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": {"loop.steps": 5}}, "loop.steps is a setting of the stored study"),
        ({"until": "soon"}, "until"),
    ],
)
def test_bad_options_of_a_claim_are_refused(create, tmp_path, options, message):
    study = create()
    with refused(UserError, message, tmp_path):
        next(study.claim(**options))


@pytest.mark.extended
def test_study_of_networks_is_not_claimed(create):
    space = {"layers": [1], "state_size": [3], "residual": [False], "state_source": ["new"]}
    gates = {f"{name}_gate": [False] for name in ("input", "forget", "output", "state")}
    networks = create({"space": space | gates}, name="networks")
    with refused(UserError, "expected one with [loop]"):
        next(networks.claim())


def test_processes_of_torchrun_do_not_claim(create, monkeypatch):
    study = create()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refused(UserError, "torchrun started 2 processes"):
        next(study.claim())
    monkeypatch.setenv("WORLD_SIZE", "1")
    run_all(study)


# ------------------------------------------------------------------ what a trial is


def test_parameters_are_those_of_the_grid_and_seeds_those_of_replicates(create):
    def list_trials(name, widths):
        settings = FOUR | {"space": {"act": ["relu", "tanh"], "width": widths, "replicates": 2}}
        found = []
        study = create(settings, name=name)
        for trial in study.claim():
            with trial:
                found.append((trial.replicate, trial.seed, tuple(sorted(trial.params.items()))))
                if len(found) == 3:
                    raise optuna.TrialPruned
                trial.finish(1)
        return found

    found = list_trials("mine", [1, 2])
    assert len(found) == len(set(found)) == 8
    configurations = {params for _, _, params in found}
    assert all([name for name, _ in params] == ["act", "width"] for params in configurations)
    # As in an earlier version, and whatever the order of the values.
    assert {(replicate, seed) for replicate, seed, _ in found} == {
        (0, 1427366890),
        (1, derive_seed(0, 1)),
    }
    assert sorted(list_trials("other", [2, 1])) == sorted(found)
    assert derive_seed(0, 0) != derive_seed(0, 1) != derive_seed(1, 0)


def test_logged_values_are_those_stored_and_only_at_log_points(create):
    study = create()
    for trial in study.claim():
        with trial:
            trial.set_user_attr("parameter_count", 12)
            trial.set_user_attr("remark", ["a", 1])
            for step in range(1, 21):
                loss = torch.tensor(1.5) if step < 10 else float("nan")
                trial.log(step, accuracy=step / 20, loss=loss, **{"val/f1": np.float32(0.5)})
                trial.log(step, lr=step)
            assert trial.user_attrs == {"parameter_count": 12, "remark": ["a", 1]}
            trial.finish(0.75)
            with pytest.raises(UserError, match=r"no call after trial\.finish"):
                trial.log(20, accuracy=1)
    stored = read(study)
    assert stored.value == 0.75
    assert stored.intermediate_values == {5: 0.25, 10: 0.5, 15: 0.75, 20: 1.0}
    assert stored.system_attrs["curve:loss"] == [[5, 1.5], [10, None], [15, None], [20, None]]
    assert stored.system_attrs["curve:val/f1"][0] == [5, 0.5]
    assert [step for step, _ in stored.system_attrs["curve:lr"]] == [5, 10, 15, 20]
    attributes = stored.user_attrs
    assert (attributes["parameter_count"], attributes["remark"]) == (12, ["a", 1])
    assert attributes["steps"] == 20
    assert attributes["metrics"] == {"val/f1": 0.5, "lr": 20}


def test_numbers_of_numpy_and_pytorch_are_stored_as_those_of_python(create):
    study = create()
    weight = torch.ones(1, requires_grad=True)
    with warnings.catch_warnings(action="error", category=UserWarning):
        for trial in study.claim(overrides=OFTEN):
            with trial:
                trial.log(np.int64(5), accuracy=(weight * 0.5).sum(), loss=np.float32(0.5))
                trial.save(np.int64(5), b"state")
                trial.log(torch.tensor(10), accuracy=weight * 2)
                trial.finish(weight * 3)
    assert read(study).intermediate_values == {5: 0.5, 10: 2.0}
    assert read(study).value == 3


def test_trial_that_logs_another_name_than_the_metric_says_that_it_is_not_pruned(create, capsys):
    for trial in create().claim(prune=True):
        with trial:
            trial.log(5, acuracy=1)
            trial.finish(1)
    assert "trial 0 logged no accuracy: it is not pruned" in capsys.readouterr().out


def test_what_is_not_finite_is_diverged(create):
    study = create()
    with refused(UserError, "without a complete trial: 1 diverged"):
        for trial in study.claim():
            with trial:
                trial.log(5, accuracy=float("inf"))
                trial.finish(float("nan"))
    assert (study.counts.diverged, study.counts.failed) == (1, 0)
    assert read(study).intermediate_values == {}


MISTAKES = [
    (lambda trial: trial.log(4, accuracy=1), "step 4 of trial 0 after step 10"),
    (lambda trial: trial.log(21, accuracy=1), "loop.steps = 20"),
    (lambda trial: trial.save(9, b""), "step 9 of trial 0 after step 10"),
    (lambda trial: trial.log(10, accuracy="high"), "log accuracy is 'high': expected a number"),
    (lambda trial: trial.finish(None), "value of trial 0 is None: expected a number"),
    (lambda trial: trial.finish(10**400), "value of trial 0 is 1000"),
    (lambda trial: trial.log("11", accuracy=1), "step '11' is no integer"),
    (lambda trial: trial.save(10.5, b""), "step 10.5 is no integer"),
    (lambda trial: trial.resume(), "before the first log"),
    (lambda trial: trial.set_user_attr("seconds", 1), "seconds is recorded by the program"),
    (lambda trial: trial.set_user_attr("parameter_count", -1), "parameter_count is -1"),
    (lambda trial: trial.set_user_attr("mine", {1, 2}), "mine is {1, 2}"),
    (lambda trial: trial.save(10, ROOT / "missing"), "missing cannot be read"),
    (lambda trial: trial.save(10, {"x": np.zeros(2)}), "it has numpy"),
    (lambda trial: trial.save(10, [lambda: 0]), "cannot read this list"),
    (lambda trial: trial.suggest_categorical("width", [1, 2]), "width = 3"),
    (lambda trial: trial.suggest_float("width", 4, 5), "width = 3"),
    (lambda trial: trial.suggest_int("depth", 4, 5), "depth"),
]
"""Calls of a trial that are refused after a log at step 10, and a part of the line."""


def test_mistakes_are_named_in_one_line_and_requeue_the_trial(create):
    study = create()
    for call, message in MISTAKES:
        with interrupted(study, UserError, message):
            for trial in study.claim():
                with trial:
                    trial.log(10, accuracy=0.5)
                    call(trial)
    run_all(study)
    assert read(study).intermediate_values == expected_curve(3)
    assert read(study).user_attrs["retries"] == {"interrupted": len(MISTAKES)}


# ------------------------------------------------------------------ ends


def test_exception_requeues_its_trial_and_leaves_the_process_as_it_was(create, capsys):
    study = create(FOUR)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interrupted(study, ZeroDivisionError):
        for trial in study.claim(wait=False):
            with trial:
                follow(trial)
                trial.finish(1 / (trial.number - 1))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert logging.getLogger("search").propagate
    assert states(study) == {"COMPLETE": 1, "WAITING": 3}
    assert read(study, 1).user_attrs["retries"] == {"interrupted": 1}
    run_all(study)
    assert states(study) == {"COMPLETE": 4}
    assert "4 of 4 finished" in capsys.readouterr().out


def test_exceptions_that_are_caught_fail_a_trial_after_three_retries(create, capsys):
    study = create(FOUR)
    attempts = Counter()
    for trial in study.claim(catch=LookupError):
        with trial:
            attempts[trial.number] += 1
            value = follow(trial)
            if trial.number == 1 or (trial.number == 2 and attempts[2] == 1):
                raise KeyError("no such batch")
            trial.finish(value)
    assert attempts == {0: 1, 1: 4, 2: 2, 3: 1}
    assert states(study) == {"COMPLETE": 3, "FAIL": 1}
    failed = read(study, 1).user_attrs
    assert (failed["failure"], failed["error"]) == ("exception", "KeyError: 'no such batch'")
    assert failed["retries"] == {"exception": 3}
    assert "trial 1 raised KeyError: 'no such batch' (test_user_loop.py" in capsys.readouterr().out


def test_block_without_an_end_requeues_its_trial_with_a_warning_once(create, capsys):
    study = create(FOUR)
    ran = []
    with interrupted(study, UserError, "twice without trial.finish(value)"):
        for trial in study.claim():
            with trial:
                ran.append(trial.number)
                if trial.number == 1:
                    continue
                trial.finish(1)
    assert "warning: trial 1 ended without trial.finish(value): requeued" in capsys.readouterr().out
    assert Counter(ran)[1] == 2
    assert states(study)["WAITING"] >= 1


def test_trial_that_no_block_runs_is_requeued(create):
    study = create()
    with interrupted(study, UserError, "expected `with trial:`"):
        for _ in study.claim():
            pass
    for _ in study.claim():
        break
    assert states(study) == {"WAITING": 1}
    trial = next(study.claim())
    with pytest.raises(TrialStoppedError, match="requeued"), trial:
        pass
    assert states(study) == {"WAITING": 1}
    for trial in study.claim():
        with trial:
            trial.finish(1)
            break
    assert states(study) == {"COMPLETE": 1}


def test_interrupt_saves_requeues_and_is_raised_again(create, capsys):
    study = create()
    with interrupted(study, KeyboardInterrupt):
        for trial in study.claim():
            with trial:
                for step in range(1, 21):
                    if step == 8:
                        signal.raise_signal(signal.SIGINT)
                    trial.log(step, accuracy=0.5)
                    trial.save(step, b"at %d" % step)
    assert "trial 0 requeued" in capsys.readouterr().out
    for trial in study.claim():
        with trial:
            assert trial.resume() == (8, b"at 8")
            trial.finish(follow(trial, start=8))
    assert read(study).intermediate_values == expected_curve(3) | {5: 0.5}


@pytest.mark.parametrize("saves", [False, True])
def test_loop_that_saves_nothing_is_stopped_at_its_next_log(create, saves):
    """One that saves now and then loses what it did since its last save."""
    study = create()
    received = []
    before = signal.signal(signal.SIGTERM, lambda *signal: received.append(signal))
    logged = []
    for trial in study.claim(overrides=OFTEN):
        with trial:
            if saves:
                trial.save(4, b"at 4")
            for step in range(5, 21):
                if step == 7:
                    signal.raise_signal(signal.SIGTERM)
                trial.log(step, accuracy=0.5)
                logged.append(step)
    assert signal.signal(signal.SIGTERM, before) is not before, "the handler was not restored"
    assert len(received) == 1, "the signal is sent again at the end"
    assert logged == ([5, 6, 7] if saves else [5, 6])
    assert states(study) == {"WAITING": 1}
    for trial in study.claim():
        with trial:
            assert trial.resume(default=(0, None)) == ((4, b"at 4") if saves else (0, None))
            trial.finish(follow(trial, start=4))


def test_second_interrupt_is_raised_at_once(create):
    study = create()
    with interrupted(study, KeyboardInterrupt):
        for trial in study.claim():
            with trial:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
                pytest.fail("the second interrupt was not raised")
    run_all(study)


def test_storage_that_does_not_answer_a_stop_leaves_the_trial_to_its_lease(create, monkeypatch):
    """It is raised where the loop finishes a trial; the signal is raised again nevertheless."""
    study = create()
    with interrupted(study, KeyboardInterrupt):
        for trial in study.claim():
            with trial:
                signal.raise_signal(signal.SIGINT)
                monkeypatch.setattr(
                    "search.worker.claims.ClaimManager.finish", _raise(ShutdownRequestedError)
                )
                trial.finish(1)


def _raise(error):
    def call(*arguments, **options):
        raise error

    return call


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_forked_process_dies_by_a_signal_but_ctrl_c_is_its_parents(number, ends):
    """As the processes of a DataLoader, which inherit the handlers."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    with ShutdownSignal() as stop:
        process = context.Process(target=_wait_for_signals, args=(ready,))
        process.start()
        ready.wait()
        os.kill(process.pid, number)
        if not ends:
            time.sleep(0.1)  # long enough to die
            assert process.is_alive()
            os.kill(process.pid, signal.SIGTERM)
        process.join()
    assert process.exitcode == -signal.SIGTERM
    assert not stop.requested


def _wait_for_signals(ready):
    ready.set()
    while True:
        time.sleep(10)


def test_time_limit_ends_the_loop_without_an_error(create, monkeypatch):
    study = create(FOUR)
    trials = 0
    later = SimpleNamespace(**vars(time) | {"monotonic": lambda: time.monotonic() + 3600})
    for trial in study.claim(until="1h"):
        with trial:
            trials += 1
            monkeypatch.setattr("search.worker.shutdown.time", later)
            while True:
                trial.log(5, accuracy=1)
                time.sleep(0.01)
    assert trials == 1
    assert states(study) == {"WAITING": 4}
    with closing(open_storage(study.storage)) as storage:
        storage.claim(study.optuna._study_id, "another/1")
    run_all(study, wait=False)
    assert states(study) == {"COMPLETE": 3, "RUNNING": 1}


# ------------------------------------------------------------------ what is saved


def test_points_behind_the_checkpoint_are_dropped_even_if_the_metric_has_none(create):
    study = create()
    with interrupted(study):
        for trial in study.claim(overrides=OFTEN):
            with trial:
                trial.log(5, accuracy=0.5, loss=1.0)
                trial.save(7, b"at 7")
                trial.log(10, loss=2.0, late=3.0)
                trial.log(15, loss=2.5)
                raise RuntimeError
    assert read(study).system_attrs["curve:loss"] == [[5, 1.0], [10, 2.0], [15, 2.5]]
    for trial in study.claim():
        with trial:
            assert trial.resume() == (7, b"at 7")
            trial.finish(1)
    stored = read(study)
    assert stored.intermediate_values == {5: 0.5}
    assert stored.system_attrs["curve:loss"] == [[5, 1.0]]
    assert stored.system_attrs["curve:late"] == []


def test_loop_that_never_resumes_begins_with_an_empty_curve(create):
    study = create()
    with interrupted(study):
        for trial in study.claim(overrides=OFTEN):
            with trial:
                follow(trial, end=14, loss=1.0)
                trial.save(14, b"")
                raise RuntimeError
    assert [*read(study).intermediate_values] == [5, 10]
    for trial in study.claim():
        with trial:
            trial.log(5, accuracy=0.25, loss=2.0)
            trial.finish(0.25)
    assert read(study).intermediate_values == {5: 0.25}
    assert read(study).system_attrs["curve:loss"] == [[5, 2.0]]


def interrupt_after_save(study, state):
    with interrupted(study):
        for trial in study.claim(overrides=OFTEN):
            with trial:
                trial.set_user_attr("epoch", 3)
                trial.save(4, state)
                raise RuntimeError


def test_file_is_saved_and_found_in_a_folder_until_the_block_ends(create, tmp_path):
    study = create()
    (tmp_path / "model.pkl").write_bytes(b"weights")
    interrupt_after_save(study, tmp_path / "model.pkl")
    (tmp_path / "model.pkl").unlink()
    for trial in study.claim():
        with trial:
            trial.set_user_attr("remark", "again")
            step, path = trial.resume()
            assert (step, path.name, path.read_bytes()) == (4, "model.pkl", b"weights")
            assert trial.user_attrs == {"epoch": 3, "remark": "again"}
            trial.finish(1)
    assert not path.exists()


def test_nested_state_dicts_of_pytorch_are_saved(create):
    study = create()
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": torch.Generator().manual_seed(3).get_state(),
        "nested": [(1, 2.5, "text", None), OrderedDict(step=torch.tensor(4))],
    }
    interrupt_after_save(study, state)
    for trial in study.claim():
        with trial:
            step, loaded = trial.resume()
            assert step == 4
            assert loaded["nested"] == state["nested"]
            assert torch.equal(loaded["generator"], state["generator"])
            other = torch.nn.Linear(2, 3)
            other.load_state_dict(loaded["model"])
            assert torch.equal(other.weight, model.weight)
            torch.optim.AdamW(other.parameters()).load_state_dict(loaded["optimizer"])
            trial.finish(1)


@pytest.mark.parametrize("keeps_digest", [False, True])
def test_damaged_checkpoint_is_moved_away_and_the_trial_restarts(
    create, tmp_path, capsys, monkeypatch, keeps_digest
):
    study = create()
    if keeps_digest:  # what PyTorch of another version cannot read
        monkeypatch.setattr("search.worker.loop_state.check", lambda state: None)
        monkeypatch.setattr("search.worker.loop_trial.check", lambda state: None)
    interrupt_after_save(study, {"x": np.zeros(2)} if keeps_digest else b"state")
    (path,) = tmp_path.rglob("*.checkpoint")
    if not keeps_digest:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    for trial in study.claim(overrides=OFTEN):
        with trial:
            assert trial.resume(default=(0, None)) == (0, None)
            trial.save(1, b"good")
            trial.finish(follow(trial, start=1))
    output = capsys.readouterr().out
    assert ".quarantined, the trial restarts from step 0" in output
    assert states(study) == {"COMPLETE": 1}


# ------------------------------------------------------------------ lost, pruned and paused


@pytest.mark.parametrize("ends", [False, True])
def test_trial_that_another_worker_has_claimed_is_left_quietly(create, capsys, ends):
    study = create()
    for trial in study.claim(wait=False, overrides={"lease.seconds": 600}):
        with trial:
            trial.log(5, accuracy=0.25)
            lose(study)
            with closing(open_storage(study.storage)) as storage:
                storage.claim(study.optuna._study_id, "another/1")
            if ends:
                trial.finish(0.25)
                pytest.fail("a lost trial is finished")
            while True:
                trial.log(10, accuracy=0.25)
                time.sleep(0.01)
    assert "dropped: claimed by another worker" in capsys.readouterr().out
    stored = read(study)
    assert stored.state is TrialState.RUNNING
    assert 10 not in stored.intermediate_values
    leases = "SELECT value_json FROM trial_system_attributes WHERE key = 'lease'"
    ((lease,),) = query(study.storage, leases)
    assert '"another/1"' in lease


class Decisions:
    """Decisions that a test makes for the pruner, by step."""

    def __init__(self, monkeypatch, **decisions):
        self.asked = []
        self.decisions = decisions
        monkeypatch.setattr("search.worker.queue.TrialQueue.decide", self.decide)

    def decide(self, claims, can_pause):
        (claim,) = claims
        self.asked.append(claim.trial.number)
        return {claim: PruneDecision(**self.decisions)} if len(self.asked) == 1 else {}


PRUNED = ONE | {"pruning": {"enabled": True}}


@pytest.mark.parametrize("word", ["log", "report", "raise"])
def test_pruned_trial_ends_at_its_log(create, monkeypatch, word):
    study = create(PRUNED)
    if word != "raise":
        attributes = {"rung": 5, "keep_probability": 0.01, "reason": "far off"}
        decisions = Decisions(monkeypatch, is_final=True, attributes=attributes)
    for trial in study.claim():
        with trial:
            for step in range(1, 21):
                if word != "report":
                    trial.log(step, accuracy=0.5)
                else:
                    trial.report(0.5, step)
                    if trial.should_prune():
                        raise optuna.TrialPruned
                if word == "raise" and step == 7:
                    raise optuna.TrialPruned
            pytest.fail("the trial was not pruned")
    if word != "raise":
        assert decisions.asked == [0]
    stored = read(study)
    assert stored.state is TrialState.PRUNED
    reason = "pruned by the loop" if word == "raise" else "far off"
    assert stored.user_attrs["reason"] == reason
    assert stored.user_attrs["steps"] == step == (7 if word == "raise" else 5)


def test_trial_is_paused_at_its_next_save_and_resumed_there(create, monkeypatch, capsys):
    study = create(PRUNED)
    Decisions(monkeypatch, is_final=False, attributes={"rung": 5, "keep_probability": 0.4})
    runs = []
    for trial in study.claim():
        with trial:
            step, state = trial.resume(default=(0, None))
            runs.append((step, state))
            while step < 20:
                step += 1
                trial.log(step, accuracy=1 - 1 / (step + 3), loss=1 / step)
                if step % 7 == 0:
                    trial.save(step, {"step": step})
            trial.finish(0.5)
    assert runs == [(0, None), (7, {"step": 7})]
    stored = read(study)
    assert stored.state is TrialState.COMPLETE
    assert stored.intermediate_values == expected_curve(3)
    assert [step for step, _ in stored.system_attrs["curve:loss"]] == [5, 10, 15, 20]
    assert "retries" not in stored.user_attrs


def test_trial_whose_checkpoint_cannot_be_written_is_not_paused(
    create, monkeypatch, tmp_path, capsys
):
    study = create(PRUNED)
    Decisions(monkeypatch, is_final=False, attributes={"rung": 5, "keep_probability": 0.4})
    for trial in study.claim(overrides=OFTEN):
        with trial:
            trial.save(1, b"first")
            (path,) = tmp_path.rglob("*.checkpoint")
            path.unlink()
            path.parent.rmdir()
            path.parent.touch()  # a file in the place of the folder
            trial.log(5, accuracy=0.5)
            trial.save(5, b"second")
            trial.finish(1)
    assert "warning: cannot write the checkpoint of trial 0" in capsys.readouterr().out
    assert states(study) == {"COMPLETE": 1}


def test_loop_that_never_saves_is_never_paused_and_told_once(create, monkeypatch, capsys):
    settings = FOUR | {"pruning": {"enabled": True}}
    study = create(settings)
    pause = PruneDecision(is_final=False, attributes={"rung": 5})
    decide = lambda queue, claims, can_pause: dict.fromkeys(claims, pause)  # noqa: E731
    monkeypatch.setattr("search.worker.queue.TrialQueue.decide", decide)
    run_all(study)
    assert states(study) == {"COMPLETE": 4}
    assert capsys.readouterr().out.count("the loop does not call trial.save") == 1


@pytest.mark.extended
def test_search_that_prunes_keeps_the_best_and_every_curve(create):
    """Trials are paused, resumed and pruned by the pruner itself."""
    space = {"width": [*range(1, 9)], "rate": [0.1, 0.2, 0.3, 0.4, 0.5]}
    study = create({"loop": LOOP | {"steps": 100}, "space": space})

    def value_at(params, step):
        return params["width"] / 8 - params["rate"] - 1 / (step + 1)

    started = Counter()
    for trial in study.claim(prune=True):
        with trial:
            step, state = trial.resume(default=(0, {"total": 0.0}))
            started[trial.number] += 1
            while step < 100:
                step += 1
                state["total"] += step
                trial.log(step, accuracy=value_at(trial.params, step), total=state["total"])
                trial.save(step, state)
            trial.finish(value_at(trial.params, 100))
    counts = study.counts
    assert counts.pruned > 10
    assert counts.pruned + counts.complete == 40
    assert study.best.params == {"width": 8, "rate": 0.1}
    assert max(started.values()) > 1, "no trial was resumed"
    for trial in study.optuna.trials:
        curve = trial.intermediate_values
        assert curve == {step: value_at(trial.params, step) for step in curve}
        assert [*curve] == [*range(5, 5 * len(curve) + 1, 5)]
        totals = [[step, step * (step + 1) / 2] for step in curve]
        assert trial.system_attrs["curve:total"] == totals


# ------------------------------------------------------------------ Optuna's objectives


def objective(trial):
    width = trial.suggest_int("width", 1, 4)
    act = trial.suggest_categorical("act", ["relu", "tanh"])
    rate = trial.suggest_float("rate", 0.1, 0.9, log=True)
    trial.set_user_attr("parameter_count", 10 * width)
    for step in range(20):
        loss = width + len(act) * rate / (step + 1)
        trial.report(loss, step)
        if trial.should_prune():
            raise optuna.TrialPruned
        if step == 9 and width == 2 and rate > 0.5:
            raise optuna.TrialPruned
    assert trial.number >= 0
    return loss


def test_objective_of_optuna_runs_unchanged(create):
    grid = {"width": [1, 2], "act": ["relu", "tanh"], "rate": [0.25, 0.75]}
    theirs = optuna.create_study(sampler=optuna.samplers.GridSampler(grid))
    theirs.optimize(objective)
    study = create({"loop": {"metric": "loss", "steps": 20, "log_every": 1}, "space": grid})
    for trial in study.claim():
        with trial:
            trial.finish(objective(trial))

    def summarize(trials):
        return sorted(
            (
                [*sorted(trial.params.items())],
                trial.state.name,
                trial.value if trial.state is TrialState.COMPLETE else None,
                trial.intermediate_values,
                trial.user_attrs["parameter_count"],
            )
            for trial in trials
        )

    assert summarize(study.optuna.trials) == summarize(theirs.trials)


# ------------------------------------------------------------------ processes


SCRIPT = """
import os, sys, time
import rnn_search

study = rnn_search.create_study("ablation.toml", storage=sys.argv[1], load_if_exists=True)
for trial in study.claim(overrides={"checkpoint.seconds": 1e-9}):
    with trial:
        step, state = trial.resume(default=(0, b""))
        while step < 20:
            step += 1
            trial.log(step, accuracy=1 - 1 / (step + trial.params["width"]), loss=1 / step)
            if "hang" in sys.argv and step == 13:
                print("at step 13", flush=True)
                while not os.path.exists("go"):
                    time.sleep(0.01)
                    trial.log(step)
            state += b"%d " % step
            if "hang" not in sys.argv or step <= 8:
                trial.save(step, state)
        print("ran", trial.number, state.decode(), flush=True)
        trial.finish(1 - 1 / (step + trial.params["width"]))
        if "one" in sys.argv:
            break
print("PyTorch:", "torch" in sys.modules)
"""

STUDY_FILE = """
[loop]
metric = "accuracy"
direction = "maximize"
steps = 20
log_every = 5
[space]
width = [1, 2]
act = ["relu", "tanh"]
"""


RETRIES = "SELECT value_json FROM trial_user_attributes WHERE key = 'retries'"


def finish(*commands):
    """Wait until commands have ended with 0; return what they printed."""
    for command in commands:
        assert command.wait() == 0, command.output
    return "".join(command.output for command in commands)


@pytest.fixture
def script(tmp_path, runner, url):
    """Function that starts the script of a user in a folder with its study file."""
    (tmp_path / "ablation.toml").write_text(STUDY_FILE)
    (tmp_path / "train.py").write_text(SCRIPT)
    return lambda *words: runner.start("train.py", url, *words, cwd=tmp_path)


WIDTHS = """
    SELECT number, param_value FROM trials t JOIN trial_params p ON p.trial_id = t.trial_id
    WHERE param_name = 'width' ORDER BY number
"""
VALUES = """
    SELECT number, value FROM trials t JOIN trial_values v ON v.trial_id = t.trial_id
    ORDER BY number
"""


def require_undisturbed(url):
    """Require that each trial is complete once, with values and curves of the loop."""
    widths = query(url, WIDTHS)
    assert query(url, FINISHED) == [(number, "COMPLETE", 1) for number in range(4)]
    curves = {}
    for number, step, value in query(url, CURVES):
        curves.setdefault(number, {})[step] = value
    assert curves == {number: expected_curve(1 + int(place)) for number, place in widths}
    assert query(url, VALUES) == [(number, curves[number][20]) for number in range(4)]
    losses = [[step, 1 / step] for step in (5, 10, 15, 20)]
    assert [(n, json.loads(curve)) for n, _, curve in query(url, METRICS)] == [
        (number, losses) for number in range(4)
    ]
    assert query(url, RETRIES) in ([], [('{"lease_expired": 1}',)], [('{"interrupted": 1}',)])


def test_processes_of_a_script_share_its_trials(script, url):
    commands = [script(), script()]
    output = finish(*commands)
    assert sorted(re.findall(r"^ran (\d+)", output, re.MULTILINE)) == ["0", "1", "2", "3"]
    require_undisturbed(url)


def test_script_killed_between_log_and_save_resumes_from_its_last_save(script, url, tmp_path):
    command = script("hang")
    wait_until_running([command], lambda: "at step 13" in command.output)
    number = query(url, "SELECT number FROM trials WHERE state = 'RUNNING'")[0][0]
    wait_until_running([command], lambda: (number, 10) in [row[:2] for row in query(url, CURVES)])
    command.send(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    lose(rnn_search.load("ablation", storage=url))
    output = finish(script())
    assert f"trial {number} resumes from step 8" in output
    assert f"ran {number} {' '.join(map(str, range(1, 21)))}" in output
    require_undisturbed(url)


def test_terminated_script_requeues_its_trial_and_dies_by_the_signal(script, url):
    command = script("hang")
    wait_until_running([command], lambda: "at step 13" in command.output)
    command.send(signal.SIGTERM)
    assert command.wait() == -signal.SIGTERM
    assert "requeued" in command.output
    assert "resumes from step 8" in finish(script())
    require_undisturbed(url)


def test_loop_without_pytorch_does_not_import_it(script, tmp_path):
    process = subprocess.run(
        [sys.executable, "train.py", f"sqlite:///{tmp_path}/studies.db"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.splitlines()[-1] == "PyTorch: False"
    assert process.stderr == ""
    require_undisturbed(f"sqlite:///{tmp_path}/studies.db")


def test_two_versions_of_a_script_in_one_study_are_noticed(script, tmp_path):
    assert "training code" not in finish(script("one"))
    assert "training code" not in finish(script("one"))
    (tmp_path / "train.py").write_text(SCRIPT + "# changed\n")
    output = finish(script())
    assert "warning: study 'ablation' was created or trained with training code" in output


FUNCTION = """
from pathlib import Path
from beside import accuracy_at

def train(trial):
    mark = Path(f"raised-{trial.number}")
    step, _ = trial.resume(default=(0, None))
    for step in range(step + 1, 21):
        trial.log(step, accuracy=accuracy_at(step, trial.params["width"]), loss=1 / step)
        if step == 10 and not mark.exists():
            mark.touch()
            raise {"relu": ValueError, "tanh": SystemExit}[trial.params["act"]]("once")
    return accuracy_at(step, trial.params["width"])
"""


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.extended)])
def test_function_of_a_file_is_run_by_workers(runner, tmp_path, sqlite_url, workers):
    """From another folder; each trial raises an exception once."""
    (tmp_path / "code").mkdir()
    function = STUDY_FILE.replace("steps = 20", 'steps = 20\nfunction = "train.py:train"')
    (tmp_path / "code" / "ablation.toml").write_text(function)
    (tmp_path / "code" / "train.py").write_text(FUNCTION)
    (tmp_path / "code" / "beside.py").write_text(
        "def accuracy_at(step, width):\n    return 1 - 1 / (step + width)\n"
    )
    arguments = ("run", "code/ablation.toml", "--storage", sqlite_url, "--workers", workers)
    done = runner.run(*arguments, cwd=tmp_path, report=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.count("raised ValueError: once (train.py, line 12)") == 2
    assert done.stdout.count("UserError: the function called sys.exit('once')") == 2
    assert query(sqlite_url, RETRIES) == [('{"exception": 1}',)] * 4
    assert query(sqlite_url, FINISHED) == [(number, "COMPLETE", 1) for number in range(4)]


# ------------------------------------------------------------------ commands


def test_study_is_extended_and_its_failed_trials_are_run_again(create):
    study = create(FOUR)
    for trial in study.claim(catch=ValueError):
        with trial:
            trial.log(5, accuracy=float(trial.params["act"] == "relu"))
            if trial.params["act"] == "tanh":
                trial.finish(float("nan"))
            else:
                trial.finish(1)
    assert study.counts.diverged == 2
    wider = FOUR | {"space": {"width": [1, 2, 3], "act": ["relu", "tanh"]}}
    create(wider, extend=True)
    assert study.counts.waiting == 2
    assert rnn_search.retry_trials("mine", diverged=True, storage=study.storage)
    run_all(study)
    assert states(study) == {"COMPLETE": 6}
    assert read(study, 2).intermediate_values == expected_curve(read(study, 2).params["width"])


def test_best_configurations_are_refined_with_replicates_and_the_study_moves(create, tmp_path):
    study = create(FOUR)
    run_all(study)
    refinement = {"source": "mine", "top": 2, "replicates": 2, "margin": 0.1}
    refined = create({"refinement": refinement}, name="refined")
    seen = []
    for trial in refined.claim():
        with trial:
            seen.append((trial.replicate, trial.seed, trial.params["width"]))
            trial.finish(follow(trial))
    assert sorted(seen) == [(replicate, derive_seed(0, replicate), 2) for replicate in (1, 1, 2, 2)]
    rnn_search.rename_study("refined", "best", storage=study.storage)
    assert states(rnn_search.load("best", storage=study.storage)) == {"COMPLETE": 4}
    rnn_search.delete_study("best", storage=study.storage)
    assert [study.name for study in rnn_search.list_studies(study.storage)] == ["mine"]
