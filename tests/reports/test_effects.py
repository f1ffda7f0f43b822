"""Effects and conditional effects, by hand, by brute force and by least squares; their noise."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from pages import build_from
from scipy import stats

from reports.charts.comparison_plots import chart_conditional_effects
from reports.formatting import label_change, to_sentence
from reports.stats.additive_effects import estimate_additive_effects
from reports.stats.conditional_effects import compute_conditional_effects, rank_effects
from reports.stats.design import Contrast
from reports.stats.differences import Method
from reports.stats.effects import FactorialTable
from reports.stats.power import find_smallest_effect, find_smallest_share
from reports.study_reader import read_results
from rnn_search import load
from studies.importing import ImportOptions, import_results
from studies.measure import TEXT
from studies.space import REPLICATE
from studies.storage.open import read_storage
from studies.traits import find_traits

A = Contrast("a", False, True)


def table_of(rows, parameters=("a", "size")):
    traits = find_traits(parameters)
    return FactorialTable.from_frame(pd.DataFrame(rows), parameters, traits=traits)


def test_state_sources_are_compared_as_two_switches_if_there_are_three():
    rows = [{"state_source": "new", "value": 1.0}, {"state_source": "old", "value": 3.0}]
    both = {"state_source": "both", "value": 1.25}
    effects = table_of([*rows, both], ["state_source"]).compute_effects()
    found = {label_change(effect.contrast): effect.mean for effect in effects}
    assert found == pytest.approx({"new state": 1.25 - 3.0, "old state": 1.25 - 1.0})
    (two,) = table_of(rows, ["state_source"]).compute_effects()
    assert (label_change(two.contrast), two.mean) == ("state source old → new", pytest.approx(-2.0))


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
            levels[levels[contrast.parameter] == value].set_index(others)["value"]
            for value in (contrast.before, contrast.after)
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
    return {(label_change(effect.contrast), effect.parameter): effect for effect in found}


def reversing(row):
    """The forget gate lowers the value by 0.3 without the residual, and raises it by 0.1 with."""
    return row["forget_gate"] * (0.1 if row["residual"] else -0.3) - 0.2 * row["layers"]


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


def test_condition_is_the_one_with_the_largest_difference():
    """The gate's sign depends on the size, and what it does more so on the residual."""

    def by_both(row):
        effect = 0.05 if row["state_size"] == 8 else -0.05
        return row["forget_gate"] * (effect if row["residual"] else -0.5)

    table = make_table(by_both, drop=lambda row: not row["residual"] and row["state_size"] < 32)
    effects = table.compute_effects()
    found = compute_conditional_effects(table, effects)
    (by_size,) = (
        conditional
        for conditional in found
        if (conditional.contrast.parameter, conditional.parameter) == ("forget_gate", "state_size")
    )
    assert by_size.has_opposite_signs
    ranked = rank_effects(effects, found)
    (gate,) = (effect for effect in ranked if effect.main.contrast.parameter == "forget_gate")
    assert gate.condition.parameter == "residual"
    means = [level.mean for level in gate.condition.levels]
    assert means == pytest.approx([-0.5, -0.05], abs=0.01)


def test_chart_names_the_value_at_each_marker():
    found = list(conditional(make_table(reversing)).values())
    chart = chart_conditional_effects(found, TEXT)
    (trace,) = (trace for trace in chart.figure.data if trace.y[0].startswith("forget gate"))
    assert trace.text == ("off", "on")
    assert trace.customdata[0].startswith("forget gate by residual off: −0.3")
    additive = list(conditional(make_table(lambda row: row["layers"])).values())
    assert chart_conditional_effects(additive, TEXT) is None


# ------------------------------------------------------------------ errors of the means


def switched(differences):
    """Return a table of the switch in several contexts and replicates, with these differences."""
    rows = [
        {"a": a, "size": size, REPLICATE: run, "value": 2.0 + size + a * difference}
        for size, runs in enumerate(differences)
        for run, difference in enumerate(runs)
        for a in (False, True)
    ]
    return table_of(rows, ("a", "size", REPLICATE))


@pytest.mark.parametrize(("pairs", "reason"), [(4, ""), (3, "too few pairs to test: 3 of 4")])
def test_fewer_than_four_differences_are_no_test(pairs, reason):
    effect = switched([[1 + size % 3 / 10] for size in range(pairs)]).compute_effect(A)
    assert (effect.method, effect.reason) == (Method.PAIRS, reason)
    assert effect.is_significant == (pairs == 4)


