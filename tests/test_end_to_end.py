"""Search, refinement and report with several processes on one study."""

import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import optuna
import pytest
from helpers import ONE_TRIAL, QUICK, ROOT, TINY
from hooks import HANG_TIMEOUT, Gate, Hooks
from optuna.trial import TrialState
from process_runner import query, wait_until, wait_until_running

from studies.attributes import TrialRecord
from studies.loader import load_config_file

SMALL = (
    *ONE_TRIAL,
    "--set=keep_weights=0",
    "--set=space.state_source=['new', 'old', 'both']",
    "--set=space.residual=[false, true]",
    "--set=space.state_size=[3, 4]",
    "--set=space.layers=[1, 2]",
    "--set=space.exclude=[{state_size=3, residual=false}, {state_source='old', layers=1}]",
)
"""Fifteen tiny networks of four shapes."""


@pytest.fixture
def start(runner):
    return runner.start


@pytest.fixture
def gate(tmp_path_factory) -> Gate:
    """Holds training at the first log point."""
    return Gate(tmp_path_factory.mktemp("gate") / "gate", step=2)


def grid_combinations(overrides: tuple[str, ...]) -> list[dict]:
    settings = [word.removeprefix("--set=") for word in overrides]
    return list(load_config_file(QUICK, settings).resolve().grid.combinations())


def test_search_refine_and_report_from_two_processes(
    sqlite_url, tmp_path, text, invoke, start, gate
):
    search = start(
        *("run", QUICK, "--corpus", str(text), *SMALL, "--workers", "2"),
        hooks=Hooks(gate=gate, report=False),
        RNN_SEARCH_STORAGE=sqlite_url,
        RNN_SEARCH_ARTIFACTS=str(tmp_path / "artifacts"),
    )
    wait_until_running([search], lambda: len(gate.held) == 2)
    gate.open()
    assert search.wait() == 0, search.stderr
    lines = search.stdout.splitlines()
    assert "starting 2 worker processes" in lines
    numbers = [int(line.split()[1]) for line in lines if line.startswith("trial ")]
    assert sorted(numbers) == [*range(15)], "a line for each trial"
    assert "15 of 15 finished" in search.stdout

    refine = (
        "refine", "quick-refined", "--storage", sqlite_url, *TINY,
        "--set=refinement.top=3", "--set=refinement.variants=[{}, {state_size=5}]",
    )  # fmt: skip
    for command in [start(*refine, hooks=Hooks(report=False)) for _ in range(2)]:
        assert command.wait() == 0, command.stderr

    # Plain SQL: every combination is complete exactly once.
    expected = grid_combinations(SMALL)
    statement = (
        "SELECT number, state, count(value) FROM trials JOIN studies USING (study_id) "
        "LEFT JOIN trial_values USING (trial_id) WHERE study_name = 'quick' "
        "GROUP BY number, state ORDER BY number"
    )
    rows = query(sqlite_url, statement)
    assert rows == [(number, "COMPLETE", 1) for number in range(len(expected))]

    # Plain Optuna: parameters and recorded attributes of the trials.
    study = optuna.load_study(study_name="quick", storage=sqlite_url)
    assert sorted([t.params for t in study.trials], key=repr) == sorted(expected, key=repr)
    for trial in study.trials:
        record = TrialRecord.model_validate(trial.user_attrs)
        assert sorted(trial.intermediate_values) == [2, 4]
        assert record.training_loss == min(trial.intermediate_values.values())
        assert trial.value == record.validation_loss
    assert len({trial.user_attrs["worker"] for trial in study.trials}) == 2

    # The refinement: the best three unchanged and wider, once each, with their sources.
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

    # The report: one file with every study and its best architecture.
    page = tmp_path / "page.html"
    words = ("quick", "quick-refined", "--storage", sqlite_url, "--output", str(page))
    done = invoke("report", *words)
    assert done.returncode == 0, done.stderr
    html = page.read_text()
    assert re.findall('<p class="study-name">(.*)</p>', html) == ["quick", "quick-refined"]
    assert f"trial {best[0].number}" in html
    assert "src=" not in html.split("</style>")[0]


@pytest.fixture
def held(sqlite_url, text, start, gate):
    """Start a search; return it when every worker is held at its first log point."""

    def start_and_hold(*words, workers=1, **options):
        search = start(
            *("run", QUICK, "--storage", sqlite_url, "--corpus", str(text), *TINY),
            *("--workers", str(workers), *words),
            hooks=Hooks(gate=gate, report=False),
            **options,
        )
        wait_until_running([search], lambda: len(gate.held) == workers)
        return search

    return start_and_hold


