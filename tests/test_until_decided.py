"""Replicates with planned looks, from Python and the command line, with several processes."""

import os
import re
import shutil
import signal
import tomllib
from contextlib import closing
from itertools import count
from types import SimpleNamespace

import pytest
from helpers import TEXT
from hooks import Gate, Hooks
from invocation import require_refused
from process_runner import wait_until, wait_until_running

import rnn_search
import search.launch.jobs
from reports.stats.looks import spend_error
from rnn_search import findings
from studies.errors import ConfigError, ConfigMismatchError
from studies.loader import read_study_record
from studies.storage.open import load_study, read_storage

SOURCE = {
    "objective": "validation",
    "space": {
        "layers": [1],
        "state_size": [3, 4],
        "input_gate": [False],
        "forget_gate": [False],
        "state_gate": [False],
        "residual": [True],
        "state_source": ["new"],
    },
    "training": {"steps": 4, "batch_size": 4, "sequence_length": 8, "log_every": 2},
    "evaluation": {"windows": 2, "window_length": 8},
    "keep_weights": 0,
}
"""Four tiny networks."""

REPLICATES = """
[refinement]
source = "source"
top = 3
margin = 1e-9
looks = [2, 3, 5]
"""
"""Replicates that are not decided before the last look."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """File with the complete study 'source'."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "text").write_bytes(TEXT)
    place = {"storage": f"sqlite:///{folder}/studies.db", "corpus": folder / "text"}
    rnn_search.run(SOURCE, name="source", **place)
    return folder / "studies.db"


@pytest.fixture
def place(source, sqlite_url, tmp_path):
    """Storage with a copy of it."""
    shutil.copy(source, tmp_path)
    return {"storage": sqlite_url}


@pytest.fixture
def command(place, tmp_path):
    file = tmp_path / "copies.toml"
    file.write_text(REPLICATES)
    return ("refine", str(file), "--until-decided", "--storage", place["storage"])


def read_record(url, name="copies"):
    with closing(read_storage(url)) as storage:
        return read_study_record(load_study(storage, name))


def check_finished(url):
    """Check that each run of each look was trained exactly once, and each look stored once."""
    looks = read_record(url).looks
    assert [look.runs for look in looks] == [2, 3, 5]
    assert [look.level for look in looks] == pytest.approx(spend_error([2, 3, 5]))
    table = rnn_search.load("copies", storage=url).results
    assert set(table["state"]) == {"COMPLETE"}
    assert not table.duplicated(["state_size", "output_gate", "replicate"]).any()
    counts = table.groupby(["state_size", "output_gate"])["replicate"].agg(["min", "max", "size"])
    assert len(counts) == 3
    assert (counts["min"] == 1).all()
    assert (counts["max"] == counts["size"]).all()
    assert set(counts["size"]) <= {2, 3, 5}
    assert counts["size"].max() == 5


def test_runs_are_added_until_the_last_look(place, capsys, monkeypatch):
    settings = tomllib.loads(REPLICATES)
    with monkeypatch.context() as patch:  # stopped after the first look, which has added runs
        patch.setattr("rnn_search.api.time", SimpleNamespace(monotonic=count(0, 3600).__next__))
        stopped = {"until": 3600, "report": True}
        rnn_search.run(settings, name="copies", until_decided=True, **stopped, **place)
    study = rnn_search.run(settings, name="copies", until_decided=True, **place)
    check_finished(place["storage"])
    printed = capsys.readouterr().out
    assert "report: " not in printed, "it was not finished"
    assert "looks at 2, 3, 5 runs, at error rates of 2.62%, " in printed
    assert "look at 2 runs, at an error rate of 2.62%: 0 worse, 0 as good, 2 undecided" in printed
    assert "3 of 3 architectures get 1 more run" in printed
    assert "measured run noise" in printed
    # Repeated, it finds what is stored and trains nothing.
    assert rnn_search.run(settings, name="copies", until_decided=True, **place) == study
    assert "look at 2 runs" not in capsys.readouterr().out
    check_finished(place["storage"])
    verdicts = study.verdicts().table
    assert set(verdicts["verdict"]) <= {"best mean", "undecided", "worse"}
    assert verdicts["runs"].max() == 5


class Cluster:
    """Launcher whose jobs have ended once they are submitted; each trains what there is."""

    ends_with_command = False
    log_folder = None

    def __init__(self, invoke, file):
        self.calls = []
        self._invoke, self._file = invoke, file

    def submit(self, name, command, count):
        self.calls.append("submit")
        words = [word for word in command.arguments[2:] if word != "--until-decided"]
        done = self._invoke("refine.py", self._file, *words)  # it takes no look itself
        assert done.returncode == 0, done.stderr
        return []

    def list_jobs(self, name, workers):
        return []

    def cancel_pending(self, name):
        self.calls.append("cancel pending jobs")
        return ""