def test_one_or_two_seeds_are_tested_by_student_s_t_over_all_differences():
    differences = np.random.default_rng(0).normal(1, 1, size=(6, 2))
    effect = switched(differences).compute_effect(A)
    expected = stats.ttest_1samp(differences.ravel(), 0)
    assert (effect.pairs, effect.seeds, effect.differences) == (6, 2, 12)
    assert effect.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert (effect.low, effect.high) == pytest.approx(tuple(interval))


def test_three_seeds_are_tested_by_the_scatter_of_the_seeds_alone():
    """What the effect varies between architectures is no error; that of a lone run is pooled."""
    runs = [[1.0, 1.1, 0.8], [5.0, 5.3, 5.1], [3.0]]
    effect = switched(runs).compute_effect(A)
    assert (effect.pairs, effect.seeds, effect.method) == (3, 3, Method.SEEDS)
    assert effect.mean == pytest.approx(np.mean([np.mean(of_pair) for of_pair in runs]))
    first, second = (np.var(of_pair, ddof=1) for of_pair in runs[:2])
    parts = np.array([first, second]) * (1 / 3 + 1 / 2) / 9
    assert effect.error**2 == pytest.approx(parts.sum())
    assert effect.degrees == pytest.approx(parts.sum() ** 2 / (parts**2 / 2).sum())
    assert (effect.reason, effect.improved_count) == ("", 0)
    single = switched([[1.0, 1.1, 0.8]]).compute_effect(A)
    assert single.reason == "too few pairs of runs to test: 3 of 4"


def test_from_32_differences_other_parameters_are_removed_and_from_64_their_products():
    """The effect differs by size and by forget gate, in the larger grid by both together."""
    grid = {"a": [0, 1], "b": [0, 1], "size": [1, 2, 3, 4], "c": [0, 1], "d": [0, 1]}

    def estimate(grid, function):
        rows = [
            dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
        ]
        draw = np.random.default_rng(0)
        for row in rows:
            row["value"] = row["a"] * function(row) + 0.01 * draw.normal()
        return FactorialTable.from_frame(pd.DataFrame(rows), list(grid)).compute_effect(
            Contrast("a", 0, 1)
        )

    def add(row):
        return 1 + row["b"] + row["size"]

    def multiply(row):
        return 1 + row["b"] * row["size"]

    small = estimate({name: grid[name] for name in ("a", "b", "size", "c")}, add)
    medium = estimate(grid, add)
    large = estimate({**grid, "e": [0, 1]}, multiply)
    assert [effect.pairs for effect in (small, medium, large)] == [16, 32, 64]
    assert small.error > 0.2
    assert medium.error == pytest.approx(0.01 * math.sqrt(2 / 32), rel=0.4)
    assert large.error == pytest.approx(0.01 * math.sqrt(2 / 64), rel=0.4)
    assert medium.degrees == 32 - 1 - 1 - 3 - 1 - 1
    assert estimate(grid, multiply).error > 0.05


# ------------------------------------------------------------------ effects by least squares


ASSUMPTION = "no two runs differ in one parameter alone: effects are taken to add up"

TRUTH = {"rate": 0.4, "optimizer": 0.1, "norm": -0.05, "momentum": -0.1, "null": 0.0}
"""Effects; that of the rate is from 1e-5 to 0.1, that of the optimizer at the average momentum."""


