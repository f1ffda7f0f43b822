"""Reports of studies of several tasks: a section for each, and what changes do in all of them."""

import re
from contextlib import closing

import pytest
from factories import SMALL_GRID, created_once, make_runs, make_study

from reports.analysis.solved import compare_solved, count_solved
from reports.formatting import label_change
from reports.page.page import find_all, write_report
from reports.study_reader import read_results
from rnn_search import load
from studies.config import StudyConfig
from studies.storage.open import read_storage

CLASSES = {"source": "copy:10", "steps": 30, "inputs": 10, "outputs": 8, "reads_tokens": True,
           "predicts_classes": True, "loss": "cross-entropy", "metrics": {"accuracy": "maximize"},
           "solved": {"accuracy": 0.9}}  # fmt: skip
NUMBERS = {"source": "my_task.py:Sum", "sha256": "ab" * 32, "steps": 10, "inputs": 2, "outputs": 1,
           "reads_tokens": False, "predicts_classes": False, "loss": "squared error",
           "metrics": {"mae": "minimize"}}  # fmt: skip


@created_once
def make_tasks(url):
    """Store a study of two tasks, of which a residual helps both, and layers each in one way."""
    space = SMALL_GRID | {"state_size": [4, 8, 16, 32], "task": ["copy:10", "my_task.py:Sum"]}
    records = {"copy:10": CLASSES, "Sum": NUMBERS}
    raw = {"space": space, "task_records": records, "question": "Does it help?"}
    runs = []
    for i, params in enumerate(StudyConfig.model_validate(raw).grid.combinations()):
        is_copy, noise = params["task"] == "copy:10", (i % 3 - 1) / 1000
        gain = 0.3 * params["residual"] + (0.1 if is_copy else -0.1) * params["layers"]
        value = (2.0 if is_copy else 50.0) - gain + noise
        is_solved = is_copy and params["residual"] and params["state_size"] > 4
        metrics = {"accuracy": 0.95 if is_solved else 0.2} if is_copy else {"mae": value / 3}
        recorded = {"validation_loss": value, "metrics": metrics, "parameter_count": 10 + i}
        recorded["validation_windows"] = [value, value + noise] * (2 if is_copy else 3)
        runs.append((params, value, recorded))
    floors = {"constant": {"loss": 3.0}, "memoryless": {"loss": 2.5}, "recurrent": {"loss": 2.4}}
    make_runs(url, "made", raw, runs, task_floors={"copy:10": floors})


@pytest.fixture
def url(tmp_path) -> str:
    """Storage of the study."""
    make_tasks(url := f"sqlite:///{tmp_path}/studies.db")
    return url


def read(url):
    with closing(read_storage(url)) as storage:
        return read_results(storage, "made", ())


def test_tasks_may_have_different_numbers_of_held_out_sequences(url):
    windows = read(url).windows
    assert sorted(map(len, windows.values())) == [4] * 16 + [6] * 16


def test_signs_of_significant_effects_are_compared_and_shares_of_solved_networks(url):
    findings, comparisons = find_all([read(url)])
    found = {label_change(row.contrast): row for row in comparisons["made"].contrasts}
    assert found["residual"].agreement == "helps in 2 of 2"
    assert found["layers 1 → 2"].agreement == "helps in 1 of 2, harms in 1"
    assert found["state size 4 → 8"].agreement == "undecided in 2"
    assert [label for label, row in found.items() if row.agrees] == ["residual"]
    effects = [effect for row in found.values() for effect in row.by_task.values()]
    least = min(effects, key=lambda effect: effect.p)
    assert len(effects) == 2 * 5
    assert least.p_adjusted == pytest.approx(10 * least.p, abs=0)
    copy, numbers = (part.results for part in findings)
    assert count_solved(copy) == (6, 16)
    solved = {label_change(contrast): change for contrast, change in compare_solved(copy).items()}
    # Of five changes in one task, each with its exact p-value.
    residual = solved["residual"]
    shares = (residual.before, residual.after, residual.p)
    assert shares == (0, 6 / 8, pytest.approx(5 * 2 / 2**6))
    assert count_solved(numbers) is None  # its task does not say


def test_report_has_a_section_for_each_task_after_one_that_compares_them(url, tmp_path):
    report = write_report(url, ["made"], tmp_path / "made.html")
    page = report.path.read_text()
    headings = re.findall(r"<h1[^>]*>([^<]*)", page)
    assert headings == ["Across tasks", "Does it help?", "Does it help?"]
    assert re.findall('study-name">([^<]*)', page) == [
        "made, across tasks", "made, task copy:10", "made, task Sum",
    ]  # fmt: skip
    across = page.partition("Across tasks</h1>")[2].partition('aria-labelledby="s2"')[0]
    text = " ".join(re.sub("<[^>]+>", " ", across).split())
    assert "residual helps in 2 of 2 tasks" in text
    assert "residual −0.3 * [−0.301, −0.299] −0.3 * [" in text
    assert page.count("0% → 75%<") == 1  # not significant after correction
    assert page.count("accuracy of at least 0.9") == 1
    assert page.count(" without memory</caption>") == 1  # the study stores none of the other
    comparison, *lines = report.headline
    assert comparison == "residual helps in 2 of 2 tasks"
    assert lines[0] == "of opposite signs: layers 1 → 2"
    assert [lines[i] for i in (1, 6)] == ["made, task copy:10:", "made, task Sum:"]
    assert ", validation cross-entropy 1.499 nats per target; " in lines[5]
    assert ", validation squared error 49.799; " in lines[-1]
    make_study(url, "other")
    two = write_report(url, ["made", "other"], tmp_path / "two.html")
    assert two.headline[: len(lines) + 1] == report.headline
    assert two.headline[len(lines) + 1] == "other:"


def test_python_has_the_effects_of_each_task(url):
    study = load("made", storage=url)
    effects = study.effects()
    frame = effects.to_frame()
    assert frame.columns[0] == "task"
    assert set(frame["task"]) == {"copy:10", "Sum"}
    agreement = effects.agreement_frame().set_index("parameter")
    assert agreement.loc["residual", ["tasks", "helps", "harms", "agrees"]].tolist() == [2, 2, 0, 1]
    assert agreement.loc["layers", ["tasks", "helps", "harms", "agrees"]].tolist() == [2, 1, 1, 0]
    assert repr(effects).startswith("residual helps in 2 of 2 tasks\n")
    assert "<li>residual helps in 2 of 2 tasks</li>" in effects._repr_html_()
    panels = effects.plot().data
    assert [len(panel.x) for panel in panels] == [5, 5]
    one = study.at_task("Sum")
    assert {*one.effects().to_frame()["effect"]} == {*panels[1].x}
    assert len(one.results) == 16
    assert study.results["task"].tolist() == ["Sum"] * 16 + ["copy:10"] * 16
    assert one.best.number == one.results.index[0]
