"""What the answer, the last line and the warnings about a study must say, and must not."""

import math
import random
from dataclasses import replace

import pandas as pd
import pytest
from factories import (
    gated_params,
    make_replicates,
    make_runs,
    make_stated,
    make_study,
    results_of,
)
from reports.narrative import list_warnings, write_answer, write_headline
from reports.phrases import strong, to_html, to_markdown, to_plain

from reports.findings import StudyFindings
from rnn_search import import_results, load
from studies.config import StudyConfig


def findings_of(url, name="made"):
    return StudyFindings(results_of(url, name))


def plain_answer(findings):
    return [to_plain(sentence) for sentence in write_answer(findings)]


def make_cells(url, value, name="made", **training):
    """Make a study of two cells, three sizes and two depths; None is a diverged trial."""
    space = {"cell": ["elman", "gru"], "layers": [1, 2], "state_size": [4, 8, 16]}
    raw = {
        "space": space | {"training": training},
        "training": {"sequence_length": 1001, "log_every": 100},
    }
    generator = random.Random(0)
    runs = []
    for params in StudyConfig.model_validate(raw).grid.combinations():
        found = value(params)
        loss = math.nan if found is None else found + generator.gauss(0, 0.004)
        inputs = 1000 * params.get("batch_size", 256)
        updates = 1000 // params.get("update_every", 1)
        runs.append((params, loss, {"steps": 1000, "inputs": inputs, "updates": updates}))
    make_runs(url, name, raw, runs)


@pytest.fixture
def stated(sqlite_url):
    make_stated(sqlite_url)
    return findings_of(sqlite_url, "stated")


def below_larger_ones(findings, effect):
    """Return findings of three changes with a large significant mean, and one more."""
    larger = replace(findings.ranked[0], condition=None, p_adjusted=0.0)
    made = StudyFindings(findings.results)
    made.__dict__["ranked"] = [*(replace(larger) for _ in range(3)), effect]
    assert effect not in made.largest
    return made


def test_change_that_helps_here_and_harms_there_is_named_with_its_condition(stated):
    (reversal,) = stated.reversals
    findings = below_larger_ones(stated, reversal)
    sizes = "+0.299 nats with state size 8, −0.597 with 16"
    clause = f"residual helps or harms, depending on state size ({sizes})"
    assert clause in write_headline([findings])
    assert plain_answer(findings)[1] == f"R{clause[1:]}."


def test_effect_that_only_differs_between_two_values_has_no_direction(stated):
    """It depends on the state size, and is not significant at any one."""
    (reversal,) = stated.reversals
    condition = reversal.condition
    least, greatest = (replace(each, p_adjusted=1.0) for each in condition.levels)
    main = replace(reversal.main, error=9.0)
    clause = (
        "he effect of residual (+0.299 nats with state size 8, −0.597 with 16) differs with state "
        "size, significant at neither"
    )
    effect = replace(
        reversal,
        main=main,
        p_adjusted=1.0,
        condition=replace(condition, main=main, levels=(least, greatest)),
    )
    assert effect.is_significant
    assert plain_answer(below_larger_ones(stated, effect))[1] == f"T{clause}."
    stated.__dict__["ranked"] = [effect]
    assert plain_answer(stated)[0] == f"T{clause}."
    assert f"; t{clause}" in write_headline([stated])
    # Where one of both is significant, it gives the direction.
    one = replace(effect.condition, levels=(least, replace(greatest, p_adjusted=0.01)))
    stated.__dict__["ranked"] = [replace(effect, condition=one)]
    size = "(no significant effect with state size 8, −0.597 nats with 16)"
    assert f"falls most with residual {size}" in plain_answer(stated)[0]


def test_cell_that_diverged_in_more_than_half_of_its_trials_is_named(sqlite_url):
    def make_diverging(name, is_lost):
        make_cells(sqlite_url, lambda p: None if p["cell"] == "elman" and is_lost(p) else 2.0, name)

    make_diverging("half", lambda p: p["layers"] == 1)
    assert list_warnings(findings_of(sqlite_url, "half")) == []
    make_diverging("made", lambda p: p["state_size"] != 8)
    findings, warning = findings_of(sqlite_url), "Elman diverged in 4 of 6 trials"
    assert write_headline([findings]).endswith(f"\nwarning: {warning}")
    assert f"warning: {warning}" in repr(load("made", storage=sqlite_url).effects())


