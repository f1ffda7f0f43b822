"""What switches are worth: by hand, against a brute-force count, and on published results."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from benchmarks.published import VARIABLE, load_published, published_file
from reports.data.results import read_results
from reports.stats.effects import Contrast, FactorialTable, interval
from studies.storage.open import read_storage

A = Contrast("a", False, True)
SIZE = Contrast("size", 1, 2)


def grid_of(rows, parameters=("a", "size")):
    return FactorialTable.from_frame(pd.DataFrame(rows), parameters)


def by_hand():
    """The switch helps by 0.5 at size 1 and by 0.1 at size 2; at size 3 it harms by 0.3."""
    values = {(False, 1): 2.0, (True, 1): 1.5, (False, 2): 1.8, (True, 2): 1.7,
              (False, 3): 1.0, (True, 3): 1.3}  # fmt: skip
    return [{"a": a, "size": size, "value": value} for (a, size), value in values.items()]


def test_effects_of_a_small_grid_are_those_worked_out_by_hand():
    grid = grid_of(by_hand())
    assert grid.is_complete
    effects = {effect.contrast: effect for effect in grid.effects()}
    assert list(effects) == [A, SIZE, Contrast("size", 2, 3)]
    switch = effects[A]
    assert switch.mean == pytest.approx((-0.5 - 0.1 + 0.3) / 3)
    assert (switch.pairs, switch.improved_count, switch.missing_pairs) == (3, 2, 0)
    assert effects[SIZE].mean == pytest.approx((-0.2 + 0.2) / 2)
    assert effects[Contrast("size", 2, 3)].mean == pytest.approx((-0.8 - 0.4) / 2)


def test_an_interaction_is_the_difference_of_two_differences():
    grid = grid_of(by_hand())
    found = grid.interaction(A, SIZE)
    assert found.mean == pytest.approx(-0.1 - -0.5)
    assert found.quadruples == 1
    assert math.isnan(found.low)
    assert grid.interaction(SIZE, A).mean == pytest.approx(found.mean)
    named = {(each.first, each.second) for each in grid.interactions()}
    assert named == {(A, SIZE), (A, Contrast("size", 2, 3))}


def test_pairs_that_lack_a_value_are_left_out_and_counted_by_who_lacks_it():
    rows = by_hand()
    rows[1]["value"] = math.nan  # with the switch, size 1
    rows[2]["value"] = math.nan  # without it, size 2
    grid = grid_of(rows)
    assert not grid.is_complete
    effect = grid.effect(A)
    assert effect.mean == pytest.approx(0.3)
    assert (effect.pairs, effect.improved_count) == (1, 0)
    assert (effect.only_before, effect.only_after, effect.neither) == (1, 1, 0)
    for row in rows[:2]:
        row["value"] = math.nan
    effect = grid_of(rows).effect(A)
    assert (effect.only_before, effect.only_after, effect.neither) == (0, 1, 1)


def test_points_that_the_design_excludes_are_not_missing():
    grid = grid_of([row for row in by_hand() if (row["a"], row["size"]) != (False, 1)])
    effect = grid.effect(A)
    assert grid.is_complete
    assert (effect.pairs, effect.missing_pairs) == (2, 0)
    assert effect.mean == pytest.approx((-0.1 + 0.3) / 2)


def test_where_nothing_varies_there_is_nothing_to_tell():
    grid = grid_of([{"value": 1.5}], parameters=())
    assert grid.is_complete
    assert (grid.points, grid.effects(), grid.interactions()) == (1, [], [])
    assert grid.where({}, below=1.0).points == 0


def test_a_part_of_the_grid_is_chosen_by_value_and_by_loss():
    grid = grid_of(by_hand())
    assert grid.where({"size": 1}).effect(A).mean == pytest.approx(-0.5)
    assert [effect.contrast for effect in grid.where({"size": 1}).effects()] == [A]
    below = grid.where({}, below=1.75)
    assert below.points == 4
    effect = below.effect(A)
    assert (effect.pairs, effect.only_after) == (1, 2)
    assert effect.mean == pytest.approx(0.3)


def test_a_state_source_is_two_switches():
    rows = [
        {"state_source": source, "value": value}
        for source, value in (("new", 1.0), ("old", 3.0), ("both", 1.25))
    ]
    effects = grid_of(rows, ["state_source"]).effects()
    found = {effect.contrast.label: effect.mean for effect in effects}
    assert found == pytest.approx({"new state": 1.25 - 3.0, "old state": 1.25 - 1.0})
    for order in (rows[:2], rows[1::-1]):  # whichever did better, and comes first
        (two,) = grid_of(order, ["state_source"]).effects()
        assert two.contrast.label == "state source old → new"
        assert two.mean == pytest.approx(-2.0)
    (both,) = grid_of([rows[2], rows[0]], ["state_source"]).effects()
    assert (both.contrast.label, both.mean) == ("old state", pytest.approx(0.25))


@st.composite
def random_grids(draw):
    parameters = {"a": [False, True], "b": [False, True], "size": [1, 2, 3]}
    points = list(itertools.product(*parameters.values()))
    kept = draw(st.lists(st.sampled_from(points), min_size=2, unique=True))
    values = st.one_of(st.just(math.nan), st.floats(1, 4))
    return [
        dict(zip(parameters, point, strict=True)) | {"value": draw(values)}
        for point in draw(st.permutations(kept))
    ]


@settings(
    deadline=None,
    database=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(random_grids())
def test_effects_and_interactions_equal_a_brute_force_count(rows):
    parameters = ["a", "b", "size"]
    grid = grid_of(rows, parameters)

    def partner(row, **changes):
        wanted = {name: row[name] for name in parameters} | changes
        found = [other for other in rows if all(other[n] == v for n, v in wanted.items())]
        return found[0]["value"] if found else None

    for contrast in grid.contrasts():
        name = contrast.parameter
        differences, lacking = [], 0
        for row in rows:
            if row[name] == contrast.before:
                after = partner(row, **{name: contrast.after})
                if after is None:
                    continue
                if math.isnan(row["value"]) or math.isnan(after):
                    lacking += 1
                else:
                    differences.append(after - row["value"])
        effect = grid.effect(contrast)
        assert effect.pairs == len(differences)
        assert effect.missing_pairs == lacking
        assert effect.improved_count == sum(difference < 0 for difference in differences)
        if differences:
            assert effect.mean == pytest.approx(sum(differences) / len(differences))
            assert len(differences) == 1 or effect.low <= effect.high
    for first, second in itertools.permutations(grid.contrasts(), 2):
        if first.parameter == second.parameter:
            continue
        found = []
        for row in rows:
            if row[first.parameter] == first.before and row[second.parameter] == second.before:
                f, s = {first.parameter: first.after}, {second.parameter: second.after}
                four = [partner(row), partner(row, **f), partner(row, **s), partner(row, **f, **s)]
                if None not in four and not any(map(math.isnan, four)):
                    found.append((four[3] - four[2]) - (four[1] - four[0]))
        interaction = grid.interaction(first, second)
        assert interaction.quadruples == len(found)
        if found:
            assert interaction.mean == pytest.approx(sum(found) / len(found), abs=1e-9)


def test_the_interval_of_many_numbers_is_the_accelerated_bootstraps():
    sample = np.random.default_rng(0).exponential(size=120)
    known = bootstrap((sample,), np.mean, method="BCa", n_resamples=20_000, random_state=1)
    low, high = interval(sample)
    width = known.confidence_interval.high - known.confidence_interval.low
    assert low == pytest.approx(known.confidence_interval.low, abs=0.05 * width)
    assert high == pytest.approx(known.confidence_interval.high, abs=0.05 * width)
    assert interval(sample[::-1]) == (low, high)


def test_what_is_noise_alone_is_rarely_called_clear():
    generator = np.random.default_rng(0)

    def clear(pairs):
        values = generator.normal(size=2 * pairs)
        rows = [{"a": i % 2 == 1, "size": i // 2, "value": value} for i, value in enumerate(values)]
        return grid_of(rows).effect(A).is_significant

    assert not any(clear(7) for _ in range(50))
    # One in twenty, by the interval's own promise: 300 of them have a standard error of 1.3%.
    assert sum(clear(8) for _ in range(300)) / 300 < 0.09
    assert sum(clear(24) for _ in range(300)) / 300 < 0.09


def test_an_interval_of_one_number_is_none_and_of_equal_numbers_no_wider_than_they_are():
    assert all(map(math.isnan, interval(np.array([1.0]))))
    assert all(map(math.isnan, interval(np.array([]))))
    assert interval(np.array([-0.5, -0.5, -0.5])) == (-0.5, -0.5)
    # All on one side, as a switch that always helps is: no infinity comes of it.
    low, high = interval(np.array([-0.5, -0.4]))
    assert -0.5 <= low <= high <= -0.4


PUBLISHED = {
    # pairs, mean in nats, share of pairs in which it is better
    "new state": (144, -0.460, 0.98),
    "old state": (144, 0.013, None),
    "residual": (144, -0.421, None),
    "input gate": (216, -0.141, None),
    "output gate": (216, -0.068, 0.70),
    "forget gate": (216, -0.035, None),
    "state gate": (216, 0.000, None),
}


@pytest.mark.skipif(not published_file(), reason=f"{VARIABLE} names no file of published results")
def test_effects_of_the_published_results(sqlite_url):
    load_published(published_file(), sqlite_url)
    results = read_results(read_storage(sqlite_url), "published", with_curves=())
    grid = FactorialTable.from_frame(results.table, results.axes)
    assert grid.is_complete
    found = {effect.contrast.label: effect for effect in grid.effects()}
    for label, (pairs, mean, share) in PUBLISHED.items():
        effect = found[label]
        assert effect.pairs == pairs, label
        assert effect.mean == pytest.approx(mean, abs=0.0005), label
        assert share is None or effect.improved_count / pairs == pytest.approx(share, abs=0.005), (
            label
        )
