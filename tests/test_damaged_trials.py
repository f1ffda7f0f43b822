"""Damaged trials are left out with a warning that names them; the other trials are still shown.

SQLite stores any value in any column; PostgreSQL, whose columns have types, NULL and numbers out of
range.
"""

import contextlib
import csv
import json
import shutil
import sqlite3

import pytest
import sqlalchemy as sa
from helpers import EACH_DATABASE, QUICK, create_small_study
from invocation import invoke_command
from process_runner import query
from test_damaged_studies import DERIVED, SETTINGS, connected, finished, quiet

import refine
import reports.cli
import run_search
from reports.dashboard.publish import publish_study
from rnn_search import load
from search.export import export
from search.sample import sample
from studies.artifacts import open_store
from studies.errors import StudyFormatError
from studies.storage.counts import count_trials
from studies.storage.damage import MAX_NAMED, DamagedTrials
from studies.storage.open import open_storage
from studies.storage.queries import read_trials

__all__ = ["finished", "quiet"]

SIZE = "param_name = 'state_size'"
COLUMNS = {
    "trials.number": "1",
    "trials.state": "1",
    "trials.datetime_start": "1",
    "trials.datetime_complete": "1",
    "trial_params.param_name": SIZE,
    "trial_params.param_value": SIZE,
    "trial_params.distribution_json": SIZE,
    "trial_values.objective": "1",
    "trial_values.value": "1",
    "trial_values.value_type": "1",
    "trial_intermediate_values.step": "step = 2",
    "trial_intermediate_values.intermediate_value": "step = 2",
    "trial_intermediate_values.intermediate_value_type": "step = 2",
    "trial_user_attributes.key": "key = 'seconds'",
    "trial_user_attributes.value_json": "key IN ('seconds', 'retries', 'failure')",
    "trial_system_attributes.key": "key = 'grid_trial'",
    "trial_system_attributes.value_json": "key IN ('grid_trial', 'validation_windows')",
}
"""Every column that is read of a trial, and the rows of trial 0 to damage."""

NOT_UTF8 = b"x\xff"
"""Stored as a text."""

VALUES = (None, "x", b"\xff\x00", NOT_UTF8, -(2**62), float("inf"))


@pytest.fixture(autouse=True)
def _report_again(monkeypatch):
    monkeypatch.setattr(DamagedTrials, "_reported", {})


def damage(folder, column, where, value):
    """Change a column of trial 0, if the database allows it."""
    table, name = column.split(".")
    with contextlib.suppress(sqlite3.IntegrityError), connected(folder) as database:
        changed = "CAST(? AS TEXT)" if value is NOT_UTF8 else "?"
        statement = f"UPDATE {table} SET {name} = {changed} WHERE trial_id = 1 AND {where}"
        assert database.execute(statement, (value,)).rowcount
        return True
    return False


def invoke(command, *words):
    command.main(list(words), standalone_mode=False)


def require_other_trial(url, folder, capsys):
    """Require that status, tables, the API and the dashboard show trial 1."""
    capsys.readouterr()
    invoke(run_search.run_search, QUICK, "--status", "--json", "--storage", url)
    status = json.loads(capsys.readouterr().out)
    assert status["planned"] in (1, 2)
    assert status["complete"] in (1, 2)
    tables = "--csv", f"{folder}/trials.csv", "--curves", f"{folder}/curves.csv"
    invoke(reports.cli.reports, "quick", *tables, "--storage", url)
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        assert "1" in [row["number"] for row in csv.DictReader(file)]
    with (folder / "curves.csv").open(encoding="utf-8") as file:
        assert "4" in [row["state_size"] for row in csv.DictReader(file)]
    assert load("quick", storage=url).best.number in (0, 1)
    with contextlib.closing(open_storage(url)) as storage:
        assert 1 in [trial.number for trial in storage.get_all_trials(1)]
        assert storage.get_all_studies()[0].user_attrs["config"]
        publish_study(storage, "quick", lambda: open_store(None, url, "artifacts"))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize(
    "values", [["x"], pytest.param(VALUES, marks=pytest.mark.extended)], ids=["text", "all"]
)
def test_damaged_trial_leaves_the_others_shown(finished, tmp_path, capsys, caplog, column, values):
    for index, value in enumerate(values):
        folder = tmp_path / str(index)
        shutil.copytree(finished, folder)
        if not damage(folder, column, COLUMNS[column], value):
            continue
        caplog.clear()
        DamagedTrials._reported.clear()
        require_other_trial(f"sqlite:///{folder}/studies.db", folder, capsys)
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) <= 1
        for line in lines:
            assert line.startswith("study 'quick': trial ")
            assert "is damaged and left out (" in line
            assert len(line) < 300


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    "column",
    [
        "trial_params.param_name",
        pytest.param("trials.state", marks=pytest.mark.extended),
        pytest.param("trial_values.value", marks=pytest.mark.extended),
    ],
)
def test_damaged_trial_leaves_every_command_its_work(finished, tmp_path, column):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    assert damage(folder, column, COLUMNS[column], "x")
    common = ("--storage", f"sqlite:///{folder}/studies.db")
    text = ("--corpus", str(finished / "text"), "--threads", "1")
    invoke(sample, "quick", "--length", "5", *common)
    invoke(run_search.run_search, QUICK, *text, *SETTINGS, *common)
    invoke(refine.refine, "quick-refined", "--threads", "1", *DERIVED, *common)
    invoke(reports.cli.reports, "quick", "--output", f"{folder}/page.html", *common)
    invoke(export, "quick", f"{folder}/exported", *common)
    assert (folder / "page.html").stat().st_size > 100_000
    (derived,) = query(
        common[1],
        "SELECT value_json FROM trial_user_attributes WHERE key = 'source_trials' AND trial_id > 2",
    )
    assert derived == ("[1]",)


