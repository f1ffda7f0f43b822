"""Effects, interactions and conditional effects: by hand and by brute force."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from factories import make_stated

from reports.charts.comparison_plots import chart_conditional_effects
from reports.phrases import describe_effect
from reports.stats.conditional_effects import compute_conditional_effects, rank_effects
from reports.stats.design import Contrast, find_full_factorial_blocks
from reports.stats.effects import FactorialTable
from reports.trial_table import find_traits
from rnn_search import load

A = Contrast("a", False, True)
SIZE = Contrast("size", 1, 2)


def table_of(rows, parameters=("a", "size")):
    traits = find_traits(parameters)
    return FactorialTable.from_frame(pd.DataFrame(rows), parameters, traits=traits)


def by_hand():
    """The switch lowers the value by 0.5 at size 1, by 0.1 at size 2, and raises it by 0.3."""
    values = {(False, 1): 2.0, (True, 1): 1.5, (False, 2): 1.8, (True, 2): 1.7,
              (False, 3): 1.0, (True, 3): 1.3}  # fmt: skip
    return [{"a": a, "size": size, "value": value} for (a, size), value in values.items()]


def test_interaction_is_the_difference_of_two_differences():
    table = table_of(by_hand())
    found = table.compute_interaction(A, SIZE)
    assert found.mean == pytest.approx(-0.1 - -0.5)
    assert found.pairs == 1
    assert math.isnan(found.low)
    assert table.compute_interaction(SIZE, A).mean == pytest.approx(found.mean)
    named = {(each.first, each.second) for each in table.compute_interactions()}
    assert named == {(A, SIZE), (A, Contrast("size", 2, 3))}


def test_pairs_without_a_value_are_counted_by_the_trial_that_lacks_it():
    rows = by_hand()
    rows[1]["value"] = math.nan  # with the switch, size 1
    rows[2]["value"] = math.nan  # without it, size 2
    table = table_of(rows)
    effect = table.compute_effect(A)
    assert effect.mean == pytest.approx(0.3)
    assert (effect.pairs, effect.improved_count) == (1, 0)
    assert (effect.only_before, effect.only_after, effect.neither) == (1, 1, 0)
    for row in rows[:2]:
        row["value"] = math.nan
    effect = table_of(rows).compute_effect(A)
    assert (effect.only_before, effect.only_after, effect.neither) == (0, 1, 1)


def test_subset_is_selected_by_one_or_several_values_of_a_parameter():
    table = table_of(by_hand())
    assert table.subset({"size": 1}).compute_effect(A).mean == pytest.approx(-0.5)
    assert [effect.contrast for effect in table.subset({"size": 1}).compute_effects()] == [A]
    two = table.subset({"size": [2, 3]})
    assert (two.value_count, two.compute_effect(A).pairs) == (4, 2)
    assert two.compute_effect(A).mean == pytest.approx((-0.1 + 0.3) / 2)
    assert table.subset({"size": [4]}).compute_effects() == []
    none = table_of([{"value": 1.5}], parameters=()).subset({})
    assert (none.value_count, none.compute_effects(), none.compute_interactions()) == (1, [], [])


def test_texts_are_compared_each_two_but_state_sources_as_two_switches():
    rows = [
        {"state_source": source, "engine": source, "value": value}
        for source, value in (("new", 1.0), ("old", 3.0), ("both", 1.25))
    ]
    effects = table_of(rows, ["state_source"]).compute_effects()
    found = {effect.contrast.label: effect.mean for effect in effects}
    assert found == pytest.approx({"new state": 1.25 - 3.0, "old state": 1.25 - 1.0})
    (two,) = table_of(rows[1::-1], ["state_source"]).compute_effects()
    assert (two.contrast.label, two.mean) == ("state source old → new", pytest.approx(-2.0))
    engines = [each.contrast for each in table_of(rows, ["engine"]).compute_effects()]
    pairs = itertools.combinations(("both", "new", "old"), 2)
    assert engines == [Contrast("engine", *pair) for pair in pairs]


@pytest.mark.parametrize("seed", range(5))
def test_effects_equal_a_brute_force_calculation(seed):
    """Of a part of a grid in random order, of which some have no value."""
    parameters, draw = ["a", "b", "size"], np.random.default_rng(seed)
    grid = itertools.product((False, True), (False, True), (1, 2, 3))
    levels = pd.DataFrame(grid, columns=parameters).assign(value=draw.normal(2, 1, 12))
    levels["value"] = levels["value"].mask(draw.random(12) < 0.2)
    levels = levels.sample(9, random_state=seed)
    table = FactorialTable.from_frame(levels, parameters)
    for contrast in table.list_contrasts():
        others = [name for name in parameters if name != contrast.parameter]
        before, after = (
            levels[levels[contrast.parameter] == each].set_index(others)["value"]
            for each in (contrast.before, contrast.after)
        )
        both = before.index.intersection(after.index)
        differences = (after[both] - before[both]).dropna()
        effect = table.compute_effect(contrast)
        assert effect.pairs == len(differences)
        assert effect.missing_pairs == len(both) - len(differences)
        assert effect.improved_count == (differences < 0).sum()
        if len(differences):
            assert effect.mean == pytest.approx(differences.mean())
            assert math.isnan(effect.error) or effect.low <= effect.high


def test_design_with_exclusions_has_full_factorial_blocks():
    rows = [{"a": a, "b": b, "c": c} for a in (1, 2) for b in (1, 2) for c in (1, 2, 3)]
    full = pd.DataFrame(rows)
    assert find_full_factorial_blocks(full, ["a", "b", "c"]) == {}
    parted = full[~((full["a"] == 1) & (full["b"] == 2))]
    # The block a = 1 is contained in b = 1, and b = 2 in a = 2.
    blocks = find_full_factorial_blocks(parted, ["a", "b", "c"])
    assert {name: len(block) for name, block in blocks.items()} == {"a is 2": 6, "b is 1": 6}
    ragged = full.drop(index=[0, 5])
    assert find_full_factorial_blocks(ragged, ["a", "b", "c"]) == {}


GRID = {
    "residual": [False, True],
    "forget_gate": [False, True],
    "output_gate": [False, True],
    "layers": [1, 2],
    "state_size": [8, 16, 32],
}


def make_table(function, drop=None, noise=0.003):
    """Make a table of a value for each combination, but for those to drop."""
    generator = np.random.default_rng(0)
    rows = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    rows = [row for row in rows if not (drop and drop(row))]
    for row in rows:
        row["value"] = 2 + function(row) + generator.normal(scale=noise)
    return FactorialTable.from_frame(pd.DataFrame(rows), list(GRID))


def conditional(table):
    found = compute_conditional_effects(table, table.compute_effects())
    return {(each.contrast.label, each.parameter): each for each in found}


def reversing(row):
    """The forget gate lowers the value by 0.3 without the residual, and raises it by 0.1 with."""
    return row["forget_gate"] * (0.1 if row["residual"] else -0.3) - 0.2 * row["layers"]


def test_effects_within_each_value_are_those_of_the_pairs_there():
    table = make_table(reversing)
    found = conditional(table)["forget gate", "residual"]
    assert [level.value for level in found.levels] == [False, True]
    for level in found.levels:
        within = table.subset({"residual": level.value}).compute_effect(found.contrast)
        assert (level.mean, level.error, level.pairs) == (
            pytest.approx(within.mean), pytest.approx(within.error), within.pairs)  # fmt: skip
    low, high = found.levels
    assert found.difference.mean == pytest.approx(high.mean - low.mean)
    assert found.difference.error == pytest.approx(math.hypot(low.error, high.error))
    assert ("forget gate", "forget_gate") not in conditional(table)


def test_condition_comes_first_where_the_mean_hides_it():
    table = make_table(reversing)
    found = conditional(table)
    place = "forget gate", "residual"
    assert {key for key, each in found.items() if each.has_opposite_signs} == {place}
    rivals = {key for key, each in found.items() if each.rivals_main}
    assert rivals == {place, ("residual", "forget_gate")}
    effects = table.compute_effects()
    ranked = rank_effects(effects, compute_conditional_effects(table, effects))
    texts = {each.main.contrast.label: describe_effect(each) for each in ranked}
    assert list(texts)[:2] == ["residual", "forget gate"]  # by their size, not by their means
    assert "without residual" in texts["forget gate"]
    assert "(−0.2" in texts["layers 1 → 2"]


def test_table_of_effects_names_the_parameter_that_an_effect_depends_on(sqlite_url):
    make_stated(sqlite_url)
    table = load("stated", storage=sqlite_url).effects().table.set_index("parameter")
    assert table.loc["residual", "depends_on"] == "state_size"
    assert list(table.loc["residual", ["least", "greatest"]]) == pytest.approx([-0.6, 0.3], abs=0.1)
    assert table.loc["state_source", "depends_on"].unique().tolist() == [""]


def test_values_are_compared_over_the_contexts_they_have_in_common():
    # Without the residual there are only wide networks, in which the gate has another effect.
    def by_size(row):
        return row["forget_gate"] * (-0.4 if row["state_size"] == 32 else 0.0)

    table = make_table(by_size, drop=lambda row: not row["residual"] and row["state_size"] < 32)
    found = conditional(table)["forget gate", "residual"]
    assert [level.pairs for level in found.levels] == [4, 4]
    assert [level.mean for level in found.levels] == pytest.approx([-0.4, -0.4], abs=0.02)
    assert not found.is_significant
    # Values that share no context are not compared.
    parted = make_table(by_size, drop=lambda row: row["residual"] == (row["state_size"] < 32))
    assert ("forget gate", "residual") not in conditional(parted)


def test_chart_names_the_value_at_each_marker_and_in_the_text_alternative():
    found = list(conditional(make_table(reversing)).values())
    chart = chart_conditional_effects(found, "nats per byte")
    assert "forget gate by residual off: −0.3" in chart.alt_text
    additive = list(conditional(make_table(lambda row: row["layers"])).values())
    assert chart_conditional_effects(additive, "nats") is None
