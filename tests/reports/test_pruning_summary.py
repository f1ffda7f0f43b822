"""Summary of pruning, and the effects early in training."""

import math

import pytest
from factories import RECORDED, make_study
from optuna.trial import TrialState

from reports.data.study_reader import read_results
from reports.page.page import render_page
from reports.page.sections import build_section
from reports.stats.pruning_summary import summarize_pruning
from studies.storage.open import open_storage, read_storage
from studies.storage.trial_rows import prune_paused

pytestmark = pytest.mark.usefixtures("without_optuna_figures")

REASON = "at step 100 of 200: predicted 2.000 ± 0.100"


@pytest.fixture
def pruned(sqlite_url):
    """URL of eight trials: four complete, two of them after a pause; three pruned; one paused."""
    pruning = {"enabled": True, "keep": 0.25, "confidence": 0.9}
    make_study(sqlite_url, finished=0, pruning=pruning, training={"steps": 200})
    storage = open_storage(sqlite_url)
    study_id = storage.get_study_id_from_name("made")
    paused = []
    for i in range(8):
        trial_id = storage.claim(study_id, "me/1")
        curve = {50: 3.0 + i / 10, 100: 2.0 + i / 10}
        found = RECORDED | {"seconds": 1.0, "parameter_count": 10, "rung": 100, "worker": "w"}
        if i < 4:
            prediction = {"predicted_value": 1.55, "keep_probability": 0.5} if i < 2 else {}
            found = found | prediction
            value = 1.5 + i / 10
            curve |= {150: value + 0.1, 200: value}
            storage.finish(trial_id, "me/1", TrialState.COMPLETE, value, found, curve)
        else:
            storage.pause(
                trial_id, "me/1", found | {"predicted_value": 2.0, "keep_probability": 0.02}, curve
            )
            paused.append(trial_id)
    with storage.transaction() as connection:
        reasons = {trial_id: {"reason": REASON} for trial_id in paused[:3]}
        assert prune_paused(connection, reasons) == paused[:3]
    storage.close()
    return sqlite_url


def test_summary_counts_pruned_trials(pruned):
    results = read_results(read_storage(pruned), "made")
    counts = results.counts
    assert (counts.complete, counts.pruned) == (4, 3)
    assert (counts.waiting, counts.paused, counts.planned) == (1, 1, 8)
    assert list(results.table["state"]) == ["COMPLETE"] * 4 + ["PRUNED"] * 3 + ["PAUSED"]
    found = summarize_pruning(results)
    assert found.top_count == 2
    assert math.isnan(found.expected_share), "a paused trial may still be among the best"
    assert found.step_share == pytest.approx((4 * 200 + 4 * 100) / (8 * 200))
    assert found.rungs.to_dict("records") == [{"step": 100, "trials": 3, "keep_probability": 0.06}]


def test_share_of_kept_trials_is_stated_only_with_audited_trials(pruned):
    storage = open_storage(pruned)
    study_id = storage.get_study_id_from_name("made")
    (last,) = (t._trial_id for t in storage.get_all_trials(study_id, states=(TrialState.WAITING,)))
    assert storage.prune_paused(study_id, 8, {last: {"reason": REASON}}) == [last]
    storage.close()
    results = read_results(read_storage(pruned), "made")
    assert math.isnan(summarize_pruning(results).expected_share), "nothing tests the predictions"
    results.table.loc[0, "audited"] = True
    assert summarize_pruning(results).expected_share == pytest.approx(0.96)


def test_early_effects_are_those_at_the_last_common_step(pruned):
    table = summarize_pruning(read_results(read_storage(pruned), "made")).early_table
    assert table.value_count == 8
    # The losses rise by 0.1 per trial in the order of the grid: residual, layers, size.
    effects = table.compute_effects()
    means = {effect.contrast.label: effect.mean for effect in effects}
    assert means == pytest.approx({"residual": 0.4, "layers 1 → 2": 0.2, "state size 4 → 8": 0.1})
    assert [effect.missing_pairs for effect in effects] == [0, 0, 0]


def test_page_of_a_pruned_study_names_the_steps_and_the_reason_of_each_trial(pruned):
    results = read_results(read_storage(pruned), "made")
    words = " ".join("".join(render_page([build_section(results)])).split())
    assert "75% of the steps" in words
    assert f'title="{REASON}">pruned' in words


def test_study_without_pruning_has_no_summary(sqlite_url):
    make_study(sqlite_url)
    assert summarize_pruning(read_results(read_storage(sqlite_url), "made")) is None