def trial_states(url):
    return {trial.state for trial in optuna.load_study(study_name="quick", storage=url).trials}


@pytest.mark.extended
def test_closed_terminal_stops_its_worker(held, sqlite_url):
    terminal, end = pty.openpty()
    closing = threading.Event()

    def read_output():
        """Read the output as a terminal does; otherwise the search would block."""
        while not closing.is_set():
            if select.select([terminal], [], [], 0.05)[0]:
                os.read(terminal, 4096)

    window = threading.Thread(target=read_output)
    window.start()
    try:
        search = held(stdout=os.ttyname(end), stderr=os.ttyname(end))
    finally:
        closing.set()
        window.join()
        os.close(end)
        os.close(terminal)
    search.send(signal.SIGHUP)  # as the session leader would
    assert search.wait() == 129
    assert trial_states(sqlite_url) == {TrialState.WAITING}


# ------------------------------------------------------------------ interpreters, as a shell starts


@pytest.fixture
def execute(tmp_path):
    """Run a program in an interpreter of its own, not a fork, in an empty folder."""
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RNN_SEARCH_")}

    def execute(*words, stdout=subprocess.PIPE):
        return subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=HANG_TIMEOUT,
        )

    yield execute
    assert list(folder.iterdir()) == []


def test_installed_command_refuses_invalid_input_in_one_line(execute):
    done = execute(Path(sys.executable).with_name("rnn-search"), "list")
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.splitlines()
    assert line.startswith(b"error: storage sqlite:///studies/studies.db does not exist: run a")


def test_closed_pipe_ends_a_command_silently(execute, sqlite_url):
    """As in ``rnn-search list | true``."""
    optuna.create_study(study_name="listed", storage=sqlite_url)
    reader, writer = os.pipe()
    os.close(reader)
    done = execute("-m", "rnn_search", "list", "--storage", sqlite_url, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.extended
def test_log_on_a_full_disk_does_not_end_a_search(start, sqlite_url, text):
    words = ("run", QUICK, "--storage", sqlite_url, "--corpus", str(text), *SMALL)
    start(*words, stdout="/dev/full", hooks=Hooks(report=False)).wait()
    trials = optuna.load_study(study_name="quick", storage=sqlite_url).trials
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert not any("retries" in trial.user_attrs for trial in trials)


@pytest.mark.extended
def test_signal_ignored_by_nohup_stays_ignored(held):
    search = held(ignored=[signal.SIGHUP])  # as nohup does
    search.send(signal.SIGHUP)
    search.send(signal.SIGTERM)
    assert search.wait() == 143, "the first signal received decides the exit code"


@pytest.mark.extended
def test_workers_stop_when_their_parent_is_killed(held, sqlite_url, tmp_path):
    search = held("--lockstep", "2", workers=2)
    search.send(signal.SIGKILL)
    search.wait()
    wait_until(lambda: trial_states(sqlite_url) == {TrialState.WAITING})
    assert len(list(tmp_path.glob("studies.db.checkpoints/*/*"))) == 4


@pytest.mark.extended
@pytest.mark.parametrize("umask", [0o077, 0o002], ids=oct)
def test_umask_decides_who_may_read_and_write_files(tmp_path, text, start, gate, umask):
    """Of a search in the default folders, stopped with a checkpoint, resumed and reported."""
    folder = tmp_path / "project"
    folder.mkdir()
    search = ("run", QUICK, "--corpus", str(text), *ONE_TRIAL)

    def check(*expected):
        paths = [*folder.rglob("*")]
        for name in expected:
            assert any(name in str(path) for path in paths), f"no {name} in {paths}"
        for path in paths:
            whole = 0o777 if path.is_dir() else 0o666
            assert oct(stat.S_IMODE(path.lstat().st_mode)) == oct(whole & ~umask), path

    stopped = start(*search, hooks=Hooks(gate=gate), cwd=folder, umask=umask)
    wait_until_running([stopped], lambda: gate.held)
    check("studies/studies.db", "studies.db-wal", "studies.db-shm")
    stopped.send(signal.SIGTERM)
    assert stopped.wait() == 143
    check(".checkpoint")
    gate.open()
    for command in (
        search,
        ("report", "quick", "--csv", "trials.csv"),
        ("export", "quick", "network"),
    ):
        done = start(*command, cwd=folder, umask=umask)
        assert done.wait() == 0, done.output
    check(".db.weights", ".safetensors", "quick.html", "trials.csv", "network.py")
