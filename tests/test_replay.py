"""``python -m benchmarks.replay_pruning`` on curves that ``python -m reports --curves`` wrote."""

import gzip
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, study_attributes
from hooks import HANG_TIMEOUT
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from studies.attributes import OBJECTIVE_NAMES
from studies.config import StudyConfig
from studies.space import GATED_PARAMS
from studies.storage.create_study import PlannedTrial, create_study
from studies.storage.open import load_study, open_storage

COMMAND = ("-m", "benchmarks.replay_pruning")


def create_grid(url):
    """Store a study of 48 grid trials, one of them waiting; losses depend on the switches."""
    config = StudyConfig.model_validate(
        {"space": {"layers": [1], "state_size": [8], "residual": [True]}}
    )
    grid = list(config.grid.combinations())
    storage = open_storage(url)
    attributes = study_attributes(config)
    values = {name: tuple(config.grid.values(name)) for name in GATED_PARAMS}
    distributions = {name: CategoricalDistribution(choices) for name, choices in values.items()}
    planned = [PlannedTrial(params) for params in grid]
    create_study(storage, "grid", OBJECTIVE_NAMES["training"], attributes, distributions, planned)
    study_id, rng = load_study(storage, "grid")._study_id, np.random.default_rng(0)
    for params in grid[:-1]:
        end = 2 - 0.1 * sum(params[name] is True for name in GATED_PARAMS) + rng.normal(0, 0.01)
        curve = {step: end + 2 * np.exp(-step / 200) for step in range(50, 1001, 50)}
        trial_id = storage.claim(study_id, "me")
        storage.finish(trial_id, "me", TrialState.COMPLETE, curve[1000], {"seconds": 1.0}, curve)
    storage.close()


@pytest.fixture
def curves(sqlite_url, tmp_path, invoke):
    """File of recorded curves of a grid."""
    create_grid(sqlite_url)
    file = tmp_path / "curves.csv.gz"
    done = invoke("-m", "reports", "grid", "--storage", sqlite_url, "--curves", str(file))
    assert (done.returncode, done.stdout) == (0, f"{file}\n")
    return file


def test_recorded_curves_are_written(curves):
    rows = pd.read_csv(curves)
    assert len(rows) == 47
    assert set(rows["input_gate"]) == {0, 1}
    assert list(rows.columns[8:11]) == ["seconds", "min_loss", "loss_50"]
    assert (rows["min_loss"] == rows["loss_1000"]).all()


@pytest.mark.extended
def test_recorded_curves_are_replayed(curves, tmp_path):
    # A separate interpreter, on one core, so that it has one worker process.
    command = [sys.executable, *COMMAND, str(curves), "--orders", "2", "--concurrent", "3"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]),
        capture_output=True,
        text=True,
        timeout=HANG_TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    head, names, *lines = done.stdout.splitlines()
    assert head == "curves.csv.gz: 47 trials, 1,000 steps, top 4, 2 orders"
    assert names.split()[:1] == ["pruner"]
    found = {line[2:20].strip(): line[20:].split() for line in lines}
    assert list(found) == [
        "ours", "ours, in Optuna", "best after a look",
        "SuccessiveHalving", "Percentile(25)", "Median", "Hyperband", "conformal"
    ]  # fmt: skip
    concurrent, cost, recall, worst, _, winner, complete, starts = found["ours"]
    assert (concurrent, winner) == ("3", "2/2")
    assert 0.1 < float(cost) < 0.7
    assert float(worst) <= float(recall) <= 1
    assert float(complete) < 1 < float(starts)


def test_other_files_are_refused_in_one_line(tmp_path, invoke):
    empty, gaps, other = (tmp_path / name for name in ("empty.csv", "gaps.csv.gz", "other.csv"))
    empty.write_text("")
    gaps.write_bytes(gzip.compress(b"a,min_loss,loss_50,loss_100\n1,2.0,3.0,\n2,2.0,3.0,2.0\n"))
    other.write_text("a,b\n1,2\n")
    for file in (empty, gaps, other):
        done = invoke(*COMMAND, str(file))
        assert done.returncode == 2
        assert f"cannot read {file}" in done.stderr
        assert "python -m reports STUDY --curves FILE" in done.stderr
