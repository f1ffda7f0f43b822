"""Results read from a storage, as CSV files, of large studies, and the effective context."""

import math
from contextlib import closing
from functools import partial
from html import escape

import numpy as np
import optuna
import pandas as pd
import pytest
from factories import (
    MIN_GRU,
    gated_params,
    make_baselines,
    make_runs,
    make_study,
    read_studies,
    results_of,
)
from helpers import TEXT, DatabaseUse
from pages import build_from

from reports import study_reader, study_tables
from reports.charts import trial_plots
from reports.final_report import write_csv
from reports.findings import StudyFindings
from reports.sentences import list_warnings
from reports.study_reader import read_results
from reports.trial_table import (
    THRESHOLD,
    ContextProfile,
    average_profiles,
    decode_architecture,
    read_profile,
)
from rnn.config import NetworkConfig
from rnn_search.commands.reports import report
from search.status import read_status
from studies.attributes import RESERVED_OPTION_NAMES
from studies.storage.counts import count_trials
from studies.storage.open import load_study, open_storage, read_storage, read_study_record
from tests.simulations.large_study import NAME, create_large_study


def test_results_equal_the_trials_that_optuna_reads_the_best_first(sqlite_url):
    make_study(sqlite_url, finished=6)
    results = results_of(sqlite_url)
    assert list(results.table.index) == [0, 1, 2, 4, 5, 3, 6, 7]
    assert list(results.table["state"]) == ["COMPLETE"] * 5 + ["DIVERGED"] + ["WAITING"] * 2
    assert list(results.complete.index) == [0, 1, 2, 4, 5]
    assert results.table.loc[0, "label"] == "1×4 no gates, new state"
    assert results.parameters == ["residual", "layers", "state_size"]
    storage = read_storage(sqlite_url)
    study_id = storage.get_study_id_from_name("made")
    assert results.counts == count_trials(storage, study_id)
    assert (results.counts.planned, results.counts.diverged) == (8, 1)
    for trial in storage.get_all_trials(study_id):
        row = results.table.loc[trial.number]
        assert {name: row[name] for name in trial.params} == trial.params
        curve = results.curves[results.curves["number"] == trial.number]
        assert dict(zip(curve["step"], curve["loss"], strict=True)) == trial.intermediate_values
        if trial.state.is_finished():
            assert row["completed"] == trial.datetime_complete
            assert trial.number == 3 or row["value"] == trial.value


def test_report_warns_of_several_versions_and_csv_lists_those_of_each_trial(sqlite_url, tmp_path):
    runs = [
        (gated_params(1), 1.5, {"code": "third", "earlier_code": ["first", "second"]}),
        (gated_params(2), 1.6, {"code": "second", "torch": "3", "earlier_torch": ["2"]}),
        (gated_params(3), 1.4, {"code": "second"}),
    ]
    raw = {"refinement": {"source": "none"}}
    make_runs(sqlite_url, "made", raw, runs)
    make_runs(sqlite_url, "alike", raw, [(params, value, {}) for params, value, _ in runs])
    warnings = list_warnings(StudyFindings(results_of(sqlite_url)))
    assert warnings == [
        "the trials were trained by 3 versions of the training code",
        "the trials were trained by 2 versions of PyTorch",
    ]
    assert list_warnings(StudyFindings(results_of(sqlite_url, "alike"))) == []
    write_csv([results_of(sqlite_url)], tmp_path / "rows.csv")
    rows = pd.read_csv(tmp_path / "rows.csv").set_index("number")
    assert rows.loc[0, "earlier_code"] == "first, second"
    assert rows.loc[1, "earlier_torch"] == 2
    assert pd.isna(rows.loc[1, "earlier_code"])


def test_baseline_cells_have_no_switches(sqlite_url):
    make_baselines(sqlite_url)
    results = results_of(sqlite_url, "cells")
    assert results.parameters == ["cell", "state_size", "bptt_steps"]
    first = results.complete.iloc[0]
    assert decode_architecture(first, results.config) == NetworkConfig("gru", 1, 4)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_value_of_plain_optuna_counts_as_diverged(url, value):
    make_study(url, finished=6, told="include")
    study = optuna.load_study(study_name="made", storage=url)
    study.tell(study.ask(), value)
    storage = read_storage(url)
    results = results_of(url)
    status = read_status(study, storage, results.config)
    assert results.counts == status.counts
    assert (status.counts.complete, status.counts.diverged) == (5, 2)
    assert status.best.value == 1.5


