"""Pruned studies: their summary, and what audited trials measure of recall and effects."""

import math
from contextlib import closing
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from factories import (
    PREDICTION_ERROR,
    PRUNED_REASON,
    PRUNED_SPACE,
    make_pruned,
    make_study,
    results_of,
)
from optuna.trial import TrialState
from scipy import stats

from reports.analysis.hypotheses import run_tests
from reports.analysis.pruning import audit_pruning, estimate_audited_effects, summarize_pruning
from reports.findings import StudyFindings
from reports.formatting import label_change
from reports.stats.audit import bound_lost, estimate_with_audit, judge_architectures, measure_recall
from reports.stats.effects import FactorialTable
from reports.stats.estimate import adjust_estimates
from rnn_search import load
from studies.attributes import AUDIT_LOOKS, AuditLook
from studies.config import StudyConfig
from studies.loader import load_config_file
from studies.stated_hypotheses import register
from studies.storage.open import open_storage

EVEN = range(0, 32, 2)


@pytest.mark.parametrize(("pruned", "sample"), [(90, 10), (360, 17), (3, 2)])
def test_bound_of_lost_trials_holds_with_its_confidence(pruned, sample):
    """Exactly: over all samples, for every number of marked trials."""
    bounds = [bound_lost(pruned, sample, found) for found in range(sample + 1)]
    for marked in range(pruned + sample + 1):
        found = np.arange(sample + 1)
        chances = stats.hypergeom.pmf(found, pruned + sample, marked, sample)
        covered = sum(
            chance for chance, k in zip(chances, found, strict=True) if marked - k <= bounds[k]
        )
        assert covered >= 0.95 - 1e-9
    assert bounds[0] < pruned or sample < 3, "it is not trivial"


def test_audit_measures_recall_and_the_predictions(sqlite_url):
    make_pruned(sqlite_url, audited=EVEN)
    found = audit_pruning(results_of(sqlite_url))
    assert (found.trials, found.stopped, found.pruned, found.lost) == (16, 8, 8, 0)
    assert found.lost_high == bound_lost(8, 8, 0)
    assert (found.inside, found.is_alarm) == (8, False)
    assert found.bias == pytest.approx(PREDICTION_ERROR)
    make_pruned(sqlite_url, "wrong", audited=EVEN, scale=0.01)
    look = AuditLook(complete=16, trials=8, inside=1, alarm=True)
    with closing(open_storage(sqlite_url)) as storage:
        study_id = storage.get_study_id_from_name("wrong")
        storage.set_study_system_attr(study_id, AUDIT_LOOKS, {"last": look.model_dump()})
    found = audit_pruning(results_of(sqlite_url, "wrong"))
    assert (found.inside, found.is_alarm, found.looks) == (0, True, {"last": look})


def make_table(seed):
    """Return 192 trials: their parameters, their values, predictions, and which are pruned."""
    random = np.random.default_rng(seed)
    index = np.arange(192)
    table = pd.DataFrame({f"p{bit}": (index >> bit & 1).astype(bool) for bit in range(6)})
    table["size"] = index // 64
    values = 2 - 0.3 * table["p0"] - 0.1 * table["p1"] + random.normal(0, 0.05, 192)
    # Networks with p2 are better than predicted: the pruner does not foresee their late fall.
    predicted = values + 0.2 * table["p2"] + random.normal(0, 0.03, 192)
    is_pruned = predicted > np.quantile(predicted, 0.35)
    return table, values.to_numpy(), predicted.to_numpy(), is_pruned.to_numpy()


def test_effects_of_a_pruned_study_are_estimated_over_all_trials(sqlite_url):
    make_pruned(sqlite_url, audited=EVEN)
    results = results_of(sqlite_url)
    found = estimate_audited_effects(results)
    assert StudyFindings(results).effects == adjust_estimates(found.effects)
    table = load("made", storage=sqlite_url).effects().to_frame().set_index("parameter")
    # Of the predictions alone it would be -0.45; no two complete trials differ in it.
    assert table.loc["residual", "effect"] == pytest.approx(-0.4, abs=0.03)
    assert table.loc["input_gate", "effect"] == pytest.approx(-0.2, abs=0.05)
    hypotheses = register([], load_config_file("stage-one").resolve().hypothesis[:1], 0)
    (test,) = run_tests(replace(results, hypotheses=hypotheses))
    assert test.problem == "trials were pruned, and those that remain are a selection"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"audited": ()}, "no trial was audited"),
        ({"audited": (1, 2, 3)}, "at least 6"),
        ({"finished": False}, "finished"),
        ({"audited": EVEN, "nuisance": ["layers"]}, "drawn for other nuisance parameters"),
        ({"audited": EVEN, "drawn_over": ["layers"]}, "drawn for other nuisance parameters"),
    ],
)
def test_pruned_study_without_estimates_says_why(sqlite_url, options, reason):
    make_pruned(sqlite_url, **options)
    effects = load("made", storage=sqlite_url).effects()
    assert effects.to_frame().empty
    assert any(reason in line for line in effects.answer)


