"""A study → rows and curves, tested without drawing anything."""

from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.importance import (
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import TrialState

from reports.errors import ReportError
from reports.figures import importances, substudy
from reports.page import section_of, write_report
from reports.trials import full_factorial_blocks, read_results
from studies.definition import PARAMETERS, Definition
from studies.opening import open_storage, read_storage
from studies.planning import PlannedPoint, create_study
from studies.records import METRIC_NAME


def make_study(
    url: str,
    name: str = "made",
    threshold: float | None = 2.0,
    finished: int = 8,
    exclude=(),
    diverged: int | None = 3,
):
    """A study of eight points: 1.5, 1.6, …, the fourth diverged, the rest waiting."""
    space = {"layers": [1, 2], "state_size": [4, 8], "residual": [False, True]}
    space |= {p: [False] for p in PARAMETERS[:4]} | {"state_source": ["new"]}
    space |= {"exclude": list(exclude)}
    definition = Definition.model_validate({"space": space, "threshold": threshold})
    finished = min(finished, len(list(definition.space.points())))
    storage = open_storage(url)
    create_study(
        storage,
        name,
        METRIC_NAME,
        {
            "definition": definition.model_dump(mode="json"),
            "corpus": {"name": "text", "sha256": "ab", "length": 100, "split": [90, 95]},
        },
        {n: CategoricalDistribution(tuple(definition.space.values(n))) for n in PARAMETERS},
        [PlannedPoint(point) for point in definition.space.points()],
    )
    study_id = storage.get_study_id_from_name(name)
    for i in range(finished):
        trial_id = storage.claim(study_id, "me")
        value = 1.5 + i / 10
        storage.report(trial_id, "me", {50: value + 1, 100: value})
        if i == diverged:
            storage.finish(trial_id, "me", TrialState.FAIL, None, {"failure": "diverged"})
        else:
            attributes = {"seconds": 2.0, "parameter_count": 10 + i, "worker": "w", "host": "h"}
            storage.finish(trial_id, "me", TrialState.COMPLETE, value, attributes)
    storage.engine.dispose()


def test_rows_are_the_finished_points_best_first_diverged_last(sqlite_url):
    make_study(sqlite_url, finished=6)
    results = read_results(read_storage(sqlite_url), "made")
    assert list(results.table.index) == [0, 1, 2, 4, 5, 3]
    assert list(results.complete.index) == [0, 1, 2, 4, 5]
    assert results.table.loc[0, "label"] == "1×4 no gates, new state"
    assert results.parameters == ["residual", "layers", "state_size"]
    assert (results.accounting.planned, results.accounting.diverged) == (8, 1)
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
    assert {name: len(block) for name, block in blocks.items()} == {"a = 2": 6, "b = 1": 6}
    ragged = full.drop(index=[0, 5])
    assert full_factorial_blocks(ragged, ["a", "b", "c"]) == {}


def test_nothing_is_reported_of_a_study_without_a_complete_trial(sqlite_url, tmp_path):
    make_study(sqlite_url, finished=0)
    with pytest.raises(ReportError, match="no complete trial"):
        write_report(sqlite_url, ["made"], tmp_path / "page.html")
    optuna.create_study(study_name="foreign", storage=sqlite_url)
    with pytest.raises(ReportError, match="was not made by"):
        write_report(sqlite_url, ["foreign"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_names_are_escaped_and_make_no_path(sqlite_url, tmp_path, monkeypatch):
    name = "<script>alert(1)</script>/../x"
    make_study(sqlite_url, name)
    monkeypatch.setattr("reports.page.OUTPUT", tmp_path / "out")
    path = write_report(sqlite_url, [name])
    assert path.parent == tmp_path / "out"
    html = path.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html


@pytest.mark.parametrize(
    ("finished", "threshold"), [(1, None), (2, 1.55), (3, 0.5), (5, 9.0), (8, 1.75)]
)
def test_a_report_of_however_little_can_be_written(sqlite_url, tmp_path, finished, threshold):
    make_study(sqlite_url, finished=finished, threshold=threshold)
    path = write_report(sqlite_url, ["made"], tmp_path / "page.html")
    html = path.read_text(encoding="utf-8")
    assert ("Unfinished:" in html) == (finished < 8)
    assert "1×4 no gates, new state" in html
    assert "Each point was run once" in html
    assert "<h2>Replicates</h2>" not in html


def test_what_is_drawn_below_the_threshold_is_what_lies_below_it(sqlite_url):
    make_study(sqlite_url)
    results = read_results(read_storage(sqlite_url), "made")
    below = substudy(results, [0, 1, 2])
    assert sorted(trial.value for trial in below.trials) == pytest.approx([1.5, 1.6, 1.7])
    section = section_of(results)
    assert section.below_count == 4  # 1.5, 1.6, 1.7 and 1.9, for 1.8 diverged
    assert all("(4 points)" in drawing.title for drawing in section.below)


def test_the_two_importances_are_those_that_they_are_called(sqlite_url):
    make_study(sqlite_url)
    results = read_results(read_storage(sqlite_url), "made")
    study = substudy(results, list(results.complete.index))
    found = importances(study, results.parameters)
    for words, evaluator in (
        ("PED-ANOVA", PedAnovaImportanceEvaluator()),
        ("fANOVA", FanovaImportanceEvaluator(seed=0)),
    ):
        ((_, figure),) = [item for item in found.items() if words in item[0]]
        drawn = dict(zip(figure.data[0].y, figure.data[0].x, strict=True))
        expected = get_param_importances(study, evaluator=evaluator, params=results.parameters)
        assert drawn == pytest.approx(expected)


def test_blocks_are_drawn_for_a_grid_with_exclusions(sqlite_url):
    make_study(sqlite_url, exclude=[{"state_size": 4, "residual": False}], diverged=None)
    section = section_of(read_results(read_storage(sqlite_url), "made"))
    titles = " ".join(drawing.title for drawing in section.explained)
    assert "where state_size = 8" in titles
    assert "where residual = True" in titles


def test_only_a_report_is_written_over(sqlite_url, tmp_path):
    make_study(sqlite_url)
    database = tmp_path / "studies.db"
    before = database.read_bytes()
    with pytest.raises(ReportError, match="is no report; it was left as it is"):
        write_report(sqlite_url, ["made"], database)
    assert database.read_bytes() == before
    page = write_report(sqlite_url, ["made"], tmp_path / "page.html")
    assert write_report(sqlite_url, ["made"], page) == page
    with pytest.raises(ReportError, match="cannot be written"):
        write_report(sqlite_url, ["made"], Path("/proc/no/page.html"))


def test_replicates_are_summed_up_by_architecture(sqlite_url, tmp_path):
    definition = Definition.model_validate({"refinement": {"source": "made", "replicates": 3}})
    point = dict.fromkeys(PARAMETERS[:5], False) | {"state_source": "new", "state_size": 4}
    points = [
        point | {"layers": layers, "replicate": replicate}
        for layers in (1, 2)
        for replicate in range(3)
    ]
    storage = open_storage(sqlite_url)
    create_study(
        storage,
        "replicates",
        METRIC_NAME,
        {
            "definition": definition.model_dump(mode="json"),
            "corpus": {"name": "text", "sha256": "ab", "length": 100, "split": [90, 95]},
        },
        distributions_of(points),
        [PlannedPoint(each) for each in points],
    )
    study_id = storage.get_study_id_from_name("replicates")
    for value in (2.0, 2.1, 2.2, 1.0, 1.2, 1.4):
        trial_id = storage.claim(study_id, "me")
        storage.finish(trial_id, "me", TrialState.COMPLETE, value, {})
    storage.close()
    results = read_results(read_storage(sqlite_url), "replicates")
    assert results.parameters == ["layers"]
    rows = results.replicates
    assert list(rows.index) == ["2×4 no gates, new state", "1×4 no gates, new state"]
    assert list(rows["runs"]) == [3, 3]
    assert list(rows["mean"]) == pytest.approx([1.2, 2.1])
    assert list(rows["std"]) == pytest.approx([0.2, 0.1])
    html = write_report(sqlite_url, ["replicates"], tmp_path / "page.html").read_text("utf-8")
    assert "Each point was run once" not in html
    assert "<td>1.2000</td><td>0.2000</td><td>1.0000</td><td>1.4000</td>" in html


def distributions_of(points: list[dict]) -> dict[str, CategoricalDistribution]:
    values = {name: dict.fromkeys(point[name] for point in points) for name in points[0]}
    return {name: CategoricalDistribution(tuple(found)) for name, found in values.items()}
