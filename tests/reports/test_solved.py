"""Runs that are solved, by the task or by a threshold of the study, and what changes that."""

import math
from contextlib import closing

import pytest
from factories import created_once, gated_params, make_pruned, make_runs, make_study, results_of
from pages import build_from, read_answer

from reports.analysis.solved import compare_by_threshold
from reports.charts.network_plots import chart_states, chart_windows
from reports.findings import StudyFindings
from rnn_search import load
from studies.best import BestReader
from studies.config import StudyConfig
from studies.storage.open import load_study, read_storage

TASK = {"source": "copy:10", "steps": 30, "inputs": 10, "outputs": 8, "reads_tokens": True,
        "predicts_classes": True, "loss": "cross-entropy", "metrics": {"accuracy": "maximize"},
        "solved": {"accuracy": 0.9}}  # fmt: skip


@created_once
def make_solved(url, losses, replicates=1, space=(), task=TASK, **raw):
    """Store a study of a task, of networks that are solved if their loss is below 0.1.

    Args:
        url: URL of the storage.
        losses: loss of each trial of the grid, in its order; NaN for one that diverged.
        replicates: number of runs of each network.
        space: further parameters of the grid.
        task: record of the task.
        raw: further settings.
    """
    grid = {"layers": [1], "state_size": [4], "residual": [False, True], "replicates": replicates}
    grid |= dict(space)
    config = {"space": grid, "task": {"source": "copy:10"}, "task_record": task} | raw
    if "refinement" in raw:
        del config["space"]
    trials = grid_of(grid)
    assert len(trials) == len(losses)
    runs = []
    for params, loss in zip(trials, losses, strict=True):
        metrics = {"accuracy": 0.95 if loss < 0.1 else 0.4}
        runs.append((params, loss, {"validation_loss": loss, "metrics": metrics}))
    make_runs(url, "made", config, runs)


def grid_of(space):
    """Return the parameters of a grid: by depth, then residual, then replicate."""
    return [
        gated_params(layers, residual=residual) | {"replicate": run}
        for layers in space["layers"]
        for residual in space["residual"]
        for run in range(space["replicates"])
    ]


def effect_of(url, parameter="residual"):
    frame = load("made", storage=url).effects().to_frame()
    return frame.set_index("parameter").loc[parameter]


DEPTHS = list(range(1, 9))
FAILS, SOLVES = 0.6, 0.01


# ------------------------------------------------------------------ a task that says when


def test_option_that_helps_in_eight_of_eight_pairs_is_significant(sqlite_url):
    """Losses of failed runs scatter so that their mean difference has a wide interval."""
    losses = [loss for depth in DEPTHS for loss in (0.11 + 3.0 * (depth == 8), SOLVES / depth)]
    make_solved(sqlite_url, losses, space={"layers": DEPTHS})
    effect = effect_of(sqlite_url)
    assert (effect["solved_before"], effect["solved_after"], effect["effect"]) == (0, 1, 1)
    assert (effect["rescued"], effect["ruined"], effect["pairs"]) == (8, 0, 8)
    assert effect["p"] == pytest.approx(8 * 2**-8)  # of eight changes: seven are of the depth
    assert effect["significant"]
    assert (effect["lower"], effect["lower_of"]) == (8, 8)
    assert effect["lower_p"] == pytest.approx(8 * 2 * 2**-8)
    answer = read_answer(StudyFindings(results_of(sqlite_url)))
    assert answer[:2] == [
        "8 of 16 runs are solved",
        "residual rescues 8 of 8 pairs of runs and ruins 0: solved 0% → 100%, +100% [+43%, +100%]",
    ]


def test_option_that_lowers_the_losses_of_failed_runs_is_named(sqlite_url):
    depths = list(range(1, 13))
    losses = [loss for depth in depths for loss in (FAILS, FAILS - depth / 100)]
    make_solved(sqlite_url, losses, space={"layers": depths})
    answer = read_answer(StudyFindings(results_of(sqlite_url)))
    assert answer[0] == "0 of 24 runs are solved"
    assert "residual has the lower loss in 12 of 12 pairs of runs" in answer


