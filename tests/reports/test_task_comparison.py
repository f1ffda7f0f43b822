"""Reports of studies of several tasks: a section for each, and what changes do in all of them."""

import re
from contextlib import closing

import pytest
from factories import SMALL_GRID, created_once, make_runs, make_study

from reports.analysis.solved import compare_solved, count_solved
from reports.findings import compare_across_tasks
from reports.page.page import write_report
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
    comparison = compare_across_tasks(read(url).split_tasks())
    found = {each.contrast.label: each for each in comparison.contrasts}
    assert found["residual"].agreement == "helps in 2 of 2"
    assert found["layers 1 → 2"].agreement == "helps in 1 of 2, harms in 1"
    assert found["state size 4 → 8"].agreement == "undecided in 2"
    assert [label for label, each in found.items() if each.agrees] == ["residual"]
    effects = [each for contrast in found.values() for each in contrast.by_task.values()]
    least = min(effects, key=lambda each: each.effect.p)
    assert len(effects) == 2 * 5
    assert least.p_adjusted == pytest.approx(10 * least.effect.p, abs=0)
    copy, numbers = read(url).split_tasks()
    assert count_solved(copy) == (6, 16)
    solved = {each.label: change for each, change in compare_solved(copy).items()}
    # Of five changes in one task, each with its exact p-value.
    assert solved["residual"] == (0, 6 / 8, pytest.approx(5 * 2 / 2**6))
    assert count_solved(numbers) is None  # its task does not say


def test_report_has_a_section_for_each_task_after_one_that_compares_them(url, tmp_path):
    report = write_report(url, ["made"], tmp_path / "made.html")
    page = report.path.read_text()
    headings = re.findall(r"<h1[^>]*>([^<]*)", page)
    assert headings == ["Across tasks", "Does it help?", "Does it help?"]
    assert re.findall('study-name">([^<]*)', page) == [
        "made", "made, task copy:10", "made, task Sum",
    ]  # fmt: skip
    across = page.partition("Across tasks</h1>")[2].partition('aria-labelledby="s1"')[0]
    text = " ".join(re.sub("<[^>]+>", " ", across).split())
    assert "residual −0.3 * [" in text
    assert page.count("0% → 75%<") == 1  # not significant after correction
    assert page.count("6 of 16 trials are solved: accuracy of at least 0.9.") == 1
    assert len(re.findall('id="s1-floors"', page)) == 1
    assert not re.findall('id="s2-floors"', page)  # the study stores none of that task
    assert re.fullmatch(
        r"best by task: copy:10: .* \(trial \d+\), 1\.\d+ nats per target, validation "
        r"cross-entropy; Sum: .* \(trial \d+\), 49\.\d+, validation squared error; "
        "residual helps in 2 of 2 tasks; 1 change of opposite signs: layers 1 → 2",
        report.headline,
    )
    make_study(url, "other")
    two = write_report(url, ["made", "other"], tmp_path / "two.html").headline
    assert two.startswith("best by task of 'made': copy:10: ")


def test_python_has_the_effects_of_each_task(url):
    study = load("made", storage=url)
    effects = study.effects()
    assert effects.table.columns[0] == "task"
    assert set(effects.table["task"]) == {"copy:10", "Sum"}
    p_values = {
        (task, each.contrast.parameter): found.p_adjusted
        for each in effects.contrasts
        for task, found in each.by_task.items()
        if each.contrast.parameter != "state_size"
    }
    rows = effects.table.set_index(["task", "parameter"])["p_adjusted"]
    assert {key: rows[key] for key in p_values} == p_values
    agrees = effects.agreement.set_index("parameter")["agrees"]
    assert agrees["residual"]
    assert not agrees["layers"]
    assert "residual helps in 2 of 2 tasks" in repr(effects)
    one = study.at_task("Sum")
    assert one.effects().table["effect"].tolist() == effects.by_task["Sum"].table["effect"].tolist()
    assert len(one.results) == 16
    assert study.results["task"].tolist() == ["Sum"] * 16 + ["copy:10"] * 16
    assert one.best.number == one.results.index[0]
