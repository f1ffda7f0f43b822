"""Trials whose value this program did not train: counted apart, or as any others on request."""

import math
from contextlib import closing

import optuna
import pandas as pd
import pytest
from factories import gated_params, make_runs, make_study, results_of
from optuna.trial import TrialState
from pages import build_from

from reports.findings import StudyFindings
from reports.stats.audit import merge_runs
from rnn_search import load
from search.derive import derive_trials
from search.pruning.candidates import Candidate
from search.pruning.scheduler import PauseResumeScheduler
from search.status import explain_failure, format_progress, format_status, read_status
from studies.best import rank_trials
from studies.config import StudyConfig
from studies.importing import ImportOptions, import_results
from studies.storage.counts import count_trials, timing_by_shape, top_trials
from studies.storage.open import load_study, open_storage, read_storage, read_study_record
from studies.storage.reads import TrialReader, read_trials
from studies.storage.trials import StoredTrial, TrialStatus


def tell(url, value, name="made"):
    """Complete the next waiting trial by plain Optuna."""
    study = optuna.load_study(study_name=name, storage=url)
    study.tell(study.ask(), value)


def read_progress(url, name="made"):
    """Return the status of a study, and its config."""
    with closing(read_storage(url)) as storage:
        study = load_study(storage, name)
        config = read_study_record(study).config
        return read_status(study, storage, config), config


def list_effects(results):
    return [(effect.contrast, effect.mean) for effect in StudyFindings(results).effects]


def test_told_trial_is_counted_apart_and_neither_best_nor_in_an_effect(url):
    make_study(url, finished=7)
    before = list_effects(results_of(url))
    tell(url, 0.5)
    results = results_of(url)
    status, config = read_progress(url)
    assert status.counts == results.counts
    assert (status.counts.complete, status.counts.told, status.counts.planned) == (6, 1, 8)
    assert status.is_finished
    assert "\ntold      1\n" in format_status(status, config)
    assert format_progress(status).startswith("8 of 8 finished, 1 told, 1 diverged, best 1.5000")
    assert status.as_json()["told"] == 1
    assert status.best.value == 1.5
    assert list_effects(results) == before
    assert 7 not in results.complete.index
    assert results.table.loc[7, ["state", "told"]].tolist() == ["TOLD", 0.5]
    page = build_from(results)
    assert "Runs complete 6 of 8 1 told, 1 diverged" in page.words
    assert "told 0.5000 nats per byte" in page.read_column("trials", "state")
    with closing(read_storage(url)) as storage:
        study_id = load_study(storage, "made")._study_id
        assert 7 not in [number for _, number, _ in top_trials(storage, study_id, 10)]
        assert [shape.complete for shape in timing_by_shape(storage, study_id, ())] == [6]


def test_told_trial_counts_like_any_other_on_request(sqlite_url):
    make_study(sqlite_url, finished=7, told="include")
    tell(sqlite_url, 0.5)
    results = results_of(sqlite_url)
    status, _ = read_progress(sqlite_url)
    assert status.counts == results.counts
    assert (status.counts.complete, status.counts.told) == (7, 0)
    assert (status.best.number, status.best.value) == (7, 0.5)
    assert results.complete.index[0] == 7
    assert "told" not in results.table


def test_infinite_value_that_was_told_is_told(sqlite_url):
    make_study(sqlite_url, finished=7)
    tell(sqlite_url, float("inf"))
    counts = read_progress(sqlite_url)[0].counts
    assert counts == results_of(sqlite_url).counts
    assert (counts.told, counts.diverged) == (1, 1)


def test_reader_follows_a_study_that_includes_told_trials_from_now_on(sqlite_url):
    make_study(sqlite_url, finished=7)
    tell(sqlite_url, 0.5)
    with closing(open_storage(sqlite_url)) as storage:
        study = load_study(storage, "made")
        reader = TrialReader(storage, study._study_id)
        assert reader.read()[7].status is TrialStatus.TOLD
        study.set_user_attr("config", study.user_attrs["config"] | {"told": "include"})
        assert reader.read()[7].status is TrialStatus.COMPLETE
        assert count_trials(storage, study._study_id).complete == 7


@pytest.mark.parametrize("told", ["exclude", "include"])
def test_replicates_and_refinements_are_ranked_without_told_trials(sqlite_url, told):
    raw = {"refinement": {"source": "x", "replicates": 2}, "told": told}
    runs = [
        (gated_params(state_size=size, replicate=run), None if size == 8 else 1.5, {})
        for run in (1, 2)
        for size in (4, 8)
    ]
    make_runs(sqlite_url, "made", raw, runs)
    tell(sqlite_url, 0.5)
    tell(sqlite_url, 0.5)
    status, config = read_progress(sqlite_url)
    is_included = told == "include"
    # Told trials have no loss on unseen text, by which those that were trained are ranked.
    assert status.best.metric.is_value == is_included
    assert status.best.trial.params["state_size"] == (8 if is_included else 4)
    with closing(read_storage(sqlite_url)) as storage:
        trials = read_trials(storage, load_study(storage, "made")._study_id)
    assert len(rank_trials(trials, config)) == 1 + is_included
    derived = StudyConfig.model_validate({"refinement": {"source": "made", "top": 1}})
    (trial,) = derive_trials(trials, derived, config)
    assert trial.params["state_size"] == (8 if is_included else 4)


def test_pruner_decides_as_if_told_trials_had_failed(sqlite_url):
    make_study(sqlite_url, finished=7, pruning={"enabled": True})
    tell(sqlite_url, 0.5)
    with closing(open_storage(sqlite_url)) as storage:
        study = load_study(storage, "made")
        config = read_study_record(study).config
        progress = PauseResumeScheduler(storage, study._study_id, config).read()
    assert [trial.number for trial in progress.trials] == [0, 1, 2, 4, 5, 6]


def test_finished_study_of_told_trials_alone_says_how_they_count(sqlite_url):
    make_study(sqlite_url, finished=0)
    for _ in range(8):
        tell(sqlite_url, 0.5)
    status, config = read_progress(sqlite_url)
    assert status.best is None
    line = explain_failure("made", [], status.counts, config)
    assert "finished without a complete trial: 8 told; " in line
    assert "--set 'told=\"include\"' --extend" in line


def test_results_of_another_program_are_never_told(sqlite_url, tmp_path):
    (tmp_path / "table.csv").write_text("depth,value\n1,2.0\n2,1.5\n")
    import_results(sqlite_url, tmp_path / "table.csv", ImportOptions())
    counts = load("table", storage=sqlite_url).counts
    assert (counts.complete, counts.told) == (2, 0)


def test_told_run_is_left_out_of_the_mean_of_its_architecture_in_a_pruned_study():
    columns = {"state": ["COMPLETE", "TOLD"], "value": [1.5, math.nan], "replicate": [1, 2]}
    runs = pd.DataFrame(columns | {"layers": [1, 1]})
    assert merge_runs(runs, ["layers"])["value"].tolist() == [1.5]


def test_audited_architecture_of_which_a_run_was_told_has_the_stage_of_the_others():
    told = StoredTrial(state=TrialState.COMPLETE, is_told=True)
    assert Candidate([told, StoredTrial()], [0, 0]).find_stage() is TrialStatus.WAITING
