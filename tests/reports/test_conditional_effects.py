"""Effects within each value of another parameter: by hand, simulated, and in words."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from reports.charts.filtered_effects import chart_conditional_effects
from reports.stats.conditional_effects import compute_conditional_effects, rank_effects
from reports.stats.effects import FactorialTable

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


def test_opposite_signs_and_an_interaction_that_rivals_the_mean_are_found():
    found = conditional(make_table(reversing))
    flagged = {key for key, each in found.items() if each.has_opposite_signs}
    assert flagged == {("forget gate", "residual")}
    rivals = {key for key, each in found.items() if each.rivals_main}
    assert rivals == {("forget gate", "residual"), ("residual", "forget_gate")}


def test_condition_comes_first_where_the_mean_hides_it():
    table = make_table(reversing)
    effects = table.compute_effects()
    ranked = rank_effects(effects, compute_conditional_effects(table, effects))
    texts = {each.main.contrast.label: each.text for each in ranked}
    assert list(texts)[:2] == ["residual", "forget gate"]  # by their size, not by their means
    assert "without residual" in texts["forget gate"]
    assert texts["layers 1 → 2"].startswith("layers 1 → 2 −0.2")


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
    assert "forget gate by residual: off −0.3" in chart.alt_text
    additive = list(conditional(make_table(lambda row: row["layers"])).values())
    assert chart_conditional_effects(additive, "nats") is None
