"""A study → rows and curves, tested without drawing anything."""

import re
from pathlib import Path

import optuna
import pandas as pd
import pytest
from factories import distributions_of, make_replicates, make_runs, make_study, own_point
from helpers import study_attributes
from optuna.importance import (
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import TrialState

from reports.charts.effect_plots import timeline
from reports.charts.optuna_plots import to_optuna_study
from reports.charts.training_plots import color_schemes, draw, select_drawn_curves
from reports.data.results import full_factorial_blocks, read_results
from reports.data.table_export import write_csv, write_parquet
from reports.errors import ReportError
from reports.page.page import write_report
from reports.page.sections import build_section
from reports.stats.variant_effects import changes, compare_with_source, replicates
from studies.attributes import OBJECTIVE_NAMES
from studies.config import StudyConfig
from studies.errors import StudyFormatError
from studies.space import GATED_PARAMS
from studies.storage.counts import count_trials
from studies.storage.create import PlannedTrial, create_study
from studies.storage.open import open_storage, read_storage


def test_rows_are_the_points_the_best_first_then_those_without_a_value(sqlite_url):
    make_study(sqlite_url, finished=6)
    results = read_results(read_storage(sqlite_url), "made")
    assert list(results.table.index) == [0, 1, 2, 4, 5, 3, 6, 7]
    assert list(results.table["state"]) == ["COMPLETE"] * 5 + ["DIVERGED"] + ["WAITING"] * 2
    assert list(results.complete.index) == [0, 1, 2, 4, 5]
    assert results.table.loc[0, "label"] == "1×4 no gates, new state"
    assert results.parameters == ["residual", "layers", "state_size"]
    storage = read_storage(sqlite_url)
    assert results.counts == count_trials(storage, storage.get_study_id_from_name("made"))
    assert (results.counts.planned, results.counts.diverged) == (8, 1)
    assert results.table["seconds"].sum() == 10
    assert len(results.curves) == 12
    assert results.curves.iloc[0].to_dict() == {"number": 0, "step": 50, "loss": 2.5}


def test_a_full_grid_has_no_blocks_and_one_with_exclusions_has_them():
    rows = [{"a": a, "b": b, "c": c} for a in (1, 2) for b in (1, 2) for c in (1, 2, 3)]
    full = pd.DataFrame(rows)
    assert full_factorial_blocks(full, ["a", "b", "c"]) == {}
    parted = full[~((full["a"] == 1) & (full["b"] == 2))]
    # Of a = 1, a = 2, b = 1 and b = 2 the first lies within the third, the last within the second.
    blocks = full_factorial_blocks(parted, ["a", "b", "c"])
    assert {name: len(block) for name, block in blocks.items()} == {"a is 2": 6, "b is 1": 6}
    ragged = full.drop(index=[0, 5])
    assert full_factorial_blocks(ragged, ["a", "b", "c"]) == {}


def test_nothing_is_reported_of_a_study_without_a_complete_trial(sqlite_url, tmp_path):
    make_study(sqlite_url, finished=0)
    with pytest.raises(ReportError, match=r"no complete trial.*run the search first"):
        write_report(sqlite_url, ["made"], tmp_path / "page.html")
    optuna.create_study(study_name="foreign", storage=sqlite_url)
    with pytest.raises(StudyFormatError, match="has no schema version"):
        write_report(sqlite_url, ["foreign"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_report_and_rows_show_every_training_code(sqlite_url, tmp_path):
    runs = [
        (own_point(1), 1.5, {"code": "third", "earlier_code": ["first", "second"]}),
        (own_point(2), 1.6, {"code": "second"}),
    ]
    raw = {"refinement": {"source": "none"}}
    make_runs(sqlite_url, "made", raw, runs)
    html = write_report(sqlite_url, ["made"], tmp_path / "page.html").path.read_text("utf-8")
    (shown,) = re.findall(r"Training code</th><td>(.*?)</td>", html)
    assert set(shown.split(", ")) == {"first", "second", "third"}
    write_csv([read_results(read_storage(sqlite_url), "made")], tmp_path / "rows.csv")
    rows = pd.read_csv(tmp_path / "rows.csv").set_index("number")
    assert rows.loc[0, "earlier_code"] == "first, second"
    assert pd.isna(rows.loc[1, "earlier_code"])


@pytest.mark.usefixtures("without_optuna_figures")
def test_names_are_escaped_and_make_no_path(sqlite_url, tmp_path, monkeypatch):
    name = "<script>alert(1)</script>/../x"
    make_study(sqlite_url, name)
    monkeypatch.chdir(tmp_path)
    path = write_report(sqlite_url, [name]).path
    assert path.parent == tmp_path / "reports" / "out"
    html = path.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html


@pytest.mark.parametrize(
    ("finished", "report_threshold"), [(1, None), (2, 1.55), (3, 0.5), (5, 9.0), (8, 1.75)]
)
def test_a_report_of_however_little_can_be_written(
    sqlite_url, tmp_path, finished, report_threshold
):
    make_study(sqlite_url, finished=finished, report_threshold=report_threshold)
    path = write_report(sqlite_url, ["made"], tmp_path / "page.html").path
    html = path.read_text(encoding="utf-8")
    assert ("Unfinished:" in html) == (finished < 8)
    assert "1×4 no gates, new state" in html
    assert "Each trial was run once" in html
    assert "<h3>Replicates</h3>" not in html
    assert "<strong>The grid is not complete.</strong>" in html  # one point diverged


def test_optuna_sees_the_trials_it_is_to_draw_by_their_numbers_and_in_words(sqlite_url):
    make_study(sqlite_url)
    results = read_results(read_storage(sqlite_url), "made")
    study = to_optuna_study(results, [0, 2, 5], results.parameters)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert [(trial.number, trial.value) for trial in complete] == [(0, 1.5), (2, 1.7), (5, 2.0)]
    assert complete[0].params == {"residual": "off", "layers": 1, "state size": 4}
    assert complete[2].params["residual"] == "on"


@pytest.mark.usefixtures("importances_alone")
def test_what_is_drawn_below_the_threshold_is_what_lies_below_it(sqlite_url):
    make_study(sqlite_url)
    section = build_section(read_results(read_storage(sqlite_url), "made"))
    assert list(section.results.below.index) == [0, 1, 2, 4]  # 1.8, the fourth, diverged
    assert section.below.points == 4
    assert [each.where for each in section.below_importances] == ["below the threshold (4 points)"]


@pytest.mark.usefixtures("importances_alone")
def test_the_two_importances_are_those_that_they_are_called(sqlite_url):
    make_study(sqlite_url)
    results = read_results(read_storage(sqlite_url), "made")
    complete = list(results.complete.index)
    study = to_optuna_study(results, complete, results.parameters)
    (found,) = build_section(results).importances
    assert found.where == "all complete trials (7 points)"
    for name, evaluator in (
        ("PED-ANOVA", PedAnovaImportanceEvaluator()),
        ("fANOVA", FanovaImportanceEvaluator(seed=0)),
    ):
        (drawing,) = [drawing for drawing in found.drawings if drawing.title == name]
        bars = drawing.figure.data[0]
        expected = get_param_importances(study, evaluator=evaluator)
        assert dict(zip(bars.y, bars.x, strict=True)) == pytest.approx(expected)
        # As Optuna has them of the stored study itself.
        stored = optuna.load_study(study_name="made", storage=sqlite_url)
        expected = get_param_importances(stored, evaluator=evaluator, params=results.parameters)
        assert sorted(bars.x) == pytest.approx(sorted(expected.values()))


@pytest.mark.usefixtures("importances_alone")
def test_blocks_are_drawn_for_a_grid_with_exclusions(sqlite_url):
    make_study(sqlite_url, exclude=[{"state_size": 4, "residual": False}], diverged=None)
    section = build_section(read_results(read_storage(sqlite_url), "made"))
    where = [each.where for each in section.importances]
    assert where == [
        "all complete trials (6 points)",
        "where residual is on (4 points)",
        "where state size is 8 (4 points)",
    ]


def test_curves_are_drawn_best_on_top_and_coloured_by_what_is_asked(sqlite_url):
    make_study(sqlite_url)
    results = read_results(read_storage(sqlite_url), "made")
    figure = draw(results)
    numbers = [int(trace.name.split(":")[0].removeprefix("trial ")) for trace in figure.data]
    assert numbers == [3, 7, 6, 5, 4, 2, 1, 0]
    assert list(figure.data[-1].y) == [2.5, 1.5]
    assert (figure.data[-1].x0, figure.data[-1].dx) == (50, 50)
    by_label = {each.label: each for each in color_schemes(results)}
    assert list(by_label) == ["final loss", "residual", "layers", "state size"]
    by_loss = by_label["final loss"]
    assert by_loss.of == sorted(by_loss.of, reverse=True)
    residual = by_label["residual"]
    words = [residual.legend[place][0] for place in residual.of]
    expected = results.table.loc[numbers, "residual"].map({True: "on", False: "off"})
    assert words == expected.tolist()


@pytest.mark.usefixtures("without_optuna_figures")
def test_of_too_many_curves_the_best_and_some_of_the_others_are_drawn(sqlite_url, monkeypatch):
    make_study(sqlite_url, diverged=None)
    monkeypatch.setattr("reports.charts.training_plots.MOST_CURVES", 4)
    results = read_results(read_storage(sqlite_url), "made")
    assert select_drawn_curves(results) == [0, 1, 2, 7]
    assert "4 of 8 curves are drawn." in build_section(results).curves.note


def test_the_timeline_has_a_row_a_worker_and_a_bar_a_trial(sqlite_url):
    make_study(sqlite_url)
    figure = timeline(read_results(read_storage(sqlite_url), "made"))
    assert [(bar.name, len(bar.x), set(bar.y)) for bar in figure.data] == [("complete", 7, {"w"})]
    assert all(length >= 0 for length in figure.data[0].x)


@pytest.mark.usefixtures("without_optuna_figures")
def test_only_a_report_is_written_over(sqlite_url, tmp_path):
    make_study(sqlite_url)
    database = tmp_path / "studies.db"
    before = database.read_bytes()
    with pytest.raises(ReportError, match="exists and is not a report"):
        write_report(sqlite_url, ["made"], database)
    assert database.read_bytes() == before
    page = write_report(sqlite_url, ["made"], tmp_path / "page.html").path
    assert write_report(sqlite_url, ["made"], page).path == page
    with pytest.raises(ReportError, match="cannot write"):
        write_report(sqlite_url, ["made"], Path("/proc/no/page.html"))


@pytest.mark.usefixtures("without_optuna_figures")
def test_replicates_are_summed_up_by_architecture(sqlite_url, tmp_path):
    config = StudyConfig.model_validate({"refinement": {"source": "made", "replicates": 3}})
    point = dict.fromkeys(GATED_PARAMS[:5], False) | {"state_source": "new", "state_size": 4}
    points = [
        point | {"layers": layers, "replicate": replicate}
        for layers in (1, 2)
        for replicate in range(3)
    ]
    storage = open_storage(sqlite_url)
    create_study(
        storage,
        "replicates",
        OBJECTIVE_NAMES["training"],
        study_attributes(config),
        distributions_of(points),
        [PlannedTrial(each) for each in points],
    )
    study_id = storage.get_study_id_from_name("replicates")
    for value in (0.9, 2.6, 2.8, 1.0, 1.2, 1.4):
        trial_id = storage.claim(study_id, "me")
        storage.finish(trial_id, "me", TrialState.COMPLETE, value, {})
    storage.close()
    results = read_results(read_storage(sqlite_url), "replicates")
    assert results.parameters == ["layers"]
    rows = replicates(results)
    assert list(rows.index) == ["2×4 no gates, new state", "1×4 no gates, new state"]
    assert list(rows["runs"]) == [3, 3]
    assert list(rows["mean"]) == pytest.approx([1.2, 2.1])
    assert list(rows["std"]) == pytest.approx([0.2, 1.044], abs=1e-3)
    html = write_report(sqlite_url, ["replicates"], tmp_path / "page.html").path.read_text("utf-8")
    assert "Each trial was run once" not in html
    # By the mean, though the luckiest run is of the other.
    words = re.sub(r"\s+", " ", re.sub("<[^>]*>", "", html))
    assert "by the mean of its 3 runs: 2×4 no gates, new state, 1.2000 (95%" in words
    assert "(95% interval 0.7032 to 1.6968) nats" in words
    assert [winner.architecture.layers for winner in build_section(results).leaderboard] == [2, 1]
    # Student's t at 97.5% with two degrees of freedom is 4.303.
    assert rows["high"].iloc[0] == pytest.approx(1.2 + 4.303 * 0.2 / 3**0.5, abs=1e-3)
    assert rows["values"].iloc[0] == [1.0, 1.2, 1.4]
    cells = r"</td>\s*<td[^>]*>".join((r">1\.2000", r"0\.7032", r"1\.6968", r"0\.2000"))
    assert re.search(cells, html)


@pytest.mark.usefixtures("without_optuna_figures")
def test_each_point_is_followed_from_its_source_to_each_variant(derived):
    results = read_results(read_storage(derived), "derived")
    lineage = compare_with_source(results)
    rows = lineage.rows[["origin", "source_value", "variant", "value"]].to_numpy().tolist()
    assert sorted(rows) == [
        [0, 1.5, "as it was", 1.4],
        [0, 1.5, "state size 16", 1.2],
        [1, 1.6, "as it was", 1.3],
        [1, 1.6, "state size 16", 1.2],
    ]
    as_it_was, wider = changes(lineage)
    assert (as_it_was.variant, as_it_was.pairs) == ("as it was", 0)
    assert as_it_was.from_source == pytest.approx((-0.1 - 0.3) / 2)
    assert (wider.variant, wider.count, wider.pairs, wider.improved_count) == (
        "state size 16",
        2,
        2,
        2,
    )
    assert wider.mean == pytest.approx((-0.2 - 0.1) / 2)
    figure = build_section(results).slopes.figure
    assert [trace.name for trace in figure.data] == ["as it was", "state size 16"]
    assert list(figure.data[1].y) == [1.5, 1.2, None, 1.6, 1.2, None]


def test_replicates_of_an_architecture_are_one_source(sqlite_url):
    make_replicates(sqlite_url)
    raw = {"refinement": {"source": "replicates", "variants": [{}, {"layers": 3}]}}
    runs = [(own_point(2), 1.8, {}), (own_point(3), 1.7, {})]
    make_runs(sqlite_url, "derived", raw, runs, sources=[0, 1, 2])
    lineage = compare_with_source(read_results(read_storage(sqlite_url), "derived"))
    rows = lineage.rows[["origin", "source_value", "variant", "value"]].to_numpy().tolist()
    assert rows == [
        [0, pytest.approx(2.01), "as it was", 1.8],
        [0, pytest.approx(2.01), "layers 3", 1.7],
    ]
    _, deeper = changes(lineage)
    assert (deeper.count, deeper.pairs, deeper.improved_count) == (1, 1, 1)


@pytest.mark.usefixtures("without_optuna_figures")
def test_a_derived_study_whose_source_is_gone_is_reported_without_it(derived, tmp_path):
    storage = open_storage(derived)
    storage.delete_study(storage.get_study_id_from_name("made"))
    storage.close()
    html = write_report(derived, ["derived"], tmp_path / "page.html").path.read_text("utf-8")
    assert "From study to study" not in html
    assert "refinement.top=2" in html


def test_rows_are_written_for_pandas(derived, tmp_path):
    storage = read_storage(derived)
    results = [read_results(storage, name, with_curves=()) for name in ("made", "derived")]
    write_csv(results, tmp_path / "rows.csv")
    write_parquet(results, tmp_path / "rows.parquet")
    for rows in (pd.read_csv(tmp_path / "rows.csv"), pd.read_parquet(tmp_path / "rows.parquet")):
        assert rows["study"].tolist() == ["made"] * 8 + ["derived"] * 3
        assert rows["value"].iloc[:3].tolist() == pytest.approx([1.5, 1.6, 1.7])
        assert rows["residual"].tolist()[:8] == [False] * 4 + [True] * 4
        assert rows["source_trials"].iloc[8] == "[0, 1]"
    with pytest.raises(ReportError, match="cannot be written"):
        write_csv(results, Path("/proc/no/rows.csv"))


def test_csv_has_one_line_for_each_trial(sqlite_url, tmp_path):
    text = 'a, "quoted" line\r\nC:\\new\tétude\x00\x0b\x85\u2028end\n'
    runs = [(own_point(), 1.0, {"sample": text}), (own_point(2), 2.0, {})]
    make_runs(sqlite_url, "writers", {"space": {"layers": [1], "state_size": [4]}}, runs)
    results = [read_results(read_storage(sqlite_url), "writers")]
    write_csv(results, tmp_path / "rows.csv")
    write_parquet(results, tmp_path / "rows.parquet")
    lines = (tmp_path / "rows.csv").read_text("utf-8").splitlines()
    assert len(lines) == 3
    assert lines[0].endswith(",sample")
    (written, missing) = pd.read_csv(tmp_path / "rows.csv")["sample"]
    assert "étude" in written
    assert written.encode("latin-1", "backslashreplace").decode("unicode_escape") == text
    assert pd.isna(missing)
    assert pd.read_parquet(tmp_path / "rows.parquet")["sample"].iloc[0] == text


def test_optuna_names_the_value_after_the_metric(sqlite_url):
    make_study(sqlite_url, finished=2)
    study = optuna.load_study(study_name="made", storage=sqlite_url)
    rows = study.trials_dataframe()
    assert "value" not in rows
    assert study.metric_names == ["smoothed training loss"]
    assert rows[f"value_{study.metric_names[0]}"].dropna().tolist() == [1.5, 1.6]


def test_results_are_read_as_optuna_reads_them(sqlite_url):
    make_study(sqlite_url, finished=5)
    storage = read_storage(sqlite_url)
    results = read_results(storage, "made")
    trials = storage.get_all_trials(storage.get_study_id_from_name("made"))
    for trial in trials:
        row = results.table.loc[trial.number]
        assert {name: row[name] for name in trial.params} == trial.params
        assert row["state"] == ("DIVERGED" if trial.number == 3 else trial.state.name)
        curve = results.curves[results.curves["number"] == trial.number]
        assert dict(zip(curve["step"], curve["loss"], strict=True)) == trial.intermediate_values
        if trial.state.is_finished():
            assert row["completed"] == trial.datetime_complete
            assert trial.number == 3 or row["value"] == trial.value


@pytest.mark.usefixtures("without_optuna_figures")
def test_two_studies_never_share_a_page(sqlite_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a b", "a_b", "é" * 200]
    for name in names:
        make_study(sqlite_url, name, finished=1)
    pages = [write_report(sqlite_url, [name]).path for name in names]
    assert pages[1].name == "a_b.html"
    assert len(set(pages)) == 3
    assert all(page.exists() for page in pages)


@pytest.mark.usefixtures("without_optuna_figures")
def test_a_study_under_way_says_what_is_left_out(sqlite_url, tmp_path):
    make_study(sqlite_url, finished=7)
    section = build_section(read_results(read_storage(sqlite_url), "made"))
    missing_pairs = {
        effect.contrast.label: effect.missing_pairs for effect in section.effects[0].effects
    }
    # The fourth diverged, the eighth waits: a pair in the residual, of two pairs else.
    assert missing_pairs == {"residual": 1, "layers 1 → 2": 2, "state size 4 → 8": 2}
    words = write_report(sqlite_url, ["made"], tmp_path / "page.html").path.read_text("utf-8")
    assert "2 trials of" in re.sub(r"\s+", " ", words)
