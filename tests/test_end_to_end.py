"""The tool's main job: search, refine, report; from several processes on one study."""

import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import optuna
import pytest
from helpers import TINY
from hooks import Gate, Hooks
from optuna.trial import TrialState
from process_runner import wait_until, wait_until_running

from studies.attributes import TrialRecord
from studies.loader import load_config_file

SMALL = (
    *TINY,
    "--set=space.state_size=[3, 4]",
    "--set=space.exclude=[{state_size=3, residual=false}, {state_source='old', layers=1}]",
    "--set=space.layers=[1, 2]",
    "--set=space.input_gate=[false]",
    "--set=space.forget_gate=[false]",
    "--set=space.output_gate=[false]",
)
"""Thirty combinations of four shapes, of some milliseconds each."""


@pytest.fixture
def start(runner):
    """Start a command of the project."""
    return runner.start


@pytest.fixture
def gate(tmp_path_factory) -> Gate:
    """Holds trainings at their first log point."""
    return Gate(tmp_path_factory.mktemp("gate") / "gate", step=2)


def points_of(overrides: tuple[str, ...]) -> list[dict]:
    settings = [word.removeprefix("--set=") for word in overrides]
    return list(load_config_file("quick", settings).resolve().space.combinations())


def test_search_refine_and_report_from_two_processes(sqlite_url, tmp_path, text, run, start, gate):
    """Two terminals on one new file; then refine from two; then a report of both."""
    common = ("--storage", sqlite_url, "--corpus", str(text))
    search = ("run_search.py", "quick", *common, *SMALL)
    terminals = [start(*search, hooks=Hooks(gate=gate)) for _ in range(2)]
    wait_until_running(terminals, lambda: len(gate.held) == 2)
    gate.open()
    for terminal in terminals:
        assert terminal.wait() == 0, terminal.stderr
        assert "finished" in terminal.stdout
        assert "report: " in terminal.stdout

    refine = (
        "refine.py", "quick-refined", "--storage", sqlite_url, *TINY,
        "--set=refinement.top=3", "--set=refinement.variants=[{}, {state_size=5}]",
    )  # fmt: skip
    for command in (start(*refine), start(*refine)):
        assert command.wait() == 0, command.stderr

    # By plain SQL: each valid point complete once, and no other point.
    expected = points_of(SMALL)
    with sqlite3.connect(tmp_path / "studies.db") as database:
        rows = database.execute(
            "SELECT study_name, number, state, COUNT(value) FROM trials JOIN studies "
            "USING (study_id) LEFT JOIN trial_values USING (trial_id) "
            "GROUP BY study_name, number, state ORDER BY study_name, number"
        ).fetchall()
    database.close()
    first = [row for row in rows if row[0] == "quick"]
    assert first == [("quick", number, "COMPLETE", 1) for number in range(len(expected))]

    # By plain Optuna: the points of the definition, and what each recorded.
    study = optuna.load_study(study_name="quick", storage=sqlite_url)
    ran = [trial.params for trial in study.trials]
    assert sorted(ran, key=repr) == sorted(expected, key=repr)
    assert not any(p["state_size"] == 3 and not p["residual"] for p in ran)
    assert study.metric_names == ["validation loss"]
    for trial in study.trials:
        record = TrialRecord.model_validate(trial.user_attrs)
        assert sorted(trial.intermediate_values) == [2, 4]
        assert record.training_loss == min(trial.intermediate_values.values())
        assert trial.value == record.validation_loss
        assert record.validation_bits_per_byte > 0
        assert record.precision == study.user_attrs["config"]["precision"]
        assert record.device == "cpu"
    assert len({trial.user_attrs["worker"] for trial in study.trials}) == 2

    # The refinement: the best three as they were and wider, once each, with their lineage.
    best = sorted(study.trials, key=lambda trial: (trial.value, trial.number))[:3]
    refined = optuna.load_study(study_name="quick-refined", storage=sqlite_url)
    wanted = {
        repr(sorted((trial.params | variant).items()))
        for trial in best
        for variant in ({}, {"state_size": 5})
    }
    assert {repr(sorted(trial.params.items())) for trial in refined.trials} == wanted
    assert len(refined.trials) == len(wanted)
    for trial in refined.trials:
        assert trial.state is TrialState.COMPLETE
        assert set(trial.user_attrs["source_trials"]) <= {trial.number for trial in best}
    assert refined.user_attrs["corpus"]["sha256"] == study.user_attrs["corpus"]["sha256"]

    # The report: one file that names every study and its best architecture.
    page = tmp_path / "page.html"
    done = run(
        "-m", "reports", "quick", "quick-refined", "--storage", sqlite_url, "--output", str(page)
    )
    assert done.returncode == 0, done.stderr
    html = page.read_text()
    assert re.findall("<h1[^>]*>(.*)</h1>", html) == ["quick", "quick-refined"]
    assert f"trial {best[0].number}" in html
    assert "src=" not in html.split("</style>")[0]

    # Vanilla tools: Optuna's own command line and figures.
    command = [Path(sys.executable).with_name("optuna"), "trials", "--study-name", "quick"]
    listed = subprocess.run(
        [*command, "--storage", sqlite_url, "--format", "json"], capture_output=True, text=True
    )
    assert len(json.loads(listed.stdout)) == len(expected), listed.stderr
    assert optuna.visualization.plot_param_importances(study).data
    assert optuna.visualization.plot_intermediate_values(study).data


