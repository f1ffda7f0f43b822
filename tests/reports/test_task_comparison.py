"""Reports about tasks other than text: of one, and of several with what changes do in all."""

import csv
import io
import re
from contextlib import closing

import pytest
from factories import SMALL_GRID, created_once, make_runs, make_study

from reports.final_report import write_csv
from reports.formatting import label_change
from reports.page.page import find_all, write_report
from reports.study_reader import read_results
from rnn_search import list_studies, load
from search.status import format_progress, format_status
from studies.config import StudyConfig
from studies.exchange import export_study
from studies.storage.open import read_storage

CLASSES = {"source": "copy:10", "steps": 30, "inputs": 10, "outputs": 8, "reads_tokens": True,
           "predicts_classes": True, "loss": "cross-entropy",
           "metrics": {"accuracy": "maximize"}}  # fmt: skip
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
        metrics = {"accuracy": 1 - value / 3} if is_copy else {"mae": value / 3}
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


def test_signs_of_significant_effects_are_compared(url):
    _, comparisons = find_all([read(url)])
    found = {label_change(row.contrast): row for row in comparisons["made"].contrasts}
    assert found["residual"].agreement == "helps in 2 of 2"
    assert found["layers 1 → 2"].agreement == "helps in 1 of 2, harms in 1"
    assert found["state size 4 → 8"].agreement == "undecided in 2"
    assert [label for label, row in found.items() if row.agrees] == ["residual"]
    effects = [effect for row in found.values() for effect in row.by_task.values()]
    least = min(effects, key=lambda effect: effect.p)
    assert len(effects) == 2 * 5
    assert least.p_adjusted == pytest.approx(10 * least.p, abs=0)


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


# ------------------------------------------------------------------ a single task


TASK = {"source": "/tasks/mine.py:Mine", "sha256": "ab" * 32, "data_sha256": "cd" * 32, "steps": 50,
        "inputs": 2, "outputs": 3, "reads_tokens": False, "predicts_classes": True,
        "options": {"distance": {"type": "int", "default": 7}}, "values": {"distance": 9},
        "metrics": {"accuracy": "maximize", "mae": "minimize"},
        "eval_lengths": [40, 100]}  # fmt: skip

WORDS = re.compile(
    r"\b(bytes?|bits?|corpus|text|nats?|tokens?|windows?|context|samples?|bpb|undefined|nan)\b"
)
"""Words of studies of text, and of values that are missing."""

NAMES = {"standardized squared error": "squared error", "own": "loss"}


@created_once
def make_task(url, loss, first, distance):
    """Store a study of eight networks with losses from ``first`` on, at equal distances."""
    raw = {
        "space": SMALL_GRID,
        "task_record": TASK | {"loss": loss, "unit": "points"},
        "task": {"source": TASK["source"], "distance": 9},
        "report_threshold": first + distance / 2,
    }
    runs = []
    for i, params in enumerate(StudyConfig.model_validate(raw).grid.combinations()):
        value = first + i * distance
        recorded = {
            "validation_loss": value,
            "validation_stderr": distance / 7,
            "validation_windows": [value - distance * (i + 1), value + distance * (i + 1)],
            "metrics": {"accuracy": 0.9371 - i / 100, "mae": 12.75 + i},
            "lengths": {
                40: {"loss": value, "accuracy": 0.7154 - i / 100},
                100: {"loss": first + 11 * distance, "accuracy": 0.4321 - i / 100},
            },
            "slices": {
                "cue": {n: {"loss": value, "accuracy": 0.5132 - n / 100} for n in (0, 3, 9)}
            },
            "steps": 100,
            "updates": 2,
            "inputs": 1600,
            "parameter_count": 10 * (8 - i),
        }
        runs.append((params, value, recorded))
    floors = {
        "constant": {"loss": first + 9 * distance, "accuracy": 0.3456},
        "last_value": {"loss": first + 8 * distance},
        "memoryless": {"loss": first + 7 * distance},
        "recurrent": {"loss": first + 2 * distance, "accuracy": 0.8123},
    }
    make_runs(url, "made", raw, runs, floors=floors)


