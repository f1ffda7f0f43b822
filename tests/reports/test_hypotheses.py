"""Verdicts on hypotheses, the page about them, and the outcomes of matched pairs."""

import dataclasses
import itertools
import math
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from factories import make_study, results_of
from scipy.stats import binom

from reports.analysis.hypothesis_tests import run_stored_tests, run_test
from reports.errors import ReportError
from reports.findings import StudyFindings
from reports.hypotheses import HYPOTHESES, evaluate_study, list_hypotheses, render_page
from reports.page.page import render_page as render_report
from reports.page.section import Section
from reports.phrases import list_notes
from reports.stats.design import Contrast
from reports.stats.effects import FactorialTable, PairedDifference
from reports.stats.hypotheses import OUTCOME_MARGIN, RULES, Verdict
from reports.stats.noise import NoiseSource
from reports.stats.scale import BAD, GOOD, OUTCOMES
from reports.tables import tabulate_findings
from reports.trial_table import find_traits
from studies.config import StudyConfig
from studies.hypotheses import Hypothesis, HypothesisRecord, Registration
from studies.loader import load_hypotheses
from studies.space import BASELINE_PARAMS, GATED_PARAMS

SPACE = {"layers": [2, 3], "state_size": [8, 16]}
LARGE = SPACE | {"output_gate": [False], "state_gate": [False]}
PUBLISHED = load_hypotheses(HYPOTHESES)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Results of a study of all switches, two depths and two sizes, with one complete trial."""
    url = f"sqlite:///{tmp_path_factory.mktemp('planned')}/studies.db"
    make_study(url, "planned", None, finished=1, space=SPACE)
    return results_of(url, "planned")


def finished(planned, effects, noise=0.005, name="planned", **settings):
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
    return dataclasses.replace(planned, name=name, config=config, table=complete)


AS_SAID = {"forget_gate": -0.1, "input_gate": 0.01, "new": -0.4, "state_gate": -0.05,
           "residual": -0.2, "deep": 0.1, "wide": -0.3}  # fmt: skip
CONTRARY = {"forget_gate": 0.05, "input_gate": -0.1, "output_gate": -0.1, "new": -0.1,
            "old": 0.1, "state_gate": -0.3, "residual": 0.1, "deep": -0.1, "wide": 0.1}  # fmt: skip


def findings_of(results, hypotheses=PUBLISHED, margin=0.02):
    """Return (number, finding) of each contrast."""
    tests = evaluate_study(results, [each.with_margin(margin) for each in hypotheses]).tests
    return [(number, each) for number, test in tests.items() for each in test.findings]


def verdicts_of(results, on="verdict", **options):
    found = findings_of(results, **options)
    return {number: getattr(each, on) for number, each in found if getattr(each, on)}


@pytest.mark.parametrize(
    ("effects", "noise", "verdict"),
    [(AS_SAID, 0.005, "holds"), (CONTRARY, 0.005, "does not hold"), ({}, 1.5, "undecided")],
)
def test_every_hypothesis_can_hold_fail_or_be_undecided(planned, effects, noise, verdict):
    found = verdicts_of(finished(planned, effects, noise))
    assert found == dict.fromkeys(range(1, len(PUBLISHED) + 1), verdict)


def test_margin_decides_what_counts_as_no_difference(planned):
    results = finished(planned, {"old": 0.05, "input_gate": 0.0, "residual": -0.05})
    narrow, wide = (verdicts_of(results, margin=margin) for margin in (0.02, 0.1))
    assert (narrow[5], wide[5]) == ("does not hold", "holds")
    # A significant reduction that is not worthwhile.
    assert (narrow[7], wide[7]) == ("holds", "does not hold")


def difference_of(low, high):
    """Return a difference whose interval has some ends."""
    half = (high - low) / 2 / 2.571  # Student's quantile at 5 degrees of freedom
    return PairedDifference(pairs=9, mean=(low + high) / 2, error=half, degrees=5,
                            source=NoiseSource.REPLICATES, improved_count=0)  # fmt: skip


def outcomes_of(rescued, ruined, both_good=99, both_bad=9):
    """Return the effect of a change on some pairs."""
    counts = rescued, ruined, both_good, both_bad
    before, after = np.repeat([[BAD, GOOD, GOOD, BAD], [GOOD, BAD, GOOD, BAD]], counts, axis=1)
    pairs = np.arange(2 * sum(counts)).reshape(2, -1)
    values = np.concatenate([before, after])
    return PairedDifference.from_trials(values, pairs, (-1, 1), None, OUTCOMES)


@pytest.mark.parametrize(
    ("name", "of_a_rise", "of_a_fall"),
    [
        ("lowers", "raises", "holds"),
        ("does-not-lower", "does-not-raise", "does not hold"),
        ("makes-no-difference", "makes-no-difference", "does not hold"),
    ],
)
def test_conditions_of_a_rule_exclude_each_other_and_mirror_those_about_a_rise(
    name, of_a_rise, of_a_fall
):
    rule, mirrored = RULES[name], RULES[of_a_rise]
    contrary = dataclasses.replace(rule, expects_change=not rule.expects_change)
    exchanged = {"holds": "does not hold", "does not hold": "holds", "undecided": "undecided"}
    ends = [-0.1, -0.021, -0.019, -0.01, 0.0, 0.01, 0.019, 0.021, 0.1]
    differences = [
        (difference_of(low, high), difference_of(-high, -low))
        for low, high in itertools.combinations_with_replacement(ends, 2)
    ]
    outcomes = [
        (outcomes_of(rescued, ruined), outcomes_of(ruined, rescued))
        for rescued, ruined in itertools.product((96, 48, 0), (0, 48, 96))
    ]
    for effects, margin in ((differences, 0.02), (outcomes, OUTCOME_MARGIN)):
        verdicts = []
        for effect, opposite in effects:
            verdicts.append(rule.decide(effect, margin))
            assert contrary.decide(effect, margin) == exchanged[verdicts[-1]]
            for each in (mirrored, rule.mirror()):
                assert each.decide(opposite, margin) == verdicts[-1]
            opposition = mirrored.measure_opposition(opposite)
            assert rule.measure_opposition(effect) == pytest.approx(opposition)
        assert set(verdicts) == set(exchanged)
        assert verdicts[0] == of_a_fall


def test_least_favorable_contrast_decides_a_conjunction(planned):
    effects = {"new": -0.3, "residual": -0.1, "output_gate": 0.2}
    (found,) = (f for n, f in findings_of(finished(planned, effects)) if n == 4 and f.verdict)
    assert found.contrast == "new state against no output gate"
    assert found.effect.mean == pytest.approx(-0.1, abs=0.005)
    assert found.verdict == "holds"
    effects["output_gate"] = 0.4
    assert verdicts_of(finished(planned, effects))[4] == "does not hold"


def hypothesis_on(name, before, after, **settings):
    contrast = {"before": {name: before}, "after": {name: after}}
    return Hypothesis(claim=name, rule="lowers", contrasts=[contrast], **settings)


def test_each_contrast_fails_a_conjunction_at_its_share_of_the_error(planned):
    """The residual lowers the loss by less than the margin: significantly so, but barely."""
    results = finished(planned, {"input_gate": -0.3, "residual": -0.1}, noise=0.1)
    alone, other = (hypothesis_on(name, False, True) for name in ("residual", "input_gate"))
    effect = findings_of(results, [alone])[0][1].effect
    alone = alone.with_margin(-(effect.low + effect.compute_interval(0.975).low) / 2)
    contrasts = [*alone.contrasts, *other.contrasts]
    both = alone.model_copy(update={"contrasts": contrasts, "conjunction": True})
    results = dataclasses.replace(results, hypotheses=[record(alone), record(both)])
    (single,), (joint,) = (each.findings for each in run_stored_tests(results))
    assert (single.verdict, joint.verdict) == ("does not hold", "undecided")
    assert (list_notes(single), joint.contrast, len(list_notes(joint))) == ([], single.contrast, 1)


def test_verdict_on_outcomes_is_that_of_networks_that_cross_the_threshold(planned):
    """The input gate lowers the loss of networks that stay above the threshold."""
    results = finished(planned, {"new": -1.0, "input_gate": -0.2}, report_threshold=0.9)
    (found,) = (each for number, each in findings_of(results) if number == 2)
    assert (found.verdict, found.outcome_verdict) == ("does not hold", "holds")
    # All 192 pairs count: those of the old state alone stay above, all others below.
    assert (found.outcomes.pairs, found.outcomes.mean, found.outcomes.p) == (192, 0, 1)
    # Where none or all are below, no change would seem to rescue any.
    for threshold in (0.1, 5.0):
        nowhere = finished(planned, {"new": -1.0}, report_threshold=threshold)
        assert verdicts_of(nowhere, "outcome_verdict") == {}
        assert len(verdicts_of(nowhere)) == len(PUBLISHED)


def record(hypothesis, started=0, finished=0, **others):
    return HypothesisRecord(
        hypothesis=hypothesis.with_margin(),
        registered=Registration(
            time=datetime(2026, 11, 26, 17, tzinfo=UTC), started=started, finished=finished,
            planned=384, **others
        ),
    )  # fmt: skip


def test_stored_hypotheses_are_told_from_exploratory_ones(planned):
    late = PUBLISHED[6].model_copy(update={"claim": "Late", "margin": 0.05})
    withdrawn = record(PUBLISHED[0]).model_copy(
        update={"withdrawn": datetime(2026, 11, 27, tzinfo=UTC)}
    )
    stored = [record(PUBLISHED[6]), record(late, 12, 12), withdrawn]
    results = dataclasses.replace(finished(planned, AS_SAID), hypotheses=stored)
    tests = evaluate_study(results, [PUBLISHED[6].with_margin(), PUBLISHED[7], late]).tests
    assert [(each.is_exploratory, each.mark) for each in tests.values()] == [
        (False, "pre-registered at 2026-11-26 17:00 UTC"),
        (True, "exploratory"),
        (True, "added on 2026-11-26 17:00 UTC, after 12 of 384 trials were finished"),
    ]
    # With another margin it is another hypothesis.
    (other,) = evaluate_study(results, [PUBLISHED[6].with_margin(0.1)]).tests.values()
    assert other.mark == "exploratory"
    page = render_page([results], [PUBLISHED[7]])
    for kind in ("exploratory", "pre-registered", "withdrawn on 2026-11-27"):
        assert kind in page
    # So is one where the threshold has changed since.
    stored = [record(PUBLISHED[6], report_threshold=1.4)]
    for threshold, has_changed in ((1.4, False), (1.3, True), (None, True)):
        changed = dataclasses.replace(
            finished(planned, AS_SAID, report_threshold=threshold), hypotheses=stored
        )
        (test,) = run_stored_tests(changed)
        assert test.is_exploratory == has_changed
        assert ("report_threshold has changed since" in test.mark) == has_changed


def test_hypotheses_are_tested_where_a_study_varies_what_they_name(planned):
    """A refinement by its variants alone; baseline cells have no switches."""
    refinement = {"source": "s", "variants": [{}, {"state_size": 16}, {"layers": 3}]}
    config = StudyConfig.model_validate({"refinement": refinement})
    results = finished(planned, AS_SAID, refinement=config.refinement)
    assert verdicts_of(results) == {8: "holds", 9: "holds"}
    switches = [name for name in GATED_PARAMS if name not in BASELINE_PARAMS]
    cells = planned.table.drop(columns=switches).assign(cell="gru", value=1.0, state="COMPLETE")
    cells = cells.drop_duplicates(["layers", "state_size"])
    with pytest.raises(
        ReportError, match=r"tested by 'planned' .forget gate has no value.: choose"
    ):
        render_page([dataclasses.replace(planned, table=cells)], PUBLISHED)


HYPOTHESIS = """
[[hypothesis]]
claim = "C"
comparison = "c"
rule = "lowers"
contrasts = [{ before = { residual = false }, after = { residual = true } }]
"""


def test_page_is_written_and_replaced_and_other_studies_are_refused(sqlite_url, tmp_path, invoke):
    make_study(sqlite_url)
    make_study(sqlite_url, "open", finished=6)
    page, file = tmp_path / "new" / "findings.md", tmp_path / "hypotheses.toml"
    file.write_text(HYPOTHESIS)
    options = ("--storage", sqlite_url, "--output", str(page))
    for given, expected in (  # the second page replaces the first
        (("--margin", "0.5"), "| 0.5 | the interval lies below −0.5 |"),
        (("--hypotheses", str(file)), "| 1 | residual: on against off | +0.4"),
    ):
        done = invoke("hypotheses", "made", *options, *given)
        assert (done.returncode, done.stdout) == (0, f"{page}\n")
        assert expected in page.read_text()
    written = page.read_text()
    for arguments, line in (
        (("open",), "study 'open' has finished 6 of 8 trials: run it to its end first"),
        (("made", "--margin", "0"), "0.0 is not in the range x>0"),
    ):
        done = invoke("hypotheses", *arguments, *options)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), arguments
        assert line in done.stderr
    assert page.read_text() == written


def test_stored_hypotheses_are_listed_with_the_reason_why_they_are_not_testable(planned):
    pinned = hypothesis_on("learning_rate", 0.001, 0.003)
    deeper = hypothesis_on("residual", False, True, region={"layers": [4, 5]})
    untestable = {
        "learning rate has one value": pinned,
        "state size has no value 32": hypothesis_on("state_size", 8, 32),
        "layers has no value 4 or 5": deeper,
        "no parameter 'residuals'": hypothesis_on("residuals", False, True),
    }
    partly = pinned.model_copy(update={"contrasts": [*PUBLISHED[6].contrasts, *pinned.contrasts]})
    stored = [*map(record, [*untestable.values(), partly])]
    results = dataclasses.replace(finished(planned, AS_SAID), hypotheses=stored)
    tests = run_stored_tests(results)
    assert [(each.is_untestable, each.problem) for each in tests] == [
        *((True, reason) for reason in untestable),
        (False, "learning rate has one value"),
    ]
    assert [each.verdict for each in tests[-1].findings] == ["holds"]
    frame = tabulate_findings(dict(enumerate(tests)), results).to_frame()
    assert list(frame["verdict"]) == 4 * ["not testable"] + ["holds"]
    assert evaluate_study(results, [pinned.with_margin(0.1)]).tests == {}, "of a file alone"
    # Before the end, what the grid lacks is known already.
    unfinished = dataclasses.replace(planned, hypotheses=stored)
    assert [each.problem for each in run_stored_tests(unfinished)] == [
        *untestable, "1 of 384 trials are finished"]  # fmt: skip


def test_hypothesis_stored_in_other_words_is_the_same(planned):
    """Pre-registered, under the number and in the words of the file, without its context."""
    stored = PUBLISHED[3].model_copy(
        update={"claim": "The new state matters.", "comparison": "", "context": []}
    )
    registered = [record(stored), record(PUBLISHED[6])]
    results = dataclasses.replace(finished(planned, AS_SAID), hypotheses=registered)
    tests = evaluate_study(results, list_hypotheses([], PUBLISHED)).tests
    assert {number for number, each in tests.items() if not each.is_exploratory} == {4, 7}
    assert tests[4].hypothesis == PUBLISHED[3].with_margin().model_copy(update={"context": []})


def test_finding_names_the_parameter_on_which_its_sign_depends(planned):
    """The residual helps wide networks and harms narrow ones; the forget gate helps all."""
    effects = {"residual": 0.1, "residual wide": -0.3, "forget_gate": -0.1}
    results = finished(planned, effects)
    (residual,), (forget_gate,) = (
        run_test(results, each).findings for each in (PUBLISHED[6], PUBLISHED[0])
    )
    assert "depends on state size" in list_notes(residual)[0]
    assert list_notes(forget_gate) == []
    within = PUBLISHED[6].model_copy(update={"region": {"state_size": [16]}})
    (fixed,) = run_test(results, within).findings
    assert fixed.reversal is None, "within one size it has one sign"
    # Significant after the correction for the effects of this gate, and not for all in the table.
    small = finished(planned, {"forget_gate": 0.0018, "forget_gate wide": -0.0036})
    assert StudyFindings(small).reversals == []
    assert [each.reversal for each in run_test(small, PUBLISHED[0]).findings] == [None]


# ------------------------------------------------------------------ outcomes of matched pairs


def test_best_of_several_trials_is_unknown_while_it_may_become_good():
    names, unknown = ["cell", "residual", "size"], math.nan
    rows = [
        ("gated", False, 1, BAD), ("gated", True, 1, unknown), ("gru", None, 1, BAD),
        ("gated", False, 2, BAD), ("gated", True, 2, GOOD), ("gru", None, 2, BAD),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=[*names, "value"])
    table = FactorialTable.from_frame(frame, names, scale=OUTCOMES, traits=find_traits(names))
    cells = table.compute_effect(Contrast("cell", "gated", "gru"))
    assert (cells.missing_pairs, cells.worsened_count, cells.pairs) == (1, 1, 1)


def test_sign_test_and_interval_are_exact_and_few_pairs_decide_nothing():
    effect = outcomes_of(9, 1, 40, 50)
    assert (effect.pairs, effect.improved_count, effect.worsened_count) == (100, 9, 1)
    assert effect.mean == pytest.approx(-0.08)
    assert effect.p == pytest.approx(2 * binom.cdf(1, 10, 0.5))
    assert effect.is_significant
    # Each end is that of two one-sided intervals with an error of 1.25% each.
    rescued_low = next(p for p in np.linspace(0, 1, 2001) if binom.sf(8, 100, p) >= 0.0125)
    ruined_high = next(p for p in np.linspace(1, 0, 2001) if binom.cdf(1, 100, p) >= 0.0125)
    assert effect.high == pytest.approx(ruined_high - rescued_low, abs=2e-3)
    assert effect.low < effect.mean < effect.high
    assert outcomes_of(0, 0).p == 1
    few = outcomes_of(7, 0, 0, 0)
    assert few.p < 0.05
    assert RULES["lowers"].decide(few, OUTCOME_MARGIN) is Verdict.UNDECIDED


@pytest.mark.usefixtures("without_optuna_figures")
def test_outcomes_have_no_table_where_all_are_on_one_side(sqlite_url, build_page):
    make_study(sqlite_url, report_threshold=0.1)
    section = Section(results_of(sqlite_url))
    assert section.findings.outcomes
    drawn = "outcomes</caption>"
    assert drawn not in "".join(render_report([section]))
    assert drawn in build_page(make_study, "made").html