def test_postgresql_and_workers_started_together(postgresql_url, tmp_path, text, start, gate):
    search = start(
        "run_search.py",
        "quick",
        "--corpus",
        str(text),
        *SMALL,
        "--workers",
        "2",
        hooks=Hooks(gate=gate, report=False),
        RNN_SEARCH_STORAGE=postgresql_url,
        RNN_SEARCH_ARTIFACTS=str(tmp_path / "artifacts"),
    )
    wait_until_running([search], lambda: len(gate.held) == 2)
    gate.open()
    assert search.wait() == 0, search.stderr
    lines = search.stdout.splitlines()
    assert "starting 2 worker processes" in lines
    assert not [line for line in lines if line.startswith("trial ")], "a line for each trial"
    assert "30 of 30 finished" in search.stdout
    study = optuna.load_study(study_name="quick", storage=postgresql_url)
    ran = [trial.params for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert sorted(ran, key=repr) == sorted(points_of(SMALL), key=repr)
    assert len({trial.user_attrs["worker"] for trial in study.trials}) == 2


@pytest.fixture
def held(sqlite_url, text, start, gate):
    """Start a search, and return it when all its workers hold a trial at its first log point."""

    def start_and_hold(*words, workers=1, **options):
        search = start(
            *("run_search.py", "quick", "--storage", sqlite_url, "--corpus", str(text), *TINY),
            *("--workers", str(workers), *words),
            hooks=Hooks(gate=gate, report=False),
            **options,
        )
        wait_until_running([search], lambda: len(gate.held) == workers)
        return search

    return start_and_hold


def states(url):
    return {trial.state for trial in optuna.load_study(study_name="quick", storage=url).trials}


@pytest.mark.parametrize(
    ("number", "code", "lockstep"),
    [
        (signal.SIGINT, 130, 1),
        (signal.SIGTERM, 143, 3),
        (signal.SIGHUP, 129, 1),
        (signal.SIGUSR1, 138, 3),
    ],
)
def test_a_stopped_worker_requeues_its_trials(held, sqlite_url, tmp_path, number, code, lockstep):
    search = held("--lockstep", str(lockstep))
    search.send(number)
    assert search.wait() == code
    assert "Traceback" not in search.stderr
    study = optuna.load_study(study_name="quick", storage=sqlite_url)
    assert states(sqlite_url) == {TrialState.WAITING}
    assert "given back" in search.stdout
    requeued = [trial for trial in study.trials if trial.intermediate_values]
    assert len(requeued) == lockstep
    assert all(trial.user_attrs["retries"] == {"interrupted": 1} for trial in requeued)
    kept = {path.name for path in tmp_path.glob("studies.db.checkpoints/*/*")}
    assert kept == {f"trial-{trial.number}.checkpoint" for trial in requeued}


def test_stopping_the_process_that_started_the_workers_stops_them_all(held, sqlite_url):
    search = held("--lockstep", "2", workers=2)
    search.send(signal.SIGINT)
    assert search.wait() == 130
    assert "stopped; progress is saved" in search.stdout
    assert states(sqlite_url) == {TrialState.WAITING}


@pytest.mark.extended
def test_a_second_interrupt_stops_the_workers_too(held, sqlite_url):
    """Sent to the process that started them alone, and at once."""
    search = held("--lockstep", "2", workers=2)
    search.send(signal.SIGINT)
    search.send(signal.SIGINT)
    assert search.wait() == 130
    wait_until(lambda: states(sqlite_url) == {TrialState.WAITING})


def test_a_terminal_that_is_closed_stops_its_worker(held, sqlite_url):
    terminal, end = pty.openpty()
    closing = threading.Event()

    def show():
        """Take what is written, as a terminal does: else the search would wait for it."""
        while not closing.is_set():
            if select.select([terminal], [], [], 0.05)[0]:
                os.read(terminal, 4096)

    window = threading.Thread(target=show)
    window.start()
    try:
        search = held(stdout=os.ttyname(end), stderr=os.ttyname(end))
    finally:
        closing.set()
        window.join()
        os.close(end)
        os.close(terminal)
    search.send(signal.SIGHUP)  # as its session would be
    assert search.wait() == 129
    assert states(sqlite_url) == {TrialState.WAITING}


def test_a_log_on_a_full_disk_does_not_end_a_search(start, sqlite_url, text):
    words = ("run_search.py", "quick", "--storage", sqlite_url, "--corpus", str(text), *SMALL)
    start(*words, stdout="/dev/full", hooks=Hooks(report=False)).wait()
    trials = optuna.load_study(study_name="quick", storage=sqlite_url).trials
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert not any("retries" in trial.user_attrs for trial in trials)


def test_a_signal_that_nohup_ignores_stays_ignored(held):
    search = held(ignored=[signal.SIGHUP])  # which is all that nohup does
    search.send(signal.SIGHUP)
    search.send(signal.SIGTERM)
    assert search.wait() == 143, "the first signal that it hears decides the exit code"


@pytest.mark.extended
def test_workers_stop_when_the_process_that_started_them_is_killed(held, sqlite_url, tmp_path):
    search = held("--lockstep", "2", workers=2)
    search.send(signal.SIGKILL)
    search.wait()
    wait_until(lambda: states(sqlite_url) == {TrialState.WAITING})
    assert len(list(tmp_path.glob("studies.db.checkpoints/*/*"))) == 4


def test_status_of_a_running_study(held, sqlite_url, run):
    search = held("--lockstep", "5")
    done = run("run_search.py", "quick", "--storage", sqlite_url, "--status", "--json")
    status = json.loads(done.stdout)
    assert (status["planned"], status["running"], status["waiting"]) == (96, 5, 91)
    assert status["best"] is None
    assert status["seconds_left"] is None
    search.send(signal.SIGTERM)
    assert search.wait() == 143


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_status_changes_nothing(sqlite_url, tmp_path, text, run):
    common = ("run_search.py", "quick", "--storage", sqlite_url)
    assert run(*common, "--status").returncode == 2
    assert list(tmp_path.iterdir()) == [text]
    assert run(*common, "--corpus", str(text), *SMALL, report=False).returncode == 0
    before = contents(tmp_path)
    done = run(*common, "--status")
    assert done.returncode == 0
    count = len(points_of(SMALL))
    assert f"planned   {count}\ncomplete  {count}\nrunning   0\n" in done.stdout
    assert "time left none" in done.stdout
    assert contents(tmp_path) == before


def test_a_worker_that_need_not_wait_leaves_the_last_trials_to_others(held, sqlite_url, text, run):
    one = (
        "--set=space.state_source=['new']",
        "--set=space.input_gate=[false]",
        "--set=space.forget_gate=[false]",
        "--set=space.output_gate=[false]",
        "--set=space.state_gate=[false]",
        "--set=space.residual=[true]",
    )
    search = held(*one)
    common = ("--storage", sqlite_url, "--corpus", str(text))
    done = run("run_search.py", "quick", *common, *TINY, *one, "--no-wait")
    assert done.returncode == 0, done.stderr
    assert "0 of 1 finished, 1 running" in done.stdout
    search.send(signal.SIGTERM)
    assert search.wait() == 143


def test_a_killed_worker_harms_nothing_that_is_recorded(held, sqlite_url):
    search = held()
    search.send(signal.SIGKILL)
    search.wait()
    with sqlite3.connect(Path(sqlite_url.removeprefix("sqlite:///"))) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