CHANGES = {
    "UPDATE trial_params SET param_value = NULL WHERE trial_id = {}": "parameter x: its choice is",
    "UPDATE trial_params SET param_value = 99 WHERE trial_id = {}": "parameter x: its choice is 99",
    "UPDATE trials SET number = -7 WHERE trial_id = {}": "its number is -7",
    "UPDATE trial_user_attributes SET value_json = NULL WHERE trial_id = {}": "retries: it is NULL",
}
"""Damage that PostgreSQL allows as well."""


@EACH_DATABASE
@pytest.mark.parametrize("statement", CHANGES)
def test_damage_that_both_databases_allow_is_named(url, caplog, statement):
    with contextlib.closing(open_storage(url)) as storage:
        study_id = create_small_study(storage, 2)
        first = min(trial._trial_id for trial in storage.get_all_trials(study_id))
        storage.set_trial_user_attr(first, "retries", {})
        with storage.engine.begin() as connection:
            connection.execute(sa.text(statement.replace("{}", str(first))))
        with pytest.raises(StudyFormatError, match="is damaged"):
            storage.get_trial(first)
        assert [trial.number for trial in storage.get_all_trials(study_id)] == [1]
        assert count_trials(storage, study_id).waiting == 2
    (warning,) = caplog.records
    assert CHANGES[statement] in warning.getMessage()


def test_warnings_name_the_first_and_count_the_others(finished, tmp_path, caplog):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    with contextlib.closing(open_storage(f"sqlite:///{folder}/studies.db")) as storage:
        damaged = DamagedTrials()
        for number in range(MAX_NAMED + 2):
            damaged.add(number, ValueError("its state is 'x'"))
        damaged.report(storage, 1)
        damaged.report(storage, 1)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == MAX_NAMED + 1
    assert lines[0] == "study 'quick': trial 0 is damaged and left out (its state is 'x')"
    assert lines[-1] == "study 'quick': 2 more damaged trials are left out"


def test_commands_print_the_warning_in_one_line(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    assert damage(folder, "trials.state", "1", "\x1b[2J")
    words = (QUICK, "--status", "--storage", f"sqlite:///{folder}/studies.db")
    done = invoke_command("run_search.py", *words, cwd=tmp_path)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: study 'quick': trial 0 is damaged and left out (its state is")
    assert "\x1b" not in line


def test_study_with_a_damaged_trial_is_published_once(finished, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    assert damage(folder, "trial_params.param_value", SIZE, 99)
    url = f"sqlite:///{folder}/studies.db"
    with contextlib.closing(open_storage(url)) as storage:
        for _ in range(2):
            publish_study(storage, "quick", lambda: open_store(None, url, "artifacts"))
            monkeypatch.setattr(
                "reports.dashboard.publish.StudyReader.read", lambda *_, **__: pytest.fail("again")
            )


def test_extension_of_a_damaged_study_is_refused(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    url = f"sqlite:///{folder}/studies.db"
    assert damage(folder, "trial_params.param_value", SIZE, 99)
    words = ("--corpus", str(finished / "text"), "--threads", "1", "--extend", "--storage", url)
    wider = "--set=space.state_size=[3, 4, 5]"
    with pytest.raises(StudyFormatError, match=r"trial 0: parameter state_size: its choice is 99"):
        invoke(run_search.run_search, QUICK, *SETTINGS, wider, *words)
    assert query(url, "SELECT count(*) FROM trials") == [(2,)]
    with contextlib.closing(open_storage(url)) as storage:
        assert [trial.number for trial in read_trials(storage, 1)] == [1]


DAMAGE = {
    "param_value": (
        f"UPDATE trial_params SET param_value = 99 WHERE {SIZE} AND trial_id = {{}}",
        "trial 0",
        "parameter state_size: its choice is 99.0 of 2, counted from 0",
    ),
    "number": (
        "UPDATE trials SET number = NULL WHERE trial_id = {}",
        "trial of id {}",
        "its number is None",
    ),
}
"""Statements, and what the warning calls the trial and says of it."""


@EACH_DATABASE
@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        ("param_value", ()),
        pytest.param("param_value", ("--workers", "2"), marks=pytest.mark.extended),
        pytest.param("number", ("--prune",), marks=pytest.mark.extended),
    ],
)
def test_worker_fails_a_damaged_trial_and_trains_the_others(request, url, text, damaged, words):
    run = request.getfixturevalue("run" if "--workers" in words else "invoke")
    command = ("run_search.py", QUICK, "--storage", url, "--corpus", str(text), *SETTINGS, *words)
    assert run(*command, "--until", "0.000001s", report=False).returncode == 0
    (lowest,) = query(url, "SELECT min(trial_id) FROM trials")[0]
    statement, name, reason = (part.format(lowest) for part in DAMAGE[damaged])
    change(url, statement)
    done = run(*command, report=False)
    assert done.returncode == 0, done.stderr
    states = query(url, "SELECT state, count(*) FROM trials GROUP BY state ORDER BY state")
    assert states == [("COMPLETE", 1), ("FAIL", 1)]
    error = "SELECT value_json FROM trial_user_attributes WHERE key = 'error'"
    assert query(url, error) == [(f'"damaged: {reason}"',)]
    output = done.stdout + done.stderr
    assert f"{name} is damaged and left out ({reason}" in output
    assert "Traceback" not in output


def change(url, statement):
    """Execute a statement on either database."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        assert connection.execute(sa.text(statement)).rowcount
    engine.dispose()
