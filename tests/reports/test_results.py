"""Results read from a storage."""

import math
import re

import optuna
import pandas as pd
import pytest
from factories import gated_params, make_runs, make_study
from helpers import EACH_DATABASE

from reports.data.study_reader import read_results
from reports.data.table_export import write_csv
from reports.errors import ReportError
from reports.page.page import render_page, write_report
from reports.page.sections import build_section
from search.status import read_status
from studies.errors import StudyFormatError
from studies.storage.counts import count_trials
from studies.storage.open import read_storage


def test_trial_table_has_the_best_first_and_trials_without_a_value_last(sqlite_url):
    make_study(sqlite_url, finished=6)
    results = read_results(read_storage(sqlite_url), "made")
    assert list(results.table.index) == [0, 1, 2, 4, 5, 3, 6, 7]
    assert list(results.table["state"]) == ["COMPLETE"] * 5 + ["DIVERGED"] + ["WAITING"] * 2
    assert list(results.complete.index) == [0, 1, 2, 4, 5]
    assert results.table.loc[0, "label"] == "1×4 no gates, new state"
    assert results.parameters == ["residual", "layers", "state_size"]
    storage = read_storage(sqlite_url)
    assert results.counts == count_trials(storage, storage.get_study_id_from_name("made"))
    assert (results.counts.planned, results.counts.diverged) == (8, 1)
    assert results.table["seconds"].sum() == 10
    assert len(results.curves) == 12
    assert results.curves.iloc[0].to_dict() == {"number": 0, "step": 50, "loss": 2.5}


def test_study_without_a_complete_trial_is_refused(sqlite_url, tmp_path):
    make_study(sqlite_url, finished=0)
    with pytest.raises(ReportError, match=r"no complete trial.*run the search first"):
        write_report(sqlite_url, ["made"], tmp_path / "page.html")
    optuna.create_study(study_name="foreign", storage=sqlite_url)
    with pytest.raises(StudyFormatError, match="has no schema version"):
        write_report(sqlite_url, ["foreign"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.usefixtures("without_optuna_figures")
def test_report_and_csv_list_which_versions_trained_which_trials(sqlite_url, tmp_path):
    runs = [
        (gated_params(1), 1.5, {"code": "third", "earlier_code": ["first", "second"]}),
        (gated_params(2), 1.6, {"code": "second", "torch": "3", "earlier_torch": ["2"]}),
        (gated_params(3), 1.4, {"code": "second"}),
    ]
    raw = {"refinement": {"source": "none"}}
    make_runs(sqlite_url, "made", raw, runs)
    html = "".join(render_page([build_section(read_results(read_storage(sqlite_url), "made"))]))
    (code,) = re.findall(r"Training code</th><td>(.*?)</td>", html)
    assert code == "first (trial 0), second (trials 0-2), third (trial 0)"
    (torch,) = re.findall(r"PyTorch</th><td>(.*?)</td>", html)
    assert torch == "2 (trials 0-2), 3 (trial 1)"
    write_csv([read_results(read_storage(sqlite_url), "made")], tmp_path / "rows.csv")
    rows = pd.read_csv(tmp_path / "rows.csv").set_index("number")
    assert rows.loc[0, "earlier_code"] == "first, second"
    assert rows.loc[1, "earlier_torch"] == 2
    assert pd.isna(rows.loc[1, "earlier_code"])


def test_results_equal_the_trials_that_optuna_reads(sqlite_url):
    make_study(sqlite_url, finished=5)
    storage = read_storage(sqlite_url)
    results = read_results(storage, "made")
    trials = storage.get_all_trials(storage.get_study_id_from_name("made"))
    for trial in trials:
        row = results.table.loc[trial.number]
        assert {name: row[name] for name in trial.params} == trial.params
        assert row["state"] == ("DIVERGED" if trial.number == 3 else trial.state.name)
        curve = results.curves[results.curves["number"] == trial.number]
        assert dict(zip(curve["step"], curve["loss"], strict=True)) == trial.intermediate_values
        if trial.state.is_finished():
            assert row["completed"] == trial.datetime_complete
            assert trial.number == 3 or row["value"] == trial.value


@EACH_DATABASE
@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_value_of_plain_optuna_counts_as_diverged(url, value):
    make_study(url, finished=6)
    study = optuna.load_study(study_name="made", storage=url)
    study.tell(study.ask(), value)
    storage = read_storage(url)
    results = read_results(storage, "made")
    status = read_status(study, storage, results.config)
    assert results.counts == status.counts
    assert (status.counts.complete, status.counts.diverged) == (5, 2)
    assert status.best.value == 1.5