def test_runs_of_one_architecture_have_no_mean(sqlite_url):
    runs = [0.0006, 0.003, 0.675]
    make_solved(sqlite_url, [0.7, 0.8, 0.9, *runs], replicates=3)
    findings = StudyFindings(results_of(sqlite_url))
    best, other = findings.summary.entries
    assert (best.loss, best.low, best.high) == (0.003, 0.0006, 0.675)
    assert (best.solved, other.solved) == ((2, 3), (0, 3))
    described = "solved 2 of 3 [21%, 94%], median validation cross-entropy 0.003 nats per target"
    assert f"{described}, from 0.0006 to 0.675" in read_answer(findings)[-1]
    with closing(read_storage(sqlite_url)) as storage:
        study = load_study(storage, "made")
        stored = BestReader(study, storage, findings.results.config).read()
    assert stored.text == "solved 2 of 3, median 0.003 nats per target, validation cross-entropy"


def test_noise_of_an_architecture_that_failed_is_not_that_of_others(sqlite_url):
    losses = [0.0003, 0.0009, 0.675, 0.005, 0.015, 0.010]
    make_solved(sqlite_url, losses, replicates=3, refinement={"source": "none", "replicates": 3})
    findings = StudyFindings(results_of(sqlite_url))
    assert not findings.summary.has_verdicts
    answer = read_answer(findings)
    assert answer[0] == "5 of 6 runs are solved, all runs of 1 of 2 architectures"
    assert answer[1].startswith("architectures cannot be tested against each other: 4 seeds")


def test_architecture_that_solves_significantly_fewer_runs_is_named(sqlite_url):
    refinement = {"source": "none", "replicates": 4}
    make_solved(sqlite_url, [FAILS] * 4 + [SOLVES] * 4, replicates=4, refinement=refinement)
    verdicts = load("made", storage=sqlite_url).verdicts()
    frame = verdicts.to_frame().set_index("architecture")
    assert frame["verdict"].tolist() == ["", "fewer solved"]
    assert frame[["solved", "ended"]].to_numpy().tolist() == [[4, 4], [0, 4]]
    assert "1 of 2 architectures solve significantly fewer than another" in repr(verdicts)


def test_diverged_run_is_not_solved_and_its_loss_is_the_highest(sqlite_url):
    losses = [FAILS, math.nan, FAILS, math.nan, SOLVES, math.nan]
    make_solved(sqlite_url, losses, replicates=3)
    effect = effect_of(sqlite_url)
    assert (effect["rescued"], effect["ruined"], effect["lower"]) == (1, 0, 1)
    assert effect["solved_after"] == pytest.approx(1 / 3)


def test_nuisance_value_is_that_at_which_most_runs_are_solved(sqlite_url):
    """At the other rate the mean is lower, since its failed run is less bad."""
    rates = {"training": {"learning_rate": [0.001, 0.003]}}
    grid = {"layers": [1], "state_size": [4], "residual": [False], "replicates": 3} | rates
    task = {"task": {"source": "copy:10"}, "task_record": TASK}
    config = {"space": grid, "nuisance": ["learning_rate"]} | task
    runs = []
    for rate, losses in ((0.001, [0.09, 0.09, 5.0]), (0.003, [0.001, 0.2, 0.2])):
        for run, loss in enumerate(losses):
            params = gated_params(1) | {"replicate": run, "learning_rate": rate}
            metrics = {"accuracy": 0.95 if loss < 0.1 else 0.4}
            runs.append((params, loss, {"validation_loss": loss, "metrics": metrics}))
    make_runs(sqlite_url, "made", config, runs)
    (entry,) = StudyFindings(results_of(sqlite_url)).summary.entries
    assert entry.best_values == {"learning_rate": 0.001}
    assert entry.solved == (2, 3)


@pytest.mark.usefixtures("without_optuna_figures")
def test_page_leads_with_what_is_solved_and_tests_hypotheses_by_it(sqlite_url):
    hypothesis = {"statement": "It helps.", "parameter": "residual", "before": False,
                  "after": True, "expect": "lower"}  # fmt: skip
    losses = [loss for depth in DEPTHS for loss in ([FAILS] * 3 + [SOLVES, SOLVES, 2 * FAILS])]
    make_solved(
        sqlite_url,
        losses,
        replicates=3,
        space={"layers": DEPTHS},
        hypothesis=[hypothesis],
        report_threshold=0.7,
    )
    page = build_from(results_of(sqlite_url))
    assert page.words.count("Solved 16 of 48 runs accuracy of at least 0.9") == 1
    assert "Better than the threshold 40 of 48 validation cross-entropy below 0.7" in page.words
    assert "Noise between runs" not in page.words
    assert "0% → 67% +67% * [+40%, +83%] 16 0 8 3 16 of 24 *" in page.words
    assert "100% → 67%" in page.words  # of the threshold
    assert "It helps. holds +67% [+40%, +83%]" in page.words
    assert "2 of 3 [21%, 94%]" in page.words
    assert "seeds of each are needed for 120 comparisons" in page.words