def draw_sweep(seed: int, count: int = 60) -> tuple[dict, list[float]]:
    """Draw a sweep; its noise is larger with SGD, which alone has a momentum, and grows with it."""
    generator = np.random.default_rng(seed)
    is_sgd = np.arange(count) % 2 == 0
    momentum = generator.permutation(np.linspace(0, 1, count // 2))
    columns = {
        "rate": 10 ** generator.permutation(np.linspace(-5, -1, count)),
        "optimizer": np.where(is_sgd, "sgd", "adam"),
        "norm": generator.random(count) < 0.5,
        "momentum": np.where(is_sgd, np.repeat(momentum, 2), np.nan),
        "null": generator.uniform(size=count),
    }
    values = 0.1 * np.log10(columns["rate"]) + 0.1 * is_sgd - 0.05 * columns["norm"]
    values -= 0.1 * np.nan_to_num(columns["momentum"] - 0.5)
    values += 0.02 * (1 + 2 * np.nan_to_num(columns["momentum"])) * generator.normal(size=count)
    return {name: list_known(column) for name, column in columns.items()}, values.tolist()


def list_known(column: np.ndarray) -> list:
    """Return the values of a column, None where a run lacks one."""
    return [None if value != value else value for value in column.tolist()]


def test_intervals_of_planted_effects_cover_them_under_unequal_noise():
    covered = dict.fromkeys(TRUTH, 0)
    for seed in range(200):
        for effect in estimate_additive_effects(*draw_sweep(seed)):
            name = effect.contrast.parameter
            covered[name] += effect.low <= TRUTH[name] <= effect.high
    # At 95% a count below 180 has a probability of 0.1%; HC3 covers slightly more.
    assert all(180 <= count <= 199 for count in covered.values()), covered


@pytest.mark.parametrize(
    ("column", "count", "reason"),
    [
        (["a", "b"] * 30, 60, "it cannot be separated from other parameters"),
        (["a"] * 58 + ["b"] * 2, 60, "fewer than 5 runs have one of the values"),
        (list(range(60)), 10, "too few runs: 10 of 14"),
        ([1e308, -1e308] * 3 + list(range(54)), 60, ""),
    ],
)
def test_effect_that_is_not_identified_has_a_reason(column, count, reason):
    columns, values = draw_sweep(1)
    columns["added"] = column
    columns = {name: found[:count] for name, found in columns.items()}
    *_, effect = estimate_additive_effects(columns, values[:count])
    assert effect.contrast.parameter == "added"
    assert effect.reason == reason
    assert math.isnan(effect.low) == (effect.p == 1) == bool(reason)


@pytest.mark.usefixtures("without_optuna_figures")
def test_imported_sweep_has_effects_and_says_what_they_assume(sqlite_url):
    columns, values = draw_sweep(2)
    frame = pd.DataFrame(columns).assign(value=values)
    import_results(sqlite_url, frame, ImportOptions(parameters=list(columns)), name="sweep")
    page = build_from(read_results(read_storage(sqlite_url), "sweep"))
    assert page.words.count(ASSUMPTION) == 1
    assert page.words.count(to_sentence(ASSUMPTION)) == 1
    effects = load("sweep", storage=sqlite_url).effects()
    assert effects.answer[0] == ASSUMPTION
    table = effects.to_frame().set_index("parameter")
    assert table.loc[["rate", "optimizer"], "significant"].all()
    assert not table.loc["null", "significant"]
    assert (table["pairs"] == 0).all()
    assert len(effects.plot().data[0].y) == len(TRUTH)


@pytest.mark.usefixtures("without_optuna_figures")
def test_only_parameters_that_no_pairs_compare_are_said_to_be_by_least_squares(sqlite_url):
    generator = np.random.default_rng(0)
    rate = np.repeat(generator.uniform(size=30), 2)
    norm = np.tile([True, False], 30)
    value = rate - 0.5 * norm + 0.02 * generator.normal(size=60)
    frame = pd.DataFrame({"rate": rate, "norm": norm, "value": value})
    import_results(sqlite_url, frame, ImportOptions(), name="mixed")
    effects = load("mixed", storage=sqlite_url).effects()
    pairs = effects.to_frame().set_index("parameter")["pairs"]
    assert pairs.to_dict() == {"norm": 30, "rate": 0}
    words = build_from(read_results(read_storage(sqlite_url), "mixed")).words
    assert ASSUMPTION not in words
    clause = "effects of rate are by least squares: they are taken to add up"
    assert effects.answer[0] == clause
    assert to_sentence(clause) in words
    assert "over all pairs of trials that differ in this alone" in words
    assert "Intervals rest on the differences between the pairs" in words


# ------------------------------------------------------------------ the smallest effect


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (4, [3.0, 1.6, 1.43, 0.97]),
        (8, [1.6, 1.1, 0.91, 0.66]),
        (16, [1.1, 0.72, 0.61, 0.45]),
        (32, [0.72, 0.50, 0.42, 0.32]),
    ],
)
def test_smallest_effect_falls_with_pairs_and_seeds(pairs: int, expected: list[float]) -> None:
    found = [find_smallest_effect(pairs, seeds) for seeds in (1, 2, 3, 5)]
    assert found == pytest.approx(expected, rel=0.04)


def test_smallest_effect_is_found_in_four_of_five_simulated_studies() -> None:
    rng = np.random.default_rng(0)
    effect = find_smallest_effect(8, 1)
    runs = rng.normal(size=(2, 8, 4000))
    p = stats.ttest_rel(runs[1] + effect, runs[0]).pvalue
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    ("runs", "points"), [(8, 74), (12, 60), (16, 51), (24, 42), (48, 29), (96, 21)]
)
def test_smallest_share_falls_with_runs(runs: int, points: int) -> None:
    assert 100 * find_smallest_share(runs) == pytest.approx(points, abs=2)


def test_too_few_pairs_find_nothing() -> None:
    assert find_smallest_effect(3, 1) == math.inf
    assert find_smallest_effect(2, 2) < math.inf
    assert find_smallest_share(4) == math.inf
    assert find_smallest_share(5) < 1
