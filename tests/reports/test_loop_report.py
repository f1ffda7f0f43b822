"""Reports, tables and files of studies with a training loop of one's own."""

import itertools
import random
import re

import numpy as np
import pandas as pd
import pytest
from factories import LOOP_SPACE, loop_value, make_loop, make_study, results_of
from optuna.trial import TrialState
from pages import BuiltPage, build_from, read_answer
from test_imported_report import FOREIGN_WORDS

from reports.analysis.pruning import audit_pruning
from reports.final_report import write_csv
from rnn_search import import_study, load
from studies.attributes import AuditState
from studies.errors import StudyFileError
from studies.exchange import change_objective, export_study, import_studies, open_study_file

pytestmark = pytest.mark.usefixtures("without_optuna_figures")


def build(url: str, *names: str) -> BuiltPage:
    """Build the page about studies; that of the first one has no words about networks."""
    page = build_from(*(results_of(url, name, drawn_only=True) for name in names))
    if len(names) == 1:
        for word in FOREIGN_WORDS:
            assert word not in page.words, word
    return page


def test_page_shows_the_loop_and_its_parameters_and_says_nothing_about_networks(sqlite_url):
    make_loop(sqlite_url, loop={"function": "train.py:train"}, nuisance=["learning_rate"])
    page = build(sqlite_url, "loop")
    answer = read_answer(page.findings)
    assert answer[0] == "each configuration is judged at its best learning rate"
    assert answer[1].startswith("cell attention → mamba lowers the accuracy by 3.0"), answer
    assert answer[-1].startswith("best: optimizer adamw, layers 4, cell attention, learning rate")
    names = ["effects", "curves", "leaderboard", "cost", "setup"]
    assert list(page.sections) == names
    for shown in (
        "Which parameters matter for accuracy?",
        "Value accuracy (%), higher is better Training loop 300 steps, logged every 100 steps "
        "Function train.py:train Training code hash ab Seed 0 optimizer adamw, sgd layers 2, 4 "
        "cell attention, mamba learning rate 0.001, 0.01; a nuisance parameter",
        "1 worker on 1 machine",
    ):
        assert shown in page.words


def test_accounts_of_an_imported_export_leave_out_workers_and_machines(sqlite_url, tmp_path):
    make_loop(sqlite_url)
    path = tmp_path / "loop.jsonl"
    export_study(sqlite_url, "loop", path)
    import_study(path, name="imported", storage=sqlite_url)
    page = build(sqlite_url, "imported")
    assert re.search(r"Time [\d.]+ \w+ of computing", page.words)
    assert " workers on " not in page.words


@pytest.mark.parametrize(
    ("scale", "shown"), [(1, "accuracy {:.2f} %"), (1e-12, "accuracy {:.2e} %")]
)
def test_value_of_any_size_is_shown_with_three_digits(sqlite_url, scale, shown):
    make_loop(sqlite_url, value=lambda params: scale * loop_value(params))
    page = build(sqlite_url, "loop")
    best = page.findings.summary.best.value
    expected = shown.format(best).replace("-", "−")
    assert expected in read_answer(page.findings)[-1]
    assert page.read_column("leaderboard", "accuracy")[0].startswith(expected.split()[1])


def test_logged_values_have_their_own_names_in_tables_and_curves(sqlite_url, tmp_path):
    make_loop(sqlite_url)
    page = build(sqlite_url, "loop")
    assert (
        page.read_column("leaderboard", "loss")[0] == f"{1 / page.findings.summary.best.loss:.4g}"
    )
    assert page.read_column("trials", "number") == ["1"] * 16
    figure = page.chart("Curves").figure
    (menu,) = figure.layout.updatemenus
    assert [button.label for button in menu.buttons] == ["accuracy", "loss", "number_"]
    titles = [button.args[1]["yaxis.title.text"] for button in menu.buttons]
    assert titles == ["accuracy (%)", "loss", "number_"]
    study = load("loop", storage=sqlite_url)
    curves = study.curves
    assert list(curves) == ["number", "step", "accuracy", "loss", "number_"]
    point = curves[(curves["number"] == study.best.number) & (curves["step"] == 300)].iloc[0]
    assert (point["accuracy"], point["loss"]) == (study.best.value, 1 / study.best.value)
    first = ["label", "state", "value", "last_loss", "last_number", *LOOP_SPACE]
    assert list(study.results)[: len(first)] == first
    write_csv([results_of(sqlite_url, "loop")], tmp_path / "out.csv")
    columns = set(pd.read_csv(tmp_path / "out.csv").columns)
    assert {"seconds", "parameter_count", "last_loss", "layers"} <= columns
    assert not {"validation_loss", "threads", "remark", "sample"} & columns