def test_value_that_went_astray_is_named(sqlite_url):
    is_lost = {"cell": "gru", "layers": 2, "state_size": 16}
    make_cells(sqlite_url, lambda p: 1e13 if p == is_lost else 2 - p["state_size"] / 100)
    (warning,) = list_warnings(findings_of(sqlite_url))
    assert warning == (
        "1 of 12 complete trials has a value over 1,000 times as far from the median as half of "
        "them (trial 11: 1e+13 nats per byte): it dominates every mean that contains it"
    )


def test_architecture_whose_replicates_diverged_is_named(sqlite_url):
    make_replicates(sqlite_url)
    results = results_of(sqlite_url, "replicates")
    rows = results.table
    is_lost = (rows["architecture"] == rows["architecture"].iloc[-1]) & (rows["replicate"] > 1)
    lost = rows.assign(
        state=rows["state"].mask(is_lost, "DIVERGED"), value=rows["value"].mask(is_lost)
    )
    (divergence,) = StudyFindings(replace(results, table=lost)).divergences
    assert (divergence.diverged, divergence.ended) == (2, 3)


def test_values_with_unequal_budgets_at_equal_steps_are_named(sqlite_url):
    budgets = {"batch_size": [16, 64], "update_every": [1, 4]}
    make_cells(sqlite_url, lambda p: 2 - p["batch_size"] / 100, **budgets)
    more_data, fewer_updates = list_warnings(findings_of(sqlite_url))
    in_steps = "in the same number of steps"
    data = "4 times as many bytes with batch size 64 as with 16"
    assert more_data == f"larger batches read more data {in_steps}: {data}"
    assert fewer_updates == f"{in_steps}, update every 1 has 4 times as many updates as 4"


def test_labels_round_the_values_of_nuisance_parameters(sqlite_url):
    rows = [{"width": w, "rate": r / 3000, "loss": w + r} for w in (1, 2) for r in (1, 2)]
    import_results(
        pd.DataFrame(rows), storage=sqlite_url, name="rates", value="loss", nuisance=["rate"]
    )
    assert "best: width 1, rate 0.0003333 (" in write_headline([findings_of(sqlite_url, "rates")])


def test_headline_names_the_best_of_comparable_studies(sqlite_url):
    make_study(sqlite_url)
    raw = {"space": {"layers": [1], "state_size": [4]}}
    make_runs(sqlite_url, "better", raw, [(gated_params(3), 1.25, {})])
    make_runs(sqlite_url, "of-other-text", raw, [(gated_params(3), 1.0, {})], text="cd")
    made, better, other = (findings_of(sqlite_url, n) for n in ("made", "better", "of-other-text"))
    headline = write_headline([better, made])
    assert "3×4 no gates, new state (trial 0 of 'better'), 1.2500 nats" in headline
    assert "(trial 0 of 'made'), 1.5000 nats" in write_headline([made, other])
    alone = "best: 1×4 no gates, new state (trial 0), 1.5000 nats per byte, "
    assert write_headline([made]).startswith(alone)


def test_hypothesis_that_holds_next_to_no_significant_change_is_explained(stated):
    findings = StudyFindings(stated.results)
    findings.__dict__["ranked"] = [
        replace(ranked, condition=None, p_adjusted=1.0) for ranked in stated.ranked
    ]
    findings.__dict__["hypotheses"] = stated.holding[:1]
    clause = "“The residual lowers the loss”, a hypothesis, holds by a test of its own"
    assert clause in plain_answer(findings)[1]


def test_names_are_text_in_each_form():
    marked = f"{strong('<b>*a*</b>')} & more"
    assert to_plain(marked) == "<b>*a*</b> & more"
    assert to_html(marked) == "<strong>&lt;b&gt;*a*&lt;/b&gt;</strong> &amp; more"
    assert to_markdown(marked) == r"**\<b\>\*a\*\</b\>** \& more"
