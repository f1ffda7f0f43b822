"""Effects over the networks that can show them: no blind ones, none whose added part is drawn."""

import math
import random

import pandas as pd
import pytest
from factories import created_once, make_runs, results_of

from reports.findings import StudyFindings
from reports.sentences import list_answer
from rnn.errors import UserError
from rnn_search import load
from studies.config import StudyConfig
from studies.space import SWITCHES

pytestmark = pytest.mark.usefixtures("without_optuna_figures")

GAINS = {"input_gate": -0.1, "forget_gate": -0.2, "residual": -0.3}


@created_once
def make_gated(url, space=None, name="made", **config):
    """Make a study of the switches in which blind networks lose 2, and a drawn gate nothing."""
    sizes = {"output_gate": [False], "layers": [1], "state_size": [4, 8]}
    raw = {"space": sizes | (space or {})} | config
    generator = random.Random(0)
    runs = []
    for params in StudyConfig.model_validate(raw).grid.combinations():
        is_old = params["state_source"] == "old"
        is_blind = is_old and not (params["input_gate"] or params["residual"])
        loss = 4 + 2 * is_blind + generator.gauss(0, 0.002)
        for name_of_part, gain in GAINS.items():
            is_drawn = name_of_part == "forget_gate" and is_old
            loss += gain * params[name_of_part] * (not is_drawn)
        runs.append((params, loss, {}))
    make_runs(url, name, raw, runs)


def effect_of(frame, parameter, after=True):
    return frame[(frame["parameter"] == parameter) & (frame["after"] == after)].iloc[0]


def test_effect_is_over_networks_that_see_their_input_and_train_what_is_added(sqlite_url):
    make_gated(sqlite_url)
    study = load("made", storage=sqlite_url)
    frame = study.effects().to_frame()
    for parameter, pairs, excluded in (
        ("residual", 40, 8),
        ("input_gate", 40, 8),
        ("forget_gate", 32, 16),
    ):
        effect = effect_of(frame, parameter)
        assert (effect["pairs"], effect["excluded_pairs"]) == (pairs, excluded)
        assert effect["effect"] == pytest.approx(GAINS[parameter], abs=0.005)
    everywhere = study.effects(untrained="include").to_frame()
    assert effect_of(everywhere, "residual")["effect"] == pytest.approx(-0.3 - 2 / 6, abs=0.005)
    assert effect_of(everywhere, "forget_gate")["effect"] == pytest.approx(-0.2 * 2 / 3, abs=0.005)
    assert (everywhere["excluded_pairs"] == 0).all()


def test_study_file_may_say_that_all_networks_count(sqlite_url):
    make_gated(sqlite_url, untrained="include")
    study = load("made", storage=sqlite_url)
    assert (study.effects().to_frame()["excluded_pairs"] == 0).all()
    assert (study.effects(untrained="exclude").to_frame()["excluded_pairs"] > 0).any()
    with pytest.raises(UserError, match="untrained is 'maybe': expected 'include' or 'exclude'"):
        study.effects(untrained="maybe")


def test_value_at_which_no_pair_can_show_a_change_is_listed_with_the_reason(sqlite_url):
    make_gated(sqlite_url)
    frame = load("made", storage=sqlite_url).effects().conditional_frame()
    rows = frame[(frame["parameter"] == "forget_gate") & (frame["by"] == "state_source")]
    found = dict(zip(rows["value"], zip(rows["pairs"], rows["excluded"], strict=True), strict=True))
    assert found["old"] == (16, "not trained")
    assert [pairs for pairs, _ in (found["new"], found["both"])] == [16, 16]
    rows = frame[(frame["parameter"] == "residual") & (frame["by"] == "input_gate")]
    assert rows["effect"].tolist() == pytest.approx([-0.3, -0.3], abs=0.005)


def test_answer_says_what_it_leaves_out_and_what_stays_drawn(sqlite_url):
    make_gated(sqlite_url)
    findings = StudyFindings(results_of(sqlite_url))
    lines = "\n".join(list_answer(findings))
    assert "8 of 96 networks do not see their input and count in no effect" in lines
    drawn = findings.find_drawn(next(
        effect.contrast for effect in findings.effects if effect.contrast.before == "old"
    ))  # fmt: skip
    assert drawn == ("old", ["candidate", "state_gate", "forget_gate"])


