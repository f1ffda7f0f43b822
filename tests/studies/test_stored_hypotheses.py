"""Hypotheses in study files: their mistakes, and the records that a study keeps of them."""

from datetime import UTC, datetime, timedelta

import pytest

from studies.attributes import StudyRecord
from studies.config import StudyConfig
from studies.errors import ConfigError
from studies.hypotheses import DEFAULT_MARGIN, Hypothesis, Registration, update_records
from studies.loader import load_settings

SPACE = {"layers": [1, 2], "state_size": [8, 16], "input_gate": [False]}
RESIDUAL = {"before": {"residual": False}, "after": {"residual": True}}
INPUT_GATE = {"before": {"input_gate": False}, "after": {"input_gate": True}}
NEW_STATE = {"before": {"state_source": "old"}, "after": {"state_source": "both"}}
LOWERS = {"claim": "C", "rule": "lowers", "contrasts": [RESIDUAL]}
CORPUS = {"name": "a", "sha256": "0", "length": 9, "split": (5, 7)}


def resolve(*hypotheses, **settings):
    settings = {"space": SPACE, "hypothesis": list(hypotheses)} | settings
    return load_settings("mine", settings).resolve()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "moves"}, "hypothesis 1: rule is 'moves': input should be 'lowers', 'does-not"),
        ({"contrasts": []}, "hypothesis 1: expected contrasts, consecutive or larger_than"),
        ({"contrasts": [{"before": {"layers": 1}, "after": {"residual": True}}]}, "same parameter"),
        ({"region": {"residual": True}}, "region names 'residual', which a contrast changes"),
        ({"region": {"input_gate": [True, True]}}, "has input_gate = [True, True]: expected dis"),
        ({"contrasts": [{"before": {"layers": 1}, "after": {"layers": 1.0}}]}, "different values"),
        ({"region": {"state_size": [8, 0]}}, "hypothesis 1 has state_size = 0: input should be "),
        ({"contrasts": [{"before": {"residual": 0}, "after": {"residual": True}}]}, "residual = 0"),
        ({"consecutive": "state_source"}, "consecutive = 'state_source': expected a parameter wh"),
        (
            {"larger_than": {"contrast": NEW_STATE, "switches": ["layers"]}},
            "has larger_than.switches with 'layers': expected switches, which are on or off",
        ),
        (
            {"larger_than": {"contrast": RESIDUAL, "switches": ["input_gate", "residual"]}},
            "larger_than: switches name 'residual', which the contrast changes: expected other",
        ),
    ],
)
def test_mistake_in_a_hypothesis_is_named_in_one_line(change, message):
    with pytest.raises(ConfigError) as caught:
        resolve(LOWERS | change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_are_those_of_the_grid_however_they_are_written():
    about = {"before": {"state_size": 8.0}, "after": {"state_size": 16}}
    change = {"contrasts": [about], "region": {"layers": [1.0, 2], "learning_rate": 1}}
    (hypothesis,) = resolve(LOWERS | change).hypothesis
    assert hypothesis.margin == DEFAULT_MARGIN
    assert repr(hypothesis.contrasts[0].before) == "{'state_size': 8}"
    assert repr(hypothesis.region) == "{'layers': [1, 2], 'learning_rate': [1.0]}"


def test_hypothesis_about_what_the_grid_lacks_is_accepted():
    """A grid that ``--set`` narrows keeps the hypotheses of its file."""
    for change in (
        {"contrasts": [INPUT_GATE]},
        {"region": {"state_size": [8, 9], "learning_rate": 0.1}},
        {"consecutive": "bptt_steps"},
        {"larger_than": {"contrast": NEW_STATE, "switches": ["input_gate"]}},
        {"contrasts": [{"before": {"cell": "gru"}, "after": {"cell": "gated"}}]},
    ):
        (hypothesis,) = resolve(LOWERS | change).hypothesis
        assert hypothesis.parameters


def test_hypothesis_gives_an_option_of_an_own_cell_a_value_of_its_type():
    options = {"norm": {"type": "bool", "default": False}, "kind": {"type": "str", "default": "a"}}
    record = {"spec": "my.py:Own", "sha256": "0" * 64, "options": options}
    space = SPACE | {"cell": ["gated", "my.py:Own"]}

    def check(**change):
        raw = {"space": space, "cells": {"Own": record}, "hypothesis": [LOWERS | change]}
        StudyConfig.model_validate(raw)

    check(contrasts=[{"before": {"norm": False}, "after": {"norm": True}}], region={"cell": "Own"})
    with pytest.raises(ValueError, match="hypothesis 1 has norm = 1: expected true or false"):
        check(region={"norm": 1})
    with pytest.raises(ValueError, match="consecutive = 'kind': expected a parameter whose values"):
        check(consecutive="kind")


def test_hypothesis_is_stated_once_and_not_about_a_nuisance_parameter():
    with pytest.raises(ConfigError, match="hypothesis 3 repeats hypothesis 1: expected each once"):
        resolve(LOWERS, LOWERS | {"margin": 0.5}, LOWERS)
    about = {"before": {"layers": 1}, "after": {"layers": 2}}
    with pytest.raises(ConfigError, match="names 'layers', a nuisance parameter: expected one of"):
        resolve(LOWERS | {"contrasts": [about]}, nuisance=["layers"])


def test_derived_study_states_its_own_hypotheses_and_inherits_none():
    inherited = resolve(LOWERS).model_dump(mode="json")

    def derive(*hypotheses):
        variants = {"source": "mine", "variants": [{}, {"layers": 3}]}
        settings = {"refinement": variants, "hypothesis": list(hypotheses)}
        return load_settings("derived", settings).resolve_over(inherited).hypothesis

    assert derive() == []
    wider = {"before": {"layers": 2}, "after": {"layers": 3}}
    assert len(derive(LOWERS | {"contrasts": [wider]})) == 1
    with pytest.raises(ConfigError, match="hypothesis 1 names 'depth': expected one of cell, "):
        derive(LOWERS | {"region": {"depth": 2}})


def at(hour, **counts):
    time = datetime(2026, 11, 26, tzinfo=UTC) + timedelta(hours=hour)
    return Registration(time=time, planned=96, **counts)


def test_records_keep_their_marks_when_hypotheses_are_added_withdrawn_and_stated_again():
    first, second, third = (
        Hypothesis.model_validate(LOWERS | {"claim": claim}).with_margin() for claim in "ABC"
    )
    records = update_records([], [first, second], at(17))
    assert [each.mark for each in records] == 2 * ["pre-registered at 2026-11-26 17:00 UTC"]
    records = update_records(records, [second, third], at(18, started=2))
    assert [each.mark for each in records] == [
        "pre-registered at 2026-11-26 17:00 UTC; withdrawn on 2026-11-26 18:00 UTC",
        "pre-registered at 2026-11-26 17:00 UTC",
        "added on 2026-11-26 18:00 UTC, after 2 of 96 trials were started",
    ]
    assert [each.is_preregistered for each in records] == [True, True, False]
    later = update_records(records, [first, second, third], at(19, started=90, finished=90))
    assert later[:3] == records
    assert later[3].hypothesis == first
    assert later[3].mark == "added on 2026-11-26 19:00 UTC, after 90 of 96 trials were finished"
    stored = StudyRecord(config=resolve(), artifact_folder="a", hypotheses=later, corpus=CORPUS)
    assert StudyRecord.model_validate_json(stored.model_dump_json()).hypotheses == later
