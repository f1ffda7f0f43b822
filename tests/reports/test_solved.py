"""Which architectures are solved, and which changes solve more of them."""

import math

import pytest
from factories import gated_params, make_pruned, make_runs, make_study, results_of
from pages import build_from
from scipy.stats import binom

from reports.analysis.solved import compare_solved, count_solved
from rnn_search import load

LAYERS = list(range(1, 13))


SPACE = {"layers": LAYERS, "state_size": [4], "residual": [False, True]}


def make_grid(url, solved_by, runs=1, **raw):
    """Store networks of twelve depths with and without a residual; below 1.5 they are solved."""
    trials = []
    for layers in LAYERS:
        for residual in (False, True):
            for run in range(1, runs + 1):
                params = gated_params(layers, residual=residual)
                if runs > 1:
                    params["replicate"] = run
                trials.append((params, 1.0 if solved_by(layers, residual, run) else 2.0, {}))
    make_runs(url, "made", {"report_threshold": 1.5} | (raw or {"space": SPACE}), trials)


def by_parameter(changes):
    return {contrast.parameter: change for contrast, change in changes.items()}


def test_change_solves_pairs_by_an_exact_test_corrected_for_all_changes(sqlite_url):
    # Of twelve pairs the residual solves eight and loses one; one is solved on both sides.
    make_grid(sqlite_url, lambda layers, residual, _: (1 < layers < 11) if residual else layers < 3)
    results = results_of(sqlite_url)
    changes = compare_solved(results)
    residual = by_parameter(changes)["residual"]
    assert (residual.before, residual.after) == (2 / 12, 9 / 12)
    assert len(changes) == 12  # the others are of one depth and the next
    assert residual.p == pytest.approx(12 * 2 * binom.cdf(1, 9, 0.5))
    assert count_solved(results) == (11, 24)
    table = load("made", storage=sqlite_url).effects().to_frame().set_index("parameter")
    row = table.loc["residual"]
    assert (row["solved_before"], row["solved_after"]) == (2 / 12, 9 / 12)
    assert row["solved_p"] == residual.p


@pytest.mark.usefixtures("without_optuna_figures")
def test_page_says_the_share_once_and_has_a_column_of_changes(sqlite_url):
    make_grid(sqlite_url, lambda _, residual, __: residual)
    make_study(sqlite_url, "without", report_threshold=None)
    page, without = (build_from(results_of(sqlite_url, name)) for name in ("made", "without"))
    assert page.words.count("Solved 12 of 24 validation loss below 1.5 nats per byte") == 1
    assert "0% → 100% *" in page.words
    assert "solved" not in without.words.lower()
    assert "solved_p" not in load("without", storage=sqlite_url).effects().to_frame()


def test_diverged_trial_is_not_solved_and_an_unfinished_one_is_unknown(sqlite_url):
    space = {"layers": [1, 2, 3], "state_size": [4], "residual": [False, True]}
    values = [1.0, math.nan, 2.0, 1.0, 1.0, None]
    grid = [(layers, residual) for layers in (1, 2, 3) for residual in (False, True)]
    runs = [
        (gated_params(layers, residual=residual), value, {})
        for (layers, residual), value in zip(grid, values, strict=True)
    ]
    make_runs(sqlite_url, "made", {"space": space, "report_threshold": 1.5}, runs)
    results = results_of(sqlite_url)
    assert count_solved(results) == (3, 5)
    assert by_parameter(compare_solved(results))["residual"] == (0.5, 0.5, 1)


def test_best_of_several_trials_is_unknown_while_it_may_become_solved(sqlite_url):
    """Of a cell with a switch the best is compared."""
    space = [
        {"cell": ["gated"], "layers": [1], "state_size": [4, 8], "residual": [False, True]},
        {"cell": ["gru"], "layers": [1], "state_size": [4, 8]},
    ]
    gru = {"cell": "gru", "layers": 1}
    runs = [
        (gated_params(1, 4, residual=False, cell="gated"), 2.0, {}),
        (gated_params(1, 8, residual=False, cell="gated"), 2.0, {}),
        (gated_params(1, 8, residual=True, cell="gated"), 1.0, {}),
        (gru | {"state_size": 4}, 2.0, {}),
        (gru | {"state_size": 8}, 2.0, {}),
        (gated_params(1, 4, residual=True, cell="gated"), None, {}),
    ]
    make_runs(sqlite_url, "made", {"space": space, "report_threshold": 1.5}, runs)
    changes = by_parameter(compare_solved(results_of(sqlite_url)))
    assert changes["cell"] == (1, 0, 1)  # the pair of size 4 is unknown


def test_replicated_architecture_is_solved_if_all_of_its_runs_are(sqlite_url):
    raw = {"refinement": {"source": "none", "replicates": 3}}
    # Without a residual none is solved, and with it one run of one depth fails.
    make_grid(
        sqlite_url,
        lambda layers, residual, run: residual and (layers > 1 or run < 3),
        runs=3,
        **raw,
    )
    assert count_solved(results_of(sqlite_url)) == (11, 24)


def test_pruned_study_has_none(sqlite_url):
    make_pruned(sqlite_url, report_threshold=2.0)
    results = results_of(sqlite_url)
    assert compare_solved(results) == {}
    assert count_solved(results) is None