def test_effect_on_shares_depends_on_another_parameter(sqlite_url):
    losses = [FAILS] * 12 + [SOLVES] * 12 + [FAILS] * 24
    make_solved(sqlite_url, losses, replicates=12, space={"layers": [1, 2]})
    findings = StudyFindings(results_of(sqlite_url))
    condition = next(found for found in findings.conditional if found.contrast.after is True)
    assert [level.mean for level in condition.levels] == [1, 0]
    assert condition.is_significant


def test_threshold_of_the_study_changes_nothing_else(sqlite_url):
    make_solved(sqlite_url, [0.3, 0.2] * 8, space={"layers": DEPTHS}, report_threshold=0.25,
                task=TASK | {"solved": {}})  # fmt: skip
    effect = effect_of(sqlite_url)
    assert effect["effect"] == pytest.approx(-0.1)
    assert (effect["threshold_before"], effect["threshold_after"]) == (0, 1)
    assert "solved_before" not in effect


# ------------------------------------------------------------------ when


def make_curves(url, accuracies, losses, **config):
    """Store runs of one network with two held-out curves: a point every 30 updates of 30 steps."""
    grid = {"layers": [1], "state_size": [4], "residual": [False], "replicates": len(accuracies)}
    raw = {"space": grid, "task": {"source": "copy:10"}, "task_record": TASK} | config
    raw["training"] = {"bptt_steps": "sequence"}
    runs = []
    for params, accuracy, loss in zip(grid_of(grid), accuracies, losses, strict=True):
        curves = {"curve:validation_accuracy": accuracy, "curve:validation_loss": loss}
        points = {
            name: [[900 * place, value] for place, value in enumerate(values, 1)]
            for name, values in curves.items()
        }
        recorded = {"validation_loss": loss[-1], "metrics": {"accuracy": accuracy[-1]}}
        runs.append((params, loss[-1], recorded | points))
    make_runs(url, "made", raw, runs)


ACCURACIES = [[0.95, 0.91, 0.8], [0.4, 0.9, 0.9], [None, 0.4, 0.4]]
LOSSES = [[0.3, 0.2, 0.2], [0.05, 0.01, 0.01], [0.09, 0.6, 0.6]]


@pytest.mark.usefixtures("without_optuna_figures")
def test_first_update_at_which_a_run_solves_its_task_is_in_results_and_report(sqlite_url):
    """Also of a run that fails in the end; the median of runs counts one that never solves last."""
    make_curves(sqlite_url, ACCURACIES, LOSSES)
    results = load("made", storage=sqlite_url).results.sort_index()
    assert results["solved_at"].tolist()[:2] == [30, 60]
    assert math.isnan(results["solved_at"][2])
    page = build_from(results_of(sqlite_url))
    assert "solved solved at updates" in page.words
    assert "1 of 3 [6%, 79%] 60 " in page.words


def test_threshold_of_the_loss_says_when_a_run_solves_a_task_that_does_not(sqlite_url):
    task = TASK | {"solved": {}}
    make_curves(sqlite_url, ACCURACIES, LOSSES, task_record=task, report_threshold=0.1)
    results = load("made", storage=sqlite_url).results.sort_index()
    assert results["solved_at"].tolist()[1:] == [30, 30]
    for name, config in (
        ("smoothed", {"report_threshold": 0.1, "objective": "training"}),
        ("without", {}),
    ):
        url = sqlite_url.replace("studies", name)
        make_curves(url, ACCURACIES, LOSSES, task_record=task, **config)
        assert "solved_at" not in load("made", storage=url).results


def test_pruned_study_has_no_shares(sqlite_url):
    make_pruned(sqlite_url, report_threshold=2.0)
    results = results_of(sqlite_url)
    assert compare_by_threshold(results) == {}
    assert StudyFindings(results).reached is None


# ------------------------------------------------------------------ a threshold of the study