def test_pandas_reads_the_table_that_the_command_writes(derived, tmp_path, capsys):
    path = str(tmp_path / "rows.csv")
    words = ["--csv", path, "--storage", derived]
    report.main(["made", "derived", *words], standalone_mode=False)
    assert capsys.readouterr().out.split() == [path]
    rows = pd.read_csv(path)
    assert rows["study"].tolist() == ["made"] * 8 + ["derived"] * 3
    assert rows["value"].iloc[:3].tolist() == pytest.approx([1.5, 1.6, 1.7])
    assert rows["residual"].tolist()[:8] == [False] * 4 + [True] * 4
    assert rows["source_trials"].iloc[8] == "[0, 1]"
    assert set(rows) <= RESERVED_OPTION_NAMES


def test_csv_has_one_line_per_trial(sqlite_url, tmp_path):
    text = 'a, "quoted" line\r\nC:\\new\tétude\x00\x0b\x85\u2028end\n'
    runs = [(gated_params(), 1.0, {"sample": text}), (gated_params(2), 2.0, {})]
    make_runs(sqlite_url, "writers", {"space": {"layers": [1], "state_size": [4]}}, runs)
    write_csv(read_studies(sqlite_url, "writers"), tmp_path / "rows.csv")
    lines = (tmp_path / "rows.csv").read_text("utf-8").splitlines()
    assert len(lines) == 3
    assert lines[0].endswith(",sample")
    written, missing = pd.read_csv(tmp_path / "rows.csv")["sample"]
    assert "étude" in written
    assert written.encode("latin-1", "backslashreplace").decode("unicode_escape") == text
    assert pd.isna(missing)


def test_option_of_another_type_in_each_study_is_text(sqlite_url, tmp_path):
    """``norm`` is a bool of one cell and a text of another."""
    types = {"own": ("bool", False, True), "other": ("str", "none", "all")}
    params = {"cell": "MinGRU", "layers": 1, "state_size": 4}
    for name, (kind, default, value) in types.items():
        cell = {**MIN_GRU, "options": {"norm": {"type": kind, "default": default}}}
        space = {"cell": ["cells/min_gru.py:MinGRU"], "norm": [default, value]}
        raw = {"cells": {"MinGRU": cell}, "space": space | {"layers": [1], "state_size": [4]}}
        runs = [(params | {"norm": norm}, 1.0, {}) for norm in (default, value)]
        make_runs(sqlite_url, name, raw, runs)
    write_csv(read_studies(sqlite_url, *types), tmp_path / "rows.csv")
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert rows["norm"].tolist() == ["False", "True", "none", "all"]


# ------------------------------------------------------------------ effective context


BINS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def simulate(decay, rng, windows=128, bins=BINS):
    """Simulate a network whose excess loss falls exponentially with the context.

    The difference of the two losses of a target scatters by twice its expectation and 0.05 bits.
    """
    low, mean, stderr = 0, [], []
    for high in bins:
        expected = 1.5 * np.exp(-(np.arange(low, high) + 1) / decay)
        scatter = 2 * expected + 0.05
        losses = (expected + rng.normal(0, 1, (windows, high - low)) * scatter).mean(1)
        mean.append(losses.mean())
        stderr.append(losses.std(ddof=1) / math.sqrt(windows))
        low = high
    return ContextProfile(bins, np.array(mean), np.array(stderr), 2.0)


@pytest.mark.parametrize("decay", [1, 10])
def test_effective_context_of_a_simulated_network_is_recovered(decay):
    truth = decay * math.log(1.5 / THRESHOLD)  # at which the simulated excess is the threshold
    estimate = simulate(decay, np.random.default_rng(decay), windows=8192).estimate()
    assert estimate.size == pytest.approx(truth, rel=0.15), "bins are a factor of two wide"
    assert estimate.low / 1.15 <= truth <= estimate.high * 1.15


def test_context_is_one_without_memory_open_beyond_half_a_window_and_of_a_window_uncertain():
    rng = np.random.default_rng(1)
    flat = [simulate(0.05, rng).estimate() for _ in range(20)]
    assert np.mean([each.size == 1 for each in flat]) > 0.9
    assert all(each.low == 1 for each in flat)
    estimate = simulate(1000, np.random.default_rng(2)).estimate()
    assert (estimate.size, estimate.high) == (math.inf, math.inf)
    assert str(estimate) == "> 256 [> 256, > 256]"
    profile = read_profile({"context_bins": [1, 2], "context_excess": [0.5, 0.0],
                            "context_loss": 2.0})  # fmt: skip
    estimate = profile.estimate()
    assert 1 < estimate.size < 2
    assert math.isnan(estimate.low)
    assert "[" not in str(estimate)
    short, long = simulate(3, rng), simulate(30, rng)
    mean = average_profiles([short, long])  # of two runs of an architecture
    assert short.estimate().size < mean.estimate().size < long.estimate().size


