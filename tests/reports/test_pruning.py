"""What a report says of a study that was pruned, and what its effects rest on."""

import math
import re

import pytest
import sqlalchemy as sa
from factories import RECORDED, make_study
from optuna.trial import TrialState

from reports.data.results import read_results
from reports.page.page import write_report
from reports.stats.pruning_summary import summarize_pruning
from studies.storage.open import open_storage, read_storage
from studies.storage.trial_rows import INTERMEDIATE_VALUES, TRIALS, prune_paused

pytestmark = pytest.mark.usefixtures("without_optuna_figures")

REASON = "at step 100 of 200: foretold 2.000 ± 0.100"


@pytest.fixture
def pruned(sqlite_url):
    """Eight points: four complete, two of them after a pause; three pruned, one still paused."""
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
            told = {"predicted_value": 1.55, "keep_probability": 0.5} if i < 2 else {}
            found = found | told
            value = 1.5 + i / 10
            curve |= {150: value + 0.1, 200: value}
            storage.finish(trial_id, "me/1", TrialState.COMPLETE, value, found, curve)
        else:
            storage.pause(
                trial_id, "me/1", found | {"predicted_value": 2.0, "keep_probability": 0.02}, curve
            )
            paused.append(trial_id)
    with storage.transaction() as connection:
        for trial_id in paused[:3]:
            assert prune_paused(connection, trial_id, {"reason": REASON})
    storage.close()
    return sqlite_url


def test_what_was_pruned_is_accounted_for(pruned):
    results = read_results(read_storage(pruned), "made")
    counts = results.counts
    assert (counts.complete, counts.pruned) == (4, 3)
    assert (counts.waiting, counts.paused, counts.planned) == (1, 1, 8)
    assert list(results.table["state"]) == ["COMPLETE"] * 4 + ["PRUNED"] * 3 + ["PAUSED"]
    found = summarize_pruning(results)
    assert found.top_count == 2
    assert math.isnan(found.expected), "one may still come to something"
    assert found.cost == pytest.approx((4 * 200 + 4 * 100) / (8 * 200))
    assert found.rungs.to_dict("records") == [{"step": 100, "points": 3, "keep_probability": 0.06}]
    assert (found.told, found.off) == (2, pytest.approx(0.05))


def test_finished_study_reports_the_expected_share_of_the_best(pruned, tmp_path):
    storage = open_storage(pruned)
    study_id = storage.get_study_id_from_name("made")
    (last,) = (t._trial_id for t in storage.get_all_trials(study_id, states=(TrialState.WAITING,)))
    assert storage.prune_paused(study_id, 8, {last: {"reason": REASON}}) == [last]
    storage.close()
    assert summarize_pruning(read_results(read_storage(pruned), "made")).expected == pytest.approx(
        0.96
    )
    page = write_report(pruned, ["made"], tmp_path / "page.html").path.read_text(encoding="utf-8")
    words = re.sub(r"\s+", " ", page)
    assert "The grid was pruned.</strong>" in words
    assert "By the predictions at the time of pruning, 96.0% of them are expected" in words


def test_failed_trial_is_left_out_of_the_early_effects(pruned, tmp_path):
    storage = open_storage(pruned)
    with storage.transaction() as connection:
        connection.execute(
            sa.update(TRIALS).where(TRIALS.c.number == 6).values(state=TrialState.FAIL)
        )
        connection.execute(
            sa.delete(INTERMEDIATE_VALUES).where(
                INTERMEDIATE_VALUES.c.trial_id == 7, INTERMEDIATE_VALUES.c.step == 100
            )
        )
    storage.close()
    found = summarize_pruning(read_results(read_storage(pruned), "made"))
    assert (found.common_step, found.absent) == (100, 1)
    page = write_report(pruned, ["made"], tmp_path / "page.html").path.read_text(encoding="utf-8")
    assert "Every trial but 1 was trained for at least 100 of 200 steps" in re.sub(
        r"\s+", " ", page
    )


def test_effects_over_all_points_are_those_at_a_step_that_all_have_come_to(pruned):
    found = summarize_pruning(read_results(read_storage(pruned), "made"))
    assert found.common_step == 100
    assert found.early.points == 8
    # The losses there rise by 0.1 a point, in the order of the grid: of residual, layers, size.
    means = {effect.contrast.label: effect.mean for effect in found.early.effects}
    assert means == pytest.approx({"residual": 0.4, "layers 1 → 2": 0.2, "state size 4 → 8": 0.1})
    assert [effect.missing_pairs for effect in found.early.effects] == [0, 0, 0]


def test_page_states_which_trials_the_effects_rest_on(pruned, tmp_path):
    page = write_report(pruned, ["made"], tmp_path / "page.html").path.read_text(encoding="utf-8")
    words = re.sub(r"\s+", " ", page)
    assert "The grid is being pruned.</strong>" in words
    assert "The effects rest on the 4 complete trials of 8." in words
    assert "Every trial was trained for at least 100 of 200 steps." in words
    assert "The best 2 of 8 trials are to be kept" in words
    assert "75% of the steps of all trials were trained." in words
    assert "2 complete trials had a prediction while paused, with a mean absolute error" in words
    assert f'title="{REASON}">pruned' in words
    assert "1, 1 of them paused" in words


def test_without_pruning_nothing_is_said_of_it(sqlite_url, tmp_path):
    make_study(sqlite_url)
    assert summarize_pruning(read_results(read_storage(sqlite_url), "made")) is None
    page = write_report(sqlite_url, ["made"], tmp_path / "page.html").path.read_text(
        encoding="utf-8"
    )
    assert "paused at step" not in page
    assert "foretold" not in page
