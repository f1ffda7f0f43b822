"""The time left of a search that prunes counts what is likely to be trained."""

import math

import numpy as np
import pytest
from test_policy import COMPLETE, PAUSED, RUNNING, SMALL, STEPS, make_state

from benchmarks.simulated_curves import simulate_curves
from search.pruning.forecast import forecast_training, measure_pace
from search.pruning.policy import PruningPolicy
from search.status import StatusReader, format_status
from tests.simulations.large_study import create_large_study
from tests.simulations.pruned_search import Replay


def forecast(state, audited=(), pace=1.0):
    is_audited = np.isin(np.arange(len(state.stages)), audited)
    policy = PruningPolicy(state, 0.1, 0.95)
    return forecast_training(policy, state, is_audited, np.full(len(state.stages), pace))


@pytest.fixture(scope="module")
def search():
    recorded = simulate_curves("ordinary", 0)
    replay = Replay(recorded, 4, 0.1, 0.95, audited=range(0, len(recorded.values), 10))
    replay.run(np.random.default_rng(0).permutation(len(recorded.values)).tolist())
    return replay


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_forecast_is_near_what_a_search_trains(search, share):
    found, left = search.forecast_rest(share)
    assert found.low <= found.likely <= found.high
    assert left / 2 <= found.likely <= 2 * left
    assert share < 0.5 or found.low <= left <= found.high


def test_forecast_is_far_below_training_all_that_is_paused():
    state = make_state([COMPLETE] * 20 + [PAUSED] * 70)
    found = forecast(state)
    assert 0 <= found.low <= found.likely <= found.high < 70 * STEPS / 2


def test_audited_trials_train_to_their_end_and_running_ones_to_their_rung():
    stages = [COMPLETE] * 20 + [PAUSED] * 50
    rest = STEPS - 80 - 40  # of a running trial at the second of the rungs, half way to the third
    base, more = forecast(make_state(stages)), make_state([*stages, RUNNING])
    to_end = forecast(more, audited=[70])
    assert to_end.low - base.low == pytest.approx(rest, rel=0.1)
    to_rung = forecast(more)
    assert to_rung.low - base.low >= 40


def test_nothing_is_forecast_before_predictions_or_without_a_pace():
    assert forecast(make_state([COMPLETE] * 3 + [PAUSED] * 60)) is None
    assert forecast(make_state([COMPLETE] * 20 + [PAUSED] * 60), pace=math.nan) is None


def test_pace_is_the_mean_of_a_shape():
    params = [{"layers": 1, "forget_gate": True}, {"layers": 1}, {"layers": 1}, {"layers": 2}]
    pace = measure_pace(params, [10.0, 5.0, None, None])
    assert pace[:3] == pytest.approx([0.15, 0.15, 0.15])
    assert math.isnan(pace[3])


def test_status_shows_the_time_left_with_its_range(sqlite_url, text):
    made = create_large_study(sqlite_url, 96, 40, pruning=True, corpus=str(text), overrides=SMALL)
    with made.storage.reading():
        status = StatusReader(made.study, made.storage, made.config, workers=2).read_status()
    low, high = status.seconds_range
    assert 0 < low < status.seconds_left < high
    assert status.as_json()["seconds_range"] == (low, high)
    (line,) = [
        line for line in format_status(status, made.config).splitlines() if "time left" in line
    ]
    assert line.startswith("time left about ")
    assert " to " in line
    made.storage.close()