def test_blind_networks_count_where_no_target_needs_the_input_of_its_step(sqlite_url):
    record = {
        "source": "copy:10", "inputs": 4, "outputs": 4, "reads_tokens": True,
        "predicts_classes": True, "steps": 10, "loss": "cross-entropy", "needs_input": False,
    }  # fmt: skip
    make_gated(sqlite_url, task={"source": "copy:10"}, task_record=record)
    frame = load("made", storage=sqlite_url).effects().to_frame()
    assert effect_of(frame, "residual")["excluded_pairs"] == 0
    assert effect_of(frame, "forget_gate")["excluded_pairs"] == 16


def test_longer_gradient_trains_what_the_old_state_alone_leaves_drawn(sqlite_url):
    make_gated(sqlite_url, training={"bptt_steps": 4})
    frame = load("made", storage=sqlite_url).effects().to_frame()
    assert effect_of(frame, "forget_gate")["excluded_pairs"] == 4  # of blind networks
    assert effect_of(frame, "residual")["excluded_pairs"] == 8


def test_shares_and_hypotheses_follow_the_same_rule(sqlite_url):
    change = {"parameter": "forget_gate", "before": False, "after": True, "expect": "lower"}
    old = {"statement": "f", "where": {"state_source": "old"}} | change
    make_gated(sqlite_url, report_threshold=5.0, hypothesis=[old, {"statement": "g"} | change])
    study = load("made", storage=sqlite_url)
    frame = study.effects().to_frame()
    reached = effect_of(frame, "residual")
    assert (reached["threshold_before"], reached["threshold_after"]) == (1, 1)
    assert study.hypotheses()["verdict"].tolist() == ["not testable: no pair can show it", "holds"]


def test_least_squares_leave_out_what_networks_cannot_show(sqlite_url):
    """No two networks differ in one parameter alone: each has a rate of its own."""
    make_gated(sqlite_url, {"layers": [1, 2, 3]})
    results = results_of(sqlite_url)
    table = results.table.assign(learning_rate=[0.001 * (i + 1) for i in range(len(results.table))])
    config = results.config.model_copy(update={"refinement": None})
    swept = type(results)(**{**vars_of(results), "table": table, "config": config})
    effects = {effect.contrast: effect for effect in StudyFindings(swept).additive}
    found = {
        contrast.parameter: effect.mean
        for contrast, effect in effects.items()
        if contrast.after is True and not math.isnan(effect.mean)
    }
    for parameter, gain in GAINS.items():
        assert found[parameter] == pytest.approx(gain, abs=0.01)


def vars_of(results):
    return {name: getattr(results, name) for name in results.__dataclass_fields__}


def test_parameter_that_no_network_can_show_is_said_to_be_so(sqlite_url):
    make_gated(sqlite_url, {"state_source": ["old"], "residual": [True]})
    findings = StudyFindings(results_of(sqlite_url))
    lines = "\n".join(list_answer(findings))
    assert "not compared, no pair of networks can show it" in lines
    assert "state_gate" in findings.uncompared
    frame = load("made", storage=sqlite_url).effects().to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert set(frame["parameter"]) == {"input_gate", "state_size"}


def test_study_in_which_no_pair_shows_anything_says_so(sqlite_url):
    space = {"state_source": ["old"], "residual": [False], "input_gate": [False]}
    make_gated(sqlite_url, space)
    lines = list_answer(StudyFindings(results_of(sqlite_url)))
    assert "no effect can be estimated: no pair of networks can show one" in lines


def test_cells_are_compared_at_the_best_network_that_sees_its_input(sqlite_url):
    """Blind networks have the lower loss here; none stands for its cell."""
    gated = {name: [False] for name in SWITCHES if name != "state_source"}
    sizes = {"layers": [1, 2], "state_size": [4, 8]}
    raw = {"space": [gated | sizes | {"state_source": ["old", "new"]}, sizes | {"cell": ["gru"]}]}
    runs = [
        (params, 1.0 if params.get("state_source") == "old" else 2.0, {})
        for params in StudyConfig.model_validate(raw).grid.combinations()
    ]
    make_runs(sqlite_url, "made", raw, runs)
    effect = effect_of(load("made", storage=sqlite_url).effects().to_frame(), "cell", "gru")
    assert (effect["pairs"], effect["effect"]) == (4, 0)
