"""Effects by least squares: what they find, what has a reason instead, and how that is said."""

import math

import numpy as np
import pandas as pd
import pytest
from pages import build_from

from reports.formatting import to_sentence
from reports.stats.additive_effects import estimate_additive_effects
from reports.study_reader import read_results
from rnn_search import load
from studies.importing import ImportOptions, import_results
from studies.storage.open import read_storage

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


def test_what_runs_without_a_parameter_have_in_common_changes_no_effect():
    columns, values = draw_sweep(1)
    lacks = np.arange(60) % 3 == 0
    columns["null"] = list_known(np.where(lacks, np.nan, columns["null"]))
    moved = (np.array(values) + 5 * lacks).tolist()
    effects = estimate_additive_effects(columns, values)
    of_moved = estimate_additive_effects(columns, moved)
    for before, after in zip(effects, of_moved, strict=True):
        assert after.mean == pytest.approx(before.mean)
        assert after.error == pytest.approx(before.error)


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
    assert "intervals use the scatter of the pairs" in words