def test_curves_of_a_loop_that_never_logs_its_metric_are_drawn(sqlite_url):
    make_loop(sqlite_url, edit=lambda trial: trial.curve.clear())
    page = build(sqlite_url, "loop")
    traces = page.chart("Curves").figure.data
    assert {trace.visible for trace in traces if np.nanmax(trace.y) == 2.0} == {True}
    assert "accuracy" not in load("loop", storage=sqlite_url).curves.dropna(axis=1, how="all")


def test_costs_are_absent_without_records_of_them(sqlite_url):
    make_loop(sqlite_url, edit=lambda trial: trial.attributes.clear(), told="include")
    page = build(sqlite_url, "loop")
    assert "cost" not in page.sections
    titles = [column.title for column in page.table("leaderboard").columns]
    assert not {"parameters", "time", "loss"} & {*titles}
    assert load("loop", storage=sqlite_url).pareto().empty


def test_tables_of_a_union_say_which_parameters_belong_to_a_value(sqlite_url):
    shared = {"width": [2, 4], "task": ["b", "a"]}
    own = ({"optimizer": ["sgd"], "momentum": [0.0, 0.9]}, {"optimizer": ["adam"]})

    def value(params: dict) -> float:
        noise = random.Random(repr(params)).gauss(0, 0.01)
        return params["width"] + 2 * (params["task"] == "b") + params.get("momentum", 3) + noise

    make_loop(sqlite_url, value=value, space=[table | shared for table in own])
    page = build(sqlite_url, "loop")
    effects = load("loop", storage=sqlite_url).effects().to_frame().set_index("parameter")
    assert tuple(effects.loc["optimizer", ["before", "after", "pairs"]]) == ("sgd", "adam", 4)
    assert effects.loc["optimizer", "effect"] == pytest.approx(3 - 0.9, abs=0.05)
    assert effects.loc["task", "before"] == "b", "the order of the file"
    assert "momentum 0.0, 0.9; 4 trials lack it" in page.words


def twins(url: str, **options) -> tuple[BuiltPage, BuiltPage]:
    """Return the pages of a study that is maximized, and of its negative, minimized."""
    make_loop(url, "up", **options)
    make_loop(url, "down", lambda params: -loop_value(params), loop={"direction": "minimize"},
              **options)  # fmt: skip
    return build(url, "up"), build(url, "down")


def test_higher_values_are_better_in_verdicts_fronts_and_variants(sqlite_url):
    combinations = [dict(zip(LOOP_SPACE, values, strict=True))
                    for values in itertools.product(*LOOP_SPACE.values())]  # fmt: skip
    sources = {tuple(params.values()): number for number, params in enumerate(combinations)}
    refinement = {"top": 4, "replicates": 4, "margin": 0.9}
    refinement["variants"] = [{}, {"layers": 4}]
    derived = {"space": None, "loop_parameters": list(LOOP_SPACE)}
    derived["trials"] = [
        params | {"replicate": replicate}
        for params in combinations
        for replicate in range(1, 5)
        if params["optimizer"] == "adamw" and params["learning_rate"] == 0.001
    ]

    def add_sources(trial):
        params = {name: trial.params[name] for name in LOOP_SPACE}
        origins = {sources[tuple((params | {"layers": layers}).values())] for layers in (2, 4)}
        trial.attributes["source_trials"] = (
            sorted(origins) if params["layers"] == 4 else [sources[tuple(params.values())]]
        )

    found = []
    for sign, direction in ((1, "maximize"), (-1, "minimize")):
        loop = {"direction": direction}
        value = {1: loop_value, -1: lambda params: -loop_value(params)}[sign]
        make_loop(sqlite_url, f"of {direction}", value, loop=loop, nuisance=["learning_rate"])
        given = {"source": f"of {direction}"} | refinement
        make_loop(sqlite_url, direction, value, add_sources, loop, refinement=given, **derived)
        page = build(sqlite_url, direction)
        study = load(direction, storage=sqlite_url)
        assert "Against of" in page.words
        found.append((sign, page, study.verdicts(), study.pareto()))
    (_, up, verdicts, front), (_, down, mirrored, other_front) = found
    frame = verdicts.to_frame()
    other = mirrored.to_frame()
    assert frame["verdict"].tolist() == ["best mean", "as good", "worse", "worse"]
    assert frame["value"].is_monotonic_decreasing
    same = ["architecture", "verdict", "at_most", "parameters"]
    pd.testing.assert_frame_equal(frame[same], other[same])
    for column in ("value", "difference"):
        np.testing.assert_allclose(frame[column], -other[column])
    assert verdicts.smallest == mirrored.smallest == "layers 2, cell attention"
    assert front["trial"].tolist() == other_front["trial"].tolist()
    assert len(front) == 2
    assert read_answer(up.findings)[:2] == read_answer(down.findings)[:2]
    bounds = [page.read_column("leaderboard", "at most") for page in (up, down)]
    assert [bound.replace("−", "+") for bound in bounds[0]] == bounds[1]
    matrices = [page.chart("Pairwise differences").figure.data[1] for page in (up, down)]
    np.testing.assert_allclose(matrices[0].z, matrices[1].z)
    assert (matrices[0].text[0][2][0], matrices[1].text[0][2][0]) == ("+", "−")
    changed, same = (page.findings.variants[-1] for page in (up, down))
    assert changed.pairs == 2
    assert changed.best == pytest.approx(-same.best) == pytest.approx(frame["value"].max())
    assert changed.improved_count == same.improved_count == 2


