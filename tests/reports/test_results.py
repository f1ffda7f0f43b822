"""Results read from a storage, and trial tables as CSV files."""

import math

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
from helpers import EACH_DATABASE

from reports.final_report import write_csv
from reports.findings import StudyFindings
from reports.sentences import list_warnings
from reports.trial_table import decode_architecture
from rnn.config import NetworkConfig
from rnn_search.commands.reports import report
from search.status import read_status
from studies.attributes import RESERVED_OPTION_NAMES
from studies.storage.counts import count_trials
from studies.storage.open import read_storage


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


@EACH_DATABASE
@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_value_of_plain_optuna_counts_as_diverged(url, value):
    make_study(url, finished=6)
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