@pytest.mark.extended
def test_one_launcher_serves_all_looks(place, command, invoke, monkeypatch):
    """It ends jobs that wait once, although a job takes a look before the command does."""
    clusters = []

    def create_cluster(options):
        if options.target.is_local:  # what a job runs
            return None
        clusters.append(Cluster(invoke, command[1]))
        return clusters[-1]

    def run_jobs(*arguments, run=search.launch.jobs.run_jobs):
        failure = run(*arguments)
        findings.take_due_look(place["storage"], "copies")
        return failure

    monkeypatch.setattr("rnn_search.api.prepare_launch", create_cluster)
    monkeypatch.setenv("RNN_SEARCH_SHARED", "/")
    monkeypatch.setattr("search.run.run_jobs", run_jobs)
    rnn_search.run(command[1], until_decided=True, launch="slurm", **place)
    check_finished(place["storage"])
    (cluster,) = clusters
    assert cluster.calls == ["submit"] * 3 + ["cancel pending jobs"]


def test_wide_margin_decides_at_the_first_look_and_one_number_of_runs_takes_none(place, capsys):
    settings = {"refinement": {"source": "source", "top": 3, "margin": 1e9, "looks": [2, 3, 5]}}
    study = rnn_search.run(settings, name="copies", until_decided=True, **place)
    assert [look.runs for look in read_record(place["storage"]).looks] == [2]
    assert study.counts.complete == 6
    assert "2 as good, 0 undecided" in capsys.readouterr().out
    settings = {"refinement": {"source": "source", "top": 3, "replicates": 2, "looks": [2, 3]}}
    study = rnn_search.run(settings, name="others", **place)
    assert study.counts.complete == 6
    assert read_record(place["storage"], "others").looks == []
    with pytest.raises(ConfigMismatchError, match="created without planned looks"):
        rnn_search.run(settings, name="others", until_decided=True, **place)


@pytest.mark.extended
def test_noise_before_the_first_look_is_that_of_the_source(sqlite_url, text, capsys):
    """A grid of 32 networks has enough high-order interactions to estimate it from."""
    switches = ("input_gate", "forget_gate", "output_gate", "state_gate", "residual")
    space = {"layers": [1], "state_size": [3], "state_source": ["new"]}
    space |= {name: [False, True] for name in switches}
    place = {"storage": sqlite_url, "corpus": text}
    rnn_search.run(SOURCE | {"space": space}, name="source", **place)
    settings = {"refinement": {"source": "source", "top": 2, "margin": 1e9, "looks": [2]}}
    rnn_search.run(settings, name="copies", until_decided=True, **place)
    assert re.search(r"from 'source' estimated run noise 0\.\d*[1-9]", capsys.readouterr().out)


@pytest.mark.extended
def test_killed_worker_process_leaves_runs_and_looks_to_the_others(
    place, command, runner, tmp_path
):
    gate = Gate(tmp_path / "gate", 2)
    words = (*command, "--set=lease.seconds=1", "--lockstep", "1")
    search = runner.start(*words, "--workers", "2", hooks=Hooks(report=False, gate=gate))
    wait_until_running([search], lambda: len(gate.held) == 2)
    os.kill(min(gate.held), signal.SIGKILL)
    wait_until(lambda: "warning" in search.stderr)  # while the other worker trains
    gate.open()
    assert search.wait() == 0, search.output
    assert search.stderr == (
        "warning: a worker was killed (Killed): the other workers continue the search; the same "
        "command in another terminal adds a worker\n"
    )
    check_finished(place["storage"])


def test_study_with_looks_keeps_its_steps_and_takes_another_question(place, command, invoke):
    words = (*command, "--set=refinement.margin=1e9")
    assert invoke(*words, report=False).returncode == 0
    require_refused(invoke(*words, "--extend", "--set=training.steps=6"), "has planned looks")
    done = invoke(*words, "--extend", '--set=question="which?"', report=False)
    assert done.returncode == 0, done.stderr
    assert read_record(place["storage"]).config.question == "which?"


def test_looks_at_a_stored_grid_are_refused_before_a_trial_is_trained(sqlite_url, text):
    study = rnn_search.run(SOURCE, name="source", storage=sqlite_url, corpus=text, until=1e-6)
    with pytest.raises(ConfigError, match=r"expected a study with \[refinement\]"):
        rnn_search.run("source", storage=sqlite_url, until_decided=True)
    assert study.counts.waiting == 4