@pytest.mark.usefixtures("without_optuna_figures")
def test_page_says_how_many_reach_the_threshold_and_has_a_column_of_changes(sqlite_url):
    space = {"layers": DEPTHS, "state_size": [4], "residual": [False, True]}
    trials = [
        (gated_params(layers, residual=residual), 1.0 if residual else 2.0, {})
        for layers in DEPTHS
        for residual in (False, True)
    ]
    make_runs(sqlite_url, "made", {"space": space, "report_threshold": 1.5}, trials)
    make_study(sqlite_url, "without", report_threshold=None)
    page, without = (build_from(results_of(sqlite_url, name)) for name in ("made", "without"))
    assert page.words.count("Solved 8 of 16 validation loss below 1.5 nats per byte") == 1
    assert "0% → 100% *" in page.words
    assert "solved" not in without.words.lower()
    assert "threshold_p" not in load("without", storage=sqlite_url).effects().to_frame()
    assert "solved_at" not in load("made", storage=sqlite_url).results  # of a text


def test_best_of_several_architectures_is_that_with_most_solved_runs(sqlite_url):
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
    effects = compare_by_threshold(results_of(sqlite_url)).values()
    (cell,) = (effect for effect in effects if effect.contrast.parameter == "cell")
    assert (cell.solved_before, cell.mean, cell.pairs) == (0.5, -0.5, 2)


# ------------------------------------------------------------------ figures by rate and state


def make_rates(url, **recorded):
    """Store GRU and LSTM in two sizes at three rates, three runs each; large rates fail."""
    space = {"cell": ["gru", "lstm"], "layers": [1], "state_size": [4, 8], "replicates": 3}
    space["training"] = {"learning_rate": [0.001, 0.01, 0.1]}
    config = {"space": space, "task": {"source": "copy:10"}, "task_record": TASK}
    config["nuisance"] = ["learning_rate"]
    runs = []
    for params in StudyConfig.model_validate(config).grid.combinations():
        is_solved = params["learning_rate"] < 0.05 and params["cell"] == "lstm"
        metrics = {"accuracy": 0.9 + 0.02 * params["replicate"] if is_solved else 0.25}
        loss = SOLVES if is_solved else FAILS
        states = params["state_size"] * (2 if params["cell"] == "lstm" else 1)
        found = {"validation_loss": loss, "metrics": metrics, "state_count": states} | recorded
        runs.append((params, loss, found))
    make_runs(url, "made", config, runs)


def lines_of(chart):
    return {trace.name: trace for trace in chart.figure.data}


def test_figure_shows_at_which_rates_the_runs_of_a_cell_are_solved(sqlite_url):
    make_rates(sqlite_url)
    findings = StudyFindings(results_of(sqlite_url, "made"))
    chart = chart_windows(findings.results, findings.summary.entries)
    assert chart.title == "Runs solved by learning rate"
    lines = lines_of(chart)
    assert list(lines["LSTM"].x) == [0.001, 0.01, 0.1]
    assert list(lines["LSTM"].y) == [1, 1, 0]
    assert list(lines["GRU"].y) == [0, 0, 0]
    assert list(lines["LSTM"].customdata) == ["6 of 6 runs", "6 of 6 runs", "0 of 6 runs"]
    # Wilson's interval of 6 of 6 begins at 1 / (1 + 1.96² / 6).
    lows = lines["LSTM"].error_y.arrayminus
    assert lows[0] == pytest.approx(1 - 1 / (1 + 1.95996**2 / 6), abs=1e-4)


def test_figure_shows_the_accuracy_by_the_numbers_of_state(sqlite_url):
    make_rates(sqlite_url)
    findings = StudyFindings(results_of(sqlite_url, "made"))
    chart = chart_states(findings.results, findings.summary.entries)
    assert chart.title == "Accuracy against numbers of state"
    lines = lines_of(chart)
    assert list(lines["GRU"].x) == [4, 8]
    assert list(lines["LSTM"].x) == [8, 16]
    assert list(lines["LSTM"].y) == pytest.approx([0.92, 0.92])
    # Student's interval of 0.90, 0.92 and 0.94.
    assert list(lines["LSTM"].error_y.array) == pytest.approx(
        [4.3027 * 0.02 / 3**0.5] * 2, rel=1e-4
    )


def test_studies_whose_trials_do_not_tell_the_state_have_no_figure_of_it(sqlite_url):
    make_rates(sqlite_url, state_count=None)
    findings = StudyFindings(results_of(sqlite_url, "made"))
    assert chart_states(findings.results, findings.summary.entries) is None
