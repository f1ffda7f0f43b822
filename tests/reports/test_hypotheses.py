"""Verdicts on hypotheses."""

import dataclasses
import itertools

import numpy as np
import pytest
from factories import MIN_GRU, make_runs, make_study, results_of

from reports.analysis.hypotheses import decide, run_tests
from reports.stats.differences import Method, PairedDifference
from studies.config import StudyConfig
from studies.loader import load_config_file
from studies.space import BASELINE_PARAMS, GATED_PARAMS
from studies.stated_hypotheses import Hypothesis, register

SPACE = {"layers": [2, 3], "state_size": [8, 16]}
PUBLISHED = [
    stated.model_copy(update={"before": 8, "after": 16} if stated.before == 32 else {})
    for stated in load_config_file("stage-one").resolve().hypothesis
]
"""Hypotheses of stage one, with the state sizes of the space here."""

AS_SAID = {"forget_gate": -0.1, "input_gate": 0.01, "new": -0.4, "state_gate": -0.05,
           "residual": -0.2, "deep": 0.1, "wide": -0.3}  # fmt: skip
CONTRARY = {"forget_gate": 0.05, "input_gate": -0.1, "output_gate": -0.1, "new": 0.1,
            "old": 0.1, "state_gate": -0.3, "residual": 0.1, "deep": -0.1, "wide": 0.1}  # fmt: skip


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Results of a study of all switches, two depths and two sizes, with one complete trial."""
    url = f"sqlite:///{tmp_path_factory.mktemp('planned')}/studies.db"
    make_study(url, "planned", None, finished=1, space=SPACE)
    return results_of(url, "planned")


def finished(planned, effects, noise=0.005, **settings):
    """Give every trial a value: 1.5, plus the effects of its switches, plus noise."""
    table = planned.table
    flags = table.assign(
        new=table["state_source"] != "old",
        old=table["state_source"] != "new",
        deep=table["layers"] == 3,
        wide=table["state_size"] == 16,
    )
    value = 1.5 + np.random.default_rng(0).normal(0, noise, len(table))
    for switches, nats in effects.items():
        value += nats * flags[switches.split()].all(axis=1).to_numpy(dtype=float)
    config = planned.config.model_copy(update=settings)
    complete = table.assign(value=value, state="COMPLETE").sort_values("value")
    return dataclasses.replace(planned, config=config, table=complete)


def run(results, *hypotheses, after=0):
    """Test hypotheses that a study stored after a number of results."""
    return run_tests(dataclasses.replace(results, hypotheses=register([], hypotheses, after)))


def verdicts_of(results, *hypotheses):
    return [test.verdict for test in run(results, *hypotheses)]


def expecting(expect, parameter="residual", before=False, after=True, **settings):
    change = {"parameter": parameter, "before": before, "after": after}
    return Hypothesis(statement=parameter, expect=expect, **change, **settings)


@pytest.mark.parametrize(
    ("effects", "noise", "verdict"),
    [
        (AS_SAID, 0.005, "holds"),
        (CONTRARY, 0.005, "does not hold"),
        ({"new": 0.5, "old": 0.1}, 1.5, "undecided"),
    ],
)
def test_every_hypothesis_can_hold_fail_or_be_undecided(planned, effects, noise, verdict):
    assert verdicts_of(finished(planned, effects, noise), *PUBLISHED) == [verdict] * len(PUBLISHED)


def difference_of(low, high):
    """Return a difference whose interval has some ends."""
    half = (high - low) / 2 / 2.571  # Student's quantile at 5 degrees of freedom
    return PairedDifference(pairs=9, differences=9, mean=(low + high) / 2, error=half, degrees=5,
                            method=Method.PAIRS, improved_count=0)  # fmt: skip


def test_conditions_exclude_each_other_and_mirror_those_about_a_rise():
    exchanged = {"holds": "does not hold", "does not hold": "holds", "undecided": "undecided"}
    ends = [-0.1, -0.021, -0.019, -0.01, 0.0, 0.01, 0.019, 0.021, 0.1]
    found = set()
    for low, high in itertools.combinations_with_replacement(ends, 2):
        effect = difference_of(low, high)
        opposite = difference_of(-high, -low)
        lower = decide(expecting("lower"), effect)
        assert decide(expecting("not lower"), effect) == exchanged[lower]
        assert decide(expecting("raise"), opposite) == lower
        assert decide(expecting("not raise"), opposite) == exchanged[lower]
        same = decide(expecting("no difference"), effect)
        assert decide(expecting("no difference"), opposite) == same
        assert (same == "holds") == (low > -0.02 and high < 0.02)
        assert (same == "does not hold") == (low > 0.02 or high < -0.02)
        found.add((lower, same))
    assert {lower for lower, _ in found} == {same for _, same in found} == set(exchanged)
    few = dataclasses.replace(difference_of(-0.2, -0.1), differences=3)
    assert decide(expecting("lower"), few) == "undecided"


def test_margin_decides_what_counts_as_no_difference():
    small = difference_of(0.03, 0.07)
    for margin, verdict in ((0.02, "does not hold"), (0.1, "holds")):
        assert decide(expecting("no difference", margin=margin), small) == verdict


def test_hypothesis_is_about_the_pairs_with_the_values_that_it_names(planned):
    """The residual helps wide networks and harms narrow ones."""
    results = finished(planned, {"residual": 0.1, "residual wide": -0.3})
    narrow, wide = (
        run(results, expecting("lower", where={"state_size": size}))[0] for size in (8, 16)
    )
    assert (narrow.verdict, wide.verdict) == ("does not hold", "holds")
    assert wide.effect.mean == pytest.approx(-0.2, abs=0.005)
    assert (wide.effect.pairs, wide.effect.excluded_pairs) == (80, 16)  # old state, no input gate
    assert wide.change == "residual, state size 16"
    (switched_off,) = run(results, expecting("lower", before=True, after=False))
    assert switched_off.change == "residual on → off"


def test_hypothesis_registered_after_the_first_result_is_exploratory(planned):
    results = finished(planned, AS_SAID)
    early, late = (run(results, PUBLISHED[0], after=count)[0] for count in (0, 12))
    assert not early.is_exploratory
    assert early.mark.startswith("before the first result, 20")
    assert late.is_exploratory
    assert late.mark.startswith("exploratory, after 12 results, 20")
    assert (late.change, late.verdict) == ("forget gate", "holds")
    assert late.effect.low < late.effect.mean < late.effect.high < -0.02
    assert (late.effect.pairs, late.effect.excluded_pairs) == (128, 64)  # the old state alone


def test_hypotheses_are_tested_where_a_study_varies_what_they_name(planned):
    """A refinement by its variants alone; baseline cells have no switches."""
    refinement = {"source": "s", "variants": [{}, {"state_size": 16}, {"layers": 3}]}
    config = StudyConfig.model_validate({"refinement": refinement})
    results = finished(planned, AS_SAID, refinement=config.refinement)
    assert [v for v in verdicts_of(results, *PUBLISHED) if v != "not testable"] == ["holds"] * 2
    switches = [name for name in GATED_PARAMS if name not in BASELINE_PARAMS]
    cells = planned.table.drop(columns=switches).assign(cell="gru", value=1.0, state="COMPLETE")
    cells = dataclasses.replace(planned, table=cells.drop_duplicates(["layers", "state_size"]))
    forget_gate, *_, width = run(cells, *PUBLISHED)
    assert forget_gate.problem == "forget gate has no value"
    assert width.problem == "the study has baseline cells only"


def test_reason_why_a_hypothesis_has_no_verdict_is_given(planned):
    untestable = {
        "learning rate has one value": expecting("lower", "learning_rate", 0.001, 0.003),
        "state size has no value 32": expecting("lower", "state_size", 8, 32),
        "layers has no value 4": expecting("lower", where={"layers": 4}),
    }
    stated = [*untestable.values(), expecting("lower")]
    tests = run(finished(planned, AS_SAID), *stated)
    assert [test.problem for test in tests] == [*untestable, ""]
    assert [test.verdict for test in tests] == ["not testable"] * len(untestable) + ["holds"]
    # Before the end, what the grid lacks is known already.
    problems = [test.problem for test in run(planned, *stated)]
    assert problems == [*untestable, "1 of 384 trials are finished"]


def test_cell_with_options_enters_a_hypothesis_at_the_best_of_them(sqlite_url):
    """A GRU is 0.5 better than minGRU with normalisation, and 0.8 better than without it."""
    space = {"cell": ["gru", "cells/min_gru.py:MinGRU"], "norm": [False, True]}
    raw = {"cells": {"MinGRU": MIN_GRU}, "space": space | {"layers": [1, 2], "state_size": [4, 8]}}
    raw["hypothesis"] = [expecting("lower", "cell", "MinGRU", "gru")]
    runs = []
    for params in StudyConfig.model_validate(raw).grid.combinations():
        worse = {None: 0.0, True: 0.5, False: 0.8}[params.get("norm")]
        loss = 2.0 + worse + 0.1 * params["layers"] + 0.001 * params["state_size"]
        runs.append((params, loss, {}))
    make_runs(sqlite_url, "cells", raw, runs)
    (test,) = run_tests(results_of(sqlite_url, "cells"))
    assert test.verdict == "holds"
    assert test.effect.pairs == 4
    assert test.effect.mean == pytest.approx(-0.5)
