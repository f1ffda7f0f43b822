"""Hypotheses in study files: their mistakes, and the records that a study keeps of them."""

import pytest
from helpers import with_text
from invocation import refused

from rnn.errors import UserError
from studies.attributes import StudyRecord
from studies.config import StudyConfig
from studies.loader import load_settings
from studies.stated_hypotheses import DEFAULT_MARGIN, Hypothesis, register

SPACE = {"layers": [1, 2], "state_size": [8, 16], "input_gate": [False]}


def state(parameter="residual", before=False, after=True, **settings):
    """Return a hypothesis as a study file states it."""
    change = {"parameter": parameter, "before": before, "after": after}
    return {"statement": "C", **change, "expect": "lower", **settings}


def resolve(*hypotheses, **settings):
    settings = {"space": SPACE, "hypothesis": list(hypotheses)} | settings
    return load_settings("mine", settings).resolve()


@pytest.mark.parametrize(
    ("hypothesis", "message"),
    [
        (state(expect="moves"), "hypothesis.1.expect is 'moves': input should be 'lower', "),
        (state(statement=""), "hypothesis.1.statement is ''"),
        (state("layers", 1, 1.0), "hypothesis.1: expected different values before and after"),
        (state(where={"residual": True}), "where names 'residual', which changes"),
        (state(where={"state_size": 0}), "hypothesis 1 has state_size = 0: input should be "),
        (state(before=0), "hypothesis 1 has residual = 0: "),
        (state(expect="no difference", margin=0.0), "margin is 0.0: expected more"),
        (state("depth", 1, 2), "hypothesis 1 names 'depth': expected one of cell, "),
    ],
)
def test_mistake_in_a_hypothesis_is_named_in_one_line(hypothesis, message):
    with refused(UserError, message):
        resolve(hypothesis)


def test_values_are_those_of_the_grid_however_they_are_written():
    where = {"layers": 1.0, "learning_rate": 1}
    (hypothesis,) = resolve(state("state_size", 8.0, 16, where=where)).hypothesis
    assert hypothesis.margin == DEFAULT_MARGIN
    assert repr(hypothesis.before) == "8"
    assert repr(hypothesis.where) == "{'layers': 1, 'learning_rate': 1.0}"


@pytest.mark.parametrize(
    "hypothesis",
    [
        state("input_gate"),
        state(where={"state_size": 9}),
        state("bptt_steps", 1, 2),
        state("cell", "gru", "gated"),
    ],
)
def test_hypothesis_about_what_the_grid_lacks_is_accepted(hypothesis):
    """A grid that ``--set`` narrows keeps the hypotheses of its file."""
    assert len(resolve(hypothesis).hypothesis) == 1


def test_hypothesis_gives_an_option_of_an_own_cell_a_value_of_its_type():
    options = {"norm": {"type": "bool", "default": False}}
    record = {"spec": "my.py:Own", "sha256": "0" * 64, "options": options}
    space = SPACE | {"cell": ["gated", "my.py:Own"]}

    def check(*change, **settings):
        hypotheses = [state(*change, **settings)]
        raw = {"space": space, "cells": {"Own": record}, "hypothesis": hypotheses}
        StudyConfig.model_validate(raw)

    check("norm", False, True, where={"cell": "Own"})
    with pytest.raises(ValueError, match="hypothesis 1 has norm = 1: expected true or false"):
        check(where={"norm": 1})


def test_hypothesis_is_stated_once_and_not_about_a_nuisance_parameter():
    with pytest.raises(UserError, match="hypothesis 3 repeats hypothesis 1: expected each once"):
        resolve(state(), state(margin=0.5), state())
    with pytest.raises(UserError, match="names 'layers', a nuisance parameter: expected one of"):
        resolve(state("layers", 1, 2), nuisance=["layers"])


def test_derived_study_states_its_own_hypotheses_and_inherits_none():
    inherited = resolve(state()).model_dump(mode="json")

    def derive(*hypotheses):
        variants = {"source": "mine", "variants": [{}, {"layers": 3}]}
        settings = {"refinement": variants, "hypothesis": list(hypotheses)}
        return load_settings("derived", settings).resolve_over(inherited).hypothesis

    assert derive() == []
    assert len(derive(state("layers", 2, 3))) == 1
    with pytest.raises(UserError, match="hypothesis 1 names 'depth': expected one of cell, "):
        derive(state(where={"depth": 2}))


def test_records_keep_the_time_and_the_results_of_their_registration():
    first, second = (Hypothesis.model_validate(state(statement=name)) for name in "AB")
    early = register([], [first], 0)
    records = register(early, [first, second], 1200)
    assert records[:1] == early
    assert [record.hypothesis for record in records] == [first, second]
    marks = [record.mark for record in records]
    assert marks[0].startswith("before the first result, 20")
    assert marks[1].startswith("after 1,200 results, 20")
    stored = StudyRecord(config=with_text(resolve()), artifact_folder="a", hypotheses=records)
    assert StudyRecord.model_validate_json(stored.model_dump_json()).hypotheses == records