def profile_attributes(decay):
    profile = simulate(decay, np.random.default_rng(5), bins=BINS[:7])
    return {
        "context_bins": list(profile.bins),
        "context_excess": profile.excess.tolist(),
        "context_stderr": profile.stderr.tolist(),
        "context_loss": profile.loss,
    }


@pytest.mark.usefixtures("without_optuna_figures")
def test_page_and_tables_show_the_effective_context(sqlite_url, tmp_path, build_page):
    runs = [
        (gated_params(1), 1.0, profile_attributes(2)),
        (gated_params(2), 1.5, profile_attributes(6)),
        (gated_params(3), 2.0, {}),  # trained before these losses were recorded
    ]
    raw = {"space": {"layers": [1, 2, 3], "state_size": [4]}}
    make_runs(sqlite_url, "memory", raw, runs)
    page = build_from(results_of(sqlite_url, "memory"))
    best, second, old = page.findings.summary.entries
    assert best.context.estimate().size < second.context.estimate().size
    assert old.context is None
    assert escape(str(second.context.estimate())) in page.html
    (chart,) = page.sections["memory"].blocks
    assert [len(trace.x) for trace in chart.figure.data] == [7, 7]
    assert chart.width <= 390
    assert "effective context (bytes)" in chart.figure.layout.legend.title.text
    name = chart.figure.data[0].name.replace("<br>", ", ")
    assert name == f"{best.context.estimate()}: 1×4 no gates", "what all have is left out"
    write_csv([page.findings.results], tmp_path / "rows.csv")
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert rows["effective_context"][0] == pytest.approx(best.context.estimate().size)
    assert rows["effective_context"].isna().tolist() == [False, False, True]
    assert "effective context" not in build_page(make_study, "made").words, "an older study"


# ------------------------------------------------------------------ studies of thousands of trials


SMALL = ["training.batch_size=2", "training.sequence_length=10", "evaluation.windows=2",
         "evaluation.window_length=10"]  # fmt: skip


def make_large_study(url, tmp_path, trials=96, log_points=40, progress=1.0):
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT)
    handle = create_large_study(
        url, trials, log_points, progress=progress, corpus=str(text), overrides=SMALL
    )
    handle.storage.close()


def test_status_reads_few_rows_of_a_large_study(tmp_path):
    uses = []
    for trials, log_points in ((48, 10), (192, 20)):
        url = f"sqlite:///{tmp_path}/{trials}.db"
        make_large_study(url, tmp_path, trials, log_points, progress=0.5)
        with closing(open_storage(url)) as storage:
            study = load_study(storage, NAME)
            config = read_study_record(study).config
            use = DatabaseUse(storage)
            uses.append(use.measure(partial(read_status, study, storage, config)))
    assert uses[0][0] == uses[1][0]
    # One for each shape and each running trial, none for each of the others.
    assert uses[1][1] < 100


@pytest.mark.usefixtures("without_optuna_figures")
def test_page_draws_at_most_so_many_points_and_lists_so_many_trials(
    sqlite_url, tmp_path, monkeypatch
):
    make_large_study(sqlite_url, tmp_path)
    monkeypatch.setattr(study_reader, "MAX_DRAWN", 20)
    monkeypatch.setattr(study_tables, "MAX_DRAWN", 20)
    monkeypatch.setattr(trial_plots, "MAX_POINTS", 200)
    with closing(open_storage(sqlite_url)) as storage:
        use = DatabaseUse(storage)
        reads = (partial(read_results, storage, NAME, drawn_only=each) for each in (False, True))
        read = [use.measure(each)[1] for each in reads]
        results = read_results(storage, NAME, drawn_only=True)
    trials = len(results.table)
    assert read[0] - read[1] > 40 * (trials - 20) - 2 * trials
    page = build_from(results)
    curves = page.chart("Training curves")
    traces = curves.figure.data
    points = pd.concat(pd.DataFrame({"name": trace.text, "loss": trace.y}) for trace in traces)
    drawn = points.dropna().groupby("name")["loss"].agg(["min", "last"])
    assert len(drawn) == 20
    assert len(points) - 20 <= 200 + 2 * 20
    losses = results.curves.groupby("number")["loss"].agg(["min", "last"]).astype(np.float32)
    for name, found in drawn.iterrows():
        number = int(name.split(":")[0].removeprefix("trial "))
        assert tuple(found) == tuple(losses.loc[number])
    assert f"20 of {trials}" in curves.caption
    listed = page.table(" trials").rows
    assert [row["number"] for row in listed] == results.table.index[:20].tolist()
    assert f"The best 20 of {trials} trials" in page.words
    costs = page.chart("Loss against parameters")
    assert sum(len(trace.x) for trace in costs.figure.data) < 100