def test_architectures_of_a_pruned_study_are_audited_at_their_best(sqlite_url):
    """At two sizes each; half of the architectures are audited, at both."""
    grid = StudyConfig.model_validate({"space": PRUNED_SPACE}).grid.combinations()
    audited = [number for number, params in enumerate(grid) if params["forget_gate"]]
    options = {"audited": audited, "nuisance": ["state_size"], "drawn_over": ["state_size"]}
    make_pruned(sqlite_url, **options)
    results = results_of(sqlite_url)
    found = audit_pruning(results)
    assert (found.planned, found.architectures, found.trials) == (16, 8, 16)
    # Both trials of the four audited architectures without the residual would have been pruned.
    assert (found.stopped, found.pruned, found.top_count) == (4, 4, 1)
    assert (found.tested, found.inside) == (4, 4)  # one of each
    assert found.bias == pytest.approx(PREDICTION_ERROR)
    assert estimate_audited_effects(results).effects == [], "four are too few"
    make_pruned(sqlite_url, "all", **(options | {"audited": range(32)}))
    found = estimate_audited_effects(results_of(sqlite_url, "all"))
    means = {label_change(effect.contrast): effect.mean for effect in found.effects}
    assert (found.audited, found.stopped) == (16, 8)
    assert [effect.error for effect in found.effects] == [0] * 4, "all are audited"
    assert set(means) == {"residual", "input gate", "forget gate", "layers 1 → 2"}
    assert means["residual"] == pytest.approx(-0.4, abs=0.03)


@pytest.mark.extended
def test_audited_trials_cover_the_effects_and_the_losses_of_the_whole_grid():
    covered, bounds = [], []
    for seed in range(20):
        table, values, predicted, is_pruned = make_table(seed)
        names = list(table)
        audited = np.random.default_rng(seed).choice(192, 19, replace=False)
        whole = table.assign(
            value=values,
            predicted_value=predicted,
            audited=True,
            state="COMPLETE",
            reason=np.where(is_pruned, PRUNED_REASON, None),
        )
        is_audited = np.isin(np.arange(192), audited)
        is_lost = pd.Series(is_pruned & ~is_audited)
        known = judge_architectures(
            whole.assign(
                audited=is_audited,
                value=whole["value"].mask(is_lost),
                state=whole["state"].mask(is_lost, "PRUNED"),
            ),
            names,
        )
        truth = FactorialTable.from_frame(whole, names)
        for effect in estimate_with_audit(known, names).effects:
            exact = truth.compute_effect(effect.contrast).mean
            covered.append(effect.low <= exact <= effect.high)
        recall = measure_recall(known, 19)
        lost = measure_recall(judge_architectures(whole, names), 19).lost
        bounds.append(lost - recall.lost <= recall.lost_high)
    # 0.95 less four binomial standard errors, of dependent intervals
    assert np.mean(covered) >= 0.86
    assert np.mean(bounds) >= 0.75


def test_architecture_with_a_pruned_trial_without_a_prediction_is_judged_by_the_others():
    """Plain Optuna prunes without a prediction."""
    complete, pruned = TrialState.COMPLETE.name, TrialState.PRUNED.name
    table = pd.DataFrame(
        [
            ("a", complete, 1.0, False, None, math.nan),
            ("a", pruned, math.nan, False, None, math.nan),
            ("b", pruned, math.nan, False, None, math.nan),
            ("c", pruned, math.nan, False, None, 1.5),
            ("c", complete, 1.7, False, None, math.nan),
            ("d", complete, 1.2, True, PRUNED_REASON, 1.4),
            ("d", complete, 1.3, True, None, math.nan),
            ("e", TrialState.FAIL.name, math.nan, True, PRUNED_REASON, 1.4),
        ],
        columns=["p", "state", "value", "audited", "reason", "predicted_value"],
    )
    found = judge_architectures(table, ["p"]).set_index("p")
    assert found["estimate"].fillna(0).to_dict() == {"a": 1.0, "b": 0, "c": 1.5, "d": 1.3, "e": 0}
    assert found["value"].fillna(0).to_dict() == {"a": 1.0, "b": 0, "c": 1.7, "d": 1.2, "e": 0}
    assert found["kept"].fillna(0).to_dict() == {"a": 1.0, "b": 0, "c": 1.7, "d": 1.3, "e": 0}
    assert found["stopped"].all()
    # What a failed trial would have reached is not known, so its architecture tests nothing.
    recall = measure_recall(found, 2)
    assert (recall.pruned, recall.stopped, recall.lost) == (3, 1, 1)


def test_summary_counts_pruned_trials_and_steps(sqlite_url):
    make_pruned(sqlite_url, audited=())
    results = results_of(sqlite_url)
    assert (results.counts.complete, results.counts.pruned) == (16, 16)
    found = summarize_pruning(results)
    assert found.step_share == pytest.approx(0.75)
    assert found.rungs.to_dict("records") == [{"step": 100, "trials": 16, "keep_probability": 0.32}]
    make_study(sqlite_url, "unpruned")
    assert summarize_pruning(results_of(sqlite_url, "unpruned")) is None


def test_page_of_a_pruned_study_names_the_steps_and_the_reason_of_each_trial(build_page):
    page = build_page(make_pruned, "made", audited=())
    assert "75% of all steps" in page.words
    assert f'title="{PRUNED_REASON}">pruned' in " ".join(page.html.split())