def test_pruned_loop_that_is_maximized_is_audited_as_its_negative(sqlite_url):
    space = LOOP_SPACE | {"width": [1, 2, 3, 4]}

    def prune(trial):
        if trial.params["optimizer"] == "sgd":
            trial.attributes |= {"rung": 100, "keep_probability": 0.02, "predicted_scale": 0.5}
            trial.attributes |= {"predicted_value": trial.value * 1.001, "reason": "at step 100"}
            if trial.number % 3:
                trial.state = TrialState.PRUNED
                trial.value = None
        if not trial.number % 3:
            trial.audit = AuditState()

    up, down = twins(sqlite_url, edit=prune, space=space, pruning={"enabled": True, "audit": 6})
    assert "Pruned" in up.words
    found, same = (audit_pruning(page.findings.results) for page in (up, down))
    assert (found.lost, found.stopped, found.inside) == (same.lost, same.stopped, same.inside)
    assert found.lost == 0, "SGD is worse"
    assert found.bias == pytest.approx(-same.bias)
    effects, mirrored = (page.findings.effects for page in (up, down))
    assert [effect.mean for effect in effects] == pytest.approx(
        [-effect.mean for effect in mirrored]
    )
    assert [effect.is_improvement for effect in effects] == [
        effect.is_improvement for effect in mirrored
    ]


def test_file_keeps_what_the_loop_has_set_and_logged(sqlite_url, tmp_path):
    make_loop(sqlite_url, loop={"function": "/home/alice/train.py:train"},
              space=LOOP_SPACE | {"data": ["/home/alice/a", "s3://b/c"]})  # fmt: skip
    path = tmp_path / "loop.jsonl"
    export_study(sqlite_url, "loop", path)
    assert "/home/alice/train" not in path.read_text()
    url = f"sqlite:///{tmp_path}/other.db"
    import_studies(url, [path])
    first, second = (load("loop", storage=storage) for storage in (sqlite_url, url))
    trials = [study.optuna.trials for study in (first, second)]
    for trial, copy in zip(*trials, strict=True):
        assert copy.user_attrs["remark"] == {"mine": [1, "a"]}
        assert (copy.params, copy.values) == (trial.params, trial.values)
        assert copy.intermediate_values == trial.intermediate_values
        assert copy.system_attrs["curve:loss"] == trial.system_attrs["curve:loss"]
    pd.testing.assert_frame_equal(first.curves, second.curves)
    assert second.config.loop.function == "train.py:train"
    export_study(url, "loop", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
    with (
        open_study_file(path) as study,
        pytest.raises(StudyFileError, match="of a loop, one value"),
    ):
        change_objective(study, "training")


def test_page_of_a_loop_next_to_networks_has_the_words_of_each(sqlite_url):
    make_loop(sqlite_url)
    make_study(sqlite_url)
    page = build(sqlite_url, "loop", "made")
    assert [part.name for part in page.parts] == ["loop", "made"]
    assert "no other configuration" in page.words
    assert "Source of the best network" in page.words
