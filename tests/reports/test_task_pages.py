"""Reports, tables and lines about tasks other than text."""

import csv
import io
import re
from contextlib import closing

import pytest
from factories import SMALL_GRID, created_once, make_runs

from reports.final_report import write_csv
from reports.page.page import write_report
from reports.study_reader import read_results
from rnn_search import list_studies, load
from search.status import format_progress, format_status
from studies.config import StudyConfig
from studies.exchange import export_study
from studies.storage.open import read_storage

TASK = {"source": "tasks/mine.py:Mine", "sha256": "ab" * 32, "data_sha256": "cd" * 32, "steps": 50,
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
            "length_losses": {40: value, 100: first + 11 * distance},
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
    values += [f"{first + 11 * distance:.5g}", "length 100 steps", "cue 9"]
    for value in values:
        assert value.replace("-", "−") in shown.replace("-", "−"), value
    assert limit in shown
    by_length = page.partition("made by length and slice</caption>")[2].partition("</table>")[0]
    assert "<span>2×4 no gates</span>" in by_length, "without what all have in common"
    rows = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', by_length)
    assert rows[:3] == [(f"length {n} steps", name) for n in (50, 40, 100)]
    assert rows[3:5] == [("cue 0", name), ("cue 0", "accuracy")]
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
