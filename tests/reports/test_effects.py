"""Effects and interactions: by hand and by brute force."""

import itertools
import math

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reports.stats.contrast import Contrast
from reports.stats.effects import FactorialTable
from reports.stats.factorial_blocks import find_full_factorial_blocks

A = Contrast("a", False, True)
SIZE = Contrast("size", 1, 2)


def table_of(rows, parameters=("a", "size")):
    return FactorialTable.from_frame(pd.DataFrame(rows), parameters)


def by_hand():
    """The switch lowers the value by 0.5 at size 1, by 0.1 at size 2, and raises it by 0.3."""
    values = {(False, 1): 2.0, (True, 1): 1.5, (False, 2): 1.8, (True, 2): 1.7,
              (False, 3): 1.0, (True, 3): 1.3}  # fmt: skip
    return [{"a": a, "size": size, "value": value} for (a, size), value in values.items()]


def test_effects_equal_a_calculation_by_hand():
    table = table_of(by_hand())
    assert table.is_complete
    effects = {effect.contrast: effect for effect in table.compute_effects()}
    assert list(effects) == [A, SIZE, Contrast("size", 2, 3)]
    switch = effects[A]
    assert switch.mean == pytest.approx((-0.5 - 0.1 + 0.3) / 3)
    assert (switch.pairs, switch.improved_count, switch.missing_pairs) == (3, 2, 0)
    assert effects[SIZE].mean == pytest.approx((-0.2 + 0.2) / 2)
    assert effects[Contrast("size", 2, 3)].mean == pytest.approx((-0.8 - 0.4) / 2)


def test_interaction_is_the_difference_of_two_differences():
    table = table_of(by_hand())
    found = table.compute_interaction(A, SIZE)
    assert found.mean == pytest.approx(-0.1 - -0.5)
    assert found.quadruples == 1
    assert math.isnan(found.low)
    assert table.compute_interaction(SIZE, A).mean == pytest.approx(found.mean)
    named = {(each.first, each.second) for each in table.compute_interactions()}
    assert named == {(A, SIZE), (A, Contrast("size", 2, 3))}


def test_pairs_without_a_value_are_counted_by_the_trial_that_lacks_it():
    rows = by_hand()
    rows[1]["value"] = math.nan  # with the switch, size 1
    rows[2]["value"] = math.nan  # without it, size 2
    table = table_of(rows)
    assert not table.is_complete
    effect = table.compute_effect(A)
    assert effect.mean == pytest.approx(0.3)
    assert (effect.pairs, effect.improved_count) == (1, 0)
    assert (effect.only_before, effect.only_after, effect.neither) == (1, 1, 0)
    for row in rows[:2]:
        row["value"] = math.nan
    effect = table_of(rows).compute_effect(A)
    assert (effect.only_before, effect.only_after, effect.neither) == (0, 1, 1)


def test_excluded_combinations_are_not_missing_pairs():
    table = table_of([row for row in by_hand() if (row["a"], row["size"]) != (False, 1)])
    effect = table.compute_effect(A)
    assert table.is_complete
    assert (effect.pairs, effect.missing_pairs) == (2, 0)
    assert effect.mean == pytest.approx((-0.1 + 0.3) / 2)


def test_table_without_parameters_has_no_effects():
    table = table_of([{"value": 1.5}], parameters=())
    assert table.is_complete
    assert (table.value_count, table.compute_effects(), table.compute_interactions()) == (1, [], [])
    assert table.subset({}).value_count == 1


def test_subset_is_selected_by_one_or_several_values_of_a_parameter():
    table = table_of(by_hand())
    assert table.subset({"size": 1}).compute_effect(A).mean == pytest.approx(-0.5)
    assert [effect.contrast for effect in table.subset({"size": 1}).compute_effects()] == [A]
    two = table.subset({"size": [2, 3]})
    assert (two.value_count, two.compute_effect(A).pairs) == (4, 2)
    assert two.compute_effect(A).mean == pytest.approx((-0.1 + 0.3) / 2)
    assert table.subset({"size": [4]}).compute_effects() == []


def test_state_source_is_contrasted_as_two_switches():
    rows = [
        {"state_source": source, "value": value}
        for source, value in (("new", 1.0), ("old", 3.0), ("both", 1.25))
    ]
    effects = table_of(rows, ["state_source"]).compute_effects()
    found = {effect.contrast.label: effect.mean for effect in effects}
    assert found == pytest.approx({"new state": 1.25 - 3.0, "old state": 1.25 - 1.0})
    (two,) = table_of(rows[1::-1], ["state_source"]).compute_effects()
    assert (two.contrast.label, two.mean) == ("state source old → new", pytest.approx(-2.0))


@st.composite
def random_tables(draw):
    parameters = {"a": [False, True], "b": [False, True], "size": [1, 2, 3]}
    combinations = list(itertools.product(*parameters.values()))
    selected = draw(st.lists(st.sampled_from(combinations), min_size=2, unique=True))
    values = st.one_of(st.just(math.nan), st.floats(1, 4))
    return [
        dict(zip(parameters, combination, strict=True)) | {"value": draw(values)}
        for combination in draw(st.permutations(selected))
    ]


@settings(
    deadline=None,
    database=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(random_tables())
def test_effects_equal_a_brute_force_calculation(rows):
    parameters = ["a", "b", "size"]
    table = table_of(rows, parameters)

    levels = pd.DataFrame(rows)
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