def find_words(text, loss):
    """Return the words of a text that do not belong to a report of a task."""
    return {*WORDS.findall(text.lower())} - ({"nats"} if loss == "cross-entropy" else set())


@pytest.mark.parametrize(
    ("loss", "first", "distance", "best", "floor", "limit"),
    [
        ("cross-entropy", 0.25, 0.0625, "0.25 nats", "0.6875", "0.28125"),
        ("standardized squared error", 3e-5, 1e-6, "3e−05 of the variance", "3.7e-05", "3.05e−05"),
        ("own", -30123.5, 4000.0, "−30124 points", "−2123.5", "−28123.5 points"),
    ],
)
def test_page_tables_and_lines_are_those_of_the_task(
    sqlite_url, tmp_path, loss, first, distance, best, floor, limit
):
    make_task(sqlite_url, loss, first, distance)
    name = NAMES.get(loss, loss)
    written = write_report(sqlite_url, ["made"], tmp_path / "page.html")
    page = written.path.read_text()
    body = page[page.index("<main>") : page.index("</main>")]
    shown = re.sub(r"<script.*?</script>|<pre.*?</pre>|<[^>]*>", " ", body, flags=re.S)
    attributes = " ".join(re.findall(r'(?:title|aria-label|data-name)="([^"]*)"', body))
    # The keys of a figure are Plotly's.
    figures = re.findall(r'"(?:text|title|name|hovertemplate)":("[^"]*")', body)
    headline = "\n".join(written.headline)
    for part in (shown, attributes, " ".join(figures).replace("%{text}", ""), headline):
        assert not find_words(part, loss)
    values = [f"validation {name}", *best.split(" ", 1), floor, "0.9371", "12.75", "0.5132"]
    values += ["0.8123", "0.3456", "higher is better", "tasks/mine.py:Mine", "cd" * 32, "40 steps"]
    values += [f"{first + 11 * distance:.5g}", "length 100 steps", "0.4321", "cue 9"]
    for value in values:
        assert value.replace("-", "−") in shown.replace("-", "−"), value
    assert limit in shown
    by_length = page.partition("made by length and slice</caption>")[2].partition("</table>")[0]
    assert "<span>2×4 no gates</span>" in by_length, "without what all have in common"
    rows = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', by_length)
    quantities = [name, "accuracy", "mae"]
    assert rows[:3] == [("length 50 steps", quantity) for quantity in quantities]
    expected = [(f"length {n} steps", quantity) for n in (40, 100) for quantity in quantities[:2]]
    assert rows[3:7] == expected
    assert rows[7:9] == [("cue 0", name), ("cue 0", "accuracy")]
    least = best.split()[0]
    assert f"best: 1×4 no gates, new state (trial 0), validation {name} {least}" in headline

    study = load("made", storage=sqlite_url)
    lines = [format_status(study.status, study.config), format_progress(study.status)]
    assert f"validation {name} {best}" in lines[0]
    assert f"best validation {name} {best}" in lines[1]
    with closing(read_storage(sqlite_url)) as storage:
        results = read_results(storage, "made")
    write_csv([results], tmp_path / "trials.csv")
    (row, *_) = csv.DictReader(io.StringIO((tmp_path / "trials.csv").read_text()))
    assert (float(row["value"]), float(row["validation_accuracy"])) == (first, 0.9371)
    assert row["slices"].startswith('{"cue": {"0": {')
    columns = {"validation_accuracy", "validation_mae", "validation_loss", "steps", "updates"}
    assert columns | {"inputs"} <= set(study.results.columns)
    (listed,) = list_studies(storage=sqlite_url)
    parts = [*lines, listed.best_text, " ".join(row), repr(study.effects())]
    for part in parts:
        assert not find_words(part.replace("_", " "), loss), part
    assert first in study.pareto()["loss"].tolist()

    export_study(sqlite_url, "made", tmp_path / "made.jsonl")
    content = (tmp_path / "made.jsonl").read_text()
    assert "mine.py:Mine" in content
    assert "tasks/mine.py" not in content
