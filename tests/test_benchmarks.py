"""``python -m benchmarks``: names and options; pruners are compared on recorded curves."""

import importlib
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT
from hooks import HANG_TIMEOUT

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.replay_pruning import keep_best_at_first_rung
from benchmarks.simulated_curves import FAMILIES, simulate_curves
from tests.simulations.pruned_search import RecordedCurves


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_of_every_name_exists(name):
    module, _ = BENCHMARKS[name]
    assert callable(importlib.import_module(f"benchmarks.{module}").measure)


def test_benchmarks_are_listed_without_a_name(capsys):
    main([])
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1 : len(BENCHMARKS) + 1]] == [
        *BENCHMARKS
    ]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("gpu", "spede"), ["benchmark 'spede' not found: expected one of training-step, "]),
        (("scale", "--device", "cpu"), ["--device is of the benchmark gpu"]),
        (("gpu", "--device", "tpu"), ["'tpu' not found"]),
        (("gpu",), ["no GPU: PyTorch finds none", "--device cpu"]),
    ],
)
def test_bad_command_line_is_refused(monkeypatch, capsys, words, parts):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    for part in parts:
        assert part in printed.err.splitlines()[-1]


def make_curves(count):
    """Return curves that never cross: the trial with number i ends as the i-th best."""
    steps = np.arange(20, 1001, 20)
    values = 2 + np.arange(count) / count
    curves = values[:, None] + np.exp(-steps / 100)
    params = [{"number": number} for number in range(count)]
    return RecordedCurves(params, steps, curves, curves[:, -1])


def test_one_look_trains_the_best_at_the_first_rung_to_the_end():
    result = keep_best_at_first_rung(make_curves(100))
    assert (result.recall, result.complete) == (1, 0.1)
    assert result.cost == pytest.approx(0.04 + 0.1 * 0.96)
    late = simulate_curves("few late", 3)
    assert keep_best_at_first_rung(late).recall < 1


@pytest.mark.parametrize("name", FAMILIES)
def test_simulated_curves_repeat_with_their_seed(name):
    first, again, other = (simulate_curves(name, seed) for seed in (1, 1, 2))
    assert (first.curves == again.curves).all()
    assert (first.curves != other.curves).any()
    assert len(first.params) == len(first.values) >= 128


@pytest.mark.extended
def test_recorded_curves_are_replayed(tmp_path):
    recorded = simulate_curves("few late", 1)  # of which every other one is replayed
    trials = pd.DataFrame(recorded.params[::2]).assign(value=recorded.values[::2])
    losses = pd.DataFrame(recorded.curves[::2], columns=recorded.steps).rename_axis("number")
    rows = losses.reset_index().melt("number", var_name="step", value_name="loss")
    curves = tmp_path / "curves.csv.gz"
    rows.join(trials, on="number").to_csv(curves, index=False)
    # A separate interpreter, on one core, so that it has one worker process.
    command = [sys.executable, "-m", "benchmarks.replay_pruning", str(curves)]
    command += ["--searches", "2", "--concurrent", "3"]
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
    head, *lines = done.stdout.splitlines()
    assert head.split()[:5] == ["curves", "pruner", "parallel", "cost", "recall"]
    found = {line[25:43].strip(): line[43:].split() for line in lines}
    assert list(found) == ["ours", "best after a look", "Percentile(25)"]
    concurrent, cost, recall, _, worst, _, stated = found["ours"]
    assert concurrent == "3"
    assert 0.1 < float(cost) < 0.7
    assert float(worst) <= float(recall) <= 1
    assert 0.9 < float(stated) < 1
