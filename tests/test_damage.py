"""Damaged rows of a database: a study is refused in one line, a trial is named and left out.

SQLite stores any value in any column; PostgreSQL, whose columns have types, NULL and numbers out of
range.
"""

import contextlib
import csv
import json
import shutil
import sqlite3

import optuna
import pytest
import sqlalchemy as sa
from helpers import EACH_DATABASE, ONE_TRIAL, QUICK, TEXT, TINY, create_small_study
from invocation import invoke_command, require_refused, unchanged
from process_runner import query

import reports.cli
import rnn_search.cli
from reports.errors import ReportError
from rnn.config import LATER_SWITCHES
from rnn_search import load
from rnn_search.models_cli import export, sample
from rnn_search.studies_cli import export_command, import_command
from search.errors import USER_ERRORS
from studies.attributes import (
    AUDIT,
    COMMANDS,
    LONG_RESULTS,
    SCHEMA_VERSION,
    SOURCE_TRIALS,
    AuditState,
    Failure,
    StudyRecord,
    TrialRecord,
)
from studies.errors import RowError, StudyFormatError
from studies.storage.changes import extend_study
from studies.storage.counts import count_trials
from studies.storage.leases import PendingWrite
from studies.storage.open import open_storage
from studies.storage.reads import read_trials
from studies.storage.storage import AuditDecision
from studies.storage.trials import MAX_NAMED, DamagedTrials

SETTINGS = (*ONE_TRIAL, "--set=space.state_size=[3, 4]", "--set=keep_weights=2")
DERIVED = (*TINY, "--set=refinement.top=1", "--set=refinement.variants=[{}]", "--name", "derived")
TRIAL_ATTRIBUTES = sorted({*TrialRecord.model_fields, SOURCE_TRIALS} - {*LONG_RESULTS})


@pytest.fixture(autouse=True)
def _report_again(monkeypatch):
    monkeypatch.setattr(DamagedTrials, "_reported", {})


@pytest.fixture
def quiet(monkeypatch):
    """Draw none of Optuna's figures, and write no report after a search."""
    monkeypatch.setattr("reports.charts.trial_plots.chart_importances", lambda results: [])
    monkeypatch.setattr("reports.cli.finalize_search", lambda *study: None)


@contextlib.contextmanager
def connected(folder):
    with contextlib.closing(sqlite3.connect(folder / "studies.db")) as database, database:
        yield database


def url_of(folder):
    return f"sqlite:///{folder}/studies.db"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder with a finished study of two trials, of which trial 0 has every attribute."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text").write_bytes(TEXT)
    words = ("--storage", url_of(folder), "--corpus", f"{folder}/text", "--threads", "1")
    done = invoke_command("run", QUICK, *words, *SETTINGS, cwd=folder, report=False)
    assert done.returncode == 0, done.stderr
    with connected(folder) as database:
        present = {key for (key,) in database.execute("SELECT key FROM trial_user_attributes")}
        for key in {*TRIAL_ATTRIBUTES} - present:
            database.execute(
                "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (1, ?, ?)",
                (key, "[]" if key == SOURCE_TRIALS else "null"),
            )
    return folder


@pytest.fixture
def damage(finished, tmp_path):
    """Copy the study, change the copy by a statement, and return its folder."""
    copies = iter(range(1000))

    def change(statement, *values):
        folder = tmp_path / str(next(copies))
        shutil.copytree(finished, folder)
        with connected(folder) as database:
            assert database.execute(statement, values).rowcount
        return folder

    return change


def call(folder, command, *words):
    words = [word.replace("{tmp}", str(folder)) for word in words]
    command.main([*words, "--storage", url_of(folder)], standalone_mode=False)


STATUS = (rnn_search.cli.status, "quick", "--json")
TABLES = (reports.cli.reports, "quick", "--csv", "{tmp}/trials.csv")
SEARCH = (rnn_search.cli.run_search, QUICK, "--corpus", "{tmp}/text", "--threads", "1", *SETTINGS)
OTHERS = (
    (sample, "quick", "--length", "5"),
    SEARCH,
    (rnn_search.cli.refine, "quick-refined", "--threads", "1", *DERIVED),
    (reports.cli.reports, "quick", "--output", "{tmp}/page.html"),
    (export, "quick", "{tmp}/exported"),
)


# ------------------------------------------------------------------ a study of an earlier version


@pytest.mark.usefixtures("quiet")
def test_study_that_was_stored_without_a_switch_has_it_off(damage, monkeypatch, caplog):
    monkeypatch.setitem(LATER_SWITCHES, "input_gate", False)
    folder = damage("DELETE FROM trial_params WHERE param_name = 'input_gate'")
    file = (
        (export_command, "quick", "{tmp}/q.jsonl"),
        (import_command, "{tmp}/q.jsonl", "--name=b"),
    )
    extended = (*SEARCH, "--set=space.input_gate=[false, true]", "--extend")
    for command in (STATUS, *OTHERS, *file, extended):
        call(folder, *command)
    assert "damaged" not in caplog.text
    with contextlib.closing(open_storage(url_of(folder))) as storage:
        switches = [trial.params["input_gate"] for trial in read_trials(storage, 1)]
        optuna.create_study().add_trials(storage.get_all_trials(1))  # refuses contradictions
    assert switches == [False, False, True, True]


# ------------------------------------------------------------------ a damaged study


def with_config(change: str) -> str:
    return f"UPDATE study_user_attributes SET value_json = {change} WHERE key = 'config'"


REFUSED = {
    with_config("'{'"): r"attribute config: Exp",
    "UPDATE study_user_attributes SET value_json = '{' WHERE key = 'corpus'": "attribute corpus",
    with_config("json_set(value_json, '$.space[0].layers', 'x')"): "config.space.0.layers .*list",
    with_config("json_set(value_json, '$.nuisance', json('[\"x\"]'))"): "nuisance names 'x'",
}
"""Statements that damage a study, and what the message says of it."""


@pytest.mark.parametrize("statement", REFUSED)
def test_damaged_study_is_refused_in_one_line_that_names_the_attribute(damage, statement):
    folder = damage(statement)
    with pytest.raises(StudyFormatError, match=rf"^study 'quick' .*{REFUSED[statement]}") as error:
        call(folder, *TABLES)
    assert "\n" not in str(error.value)


ATTRIBUTE = "UPDATE study_user_attributes SET value_json = '{}' WHERE key = '{}'"
REFUSED_BY_ALL = {
    ATTRIBUTE.format(SCHEMA_VERSION + 1, "schema_version"): f"expected {SCHEMA_VERSION}",
    "DELETE FROM study_user_attributes WHERE key = 'schema_version'": "no schema version",
    ATTRIBUTE.format('"/tmp"', "artifact_folder"): "has an invalid attribute artifact_folder",
    ATTRIBUTE.format('"../foreign"', "artifact_folder"): "has an invalid attribute artifact_folder",
    ATTRIBUTE.format('"x/../../foreign"', "artifact_folder"): "invalid attribute artifact_folder",
}
"""Statements that make a study one of another version, or its folder one outside of the storage."""


@pytest.mark.parametrize("statement", REFUSED_BY_ALL)
def test_other_version_or_a_folder_that_leads_elsewhere_is_refused_by_every_command(
    damage, tmp_path, statement
):
    folder = damage(statement)
    (tmp_path / "foreign").mkdir()
    for suffix in ("checkpoint", "safetensors", "quarantined"):
        (tmp_path / "foreign" / f"trial-0.{suffix}").write_bytes(b"of another program")
    with unchanged(tmp_path):
        for command in (STATUS, TABLES, *OTHERS):
            with pytest.raises(StudyFormatError, match=REFUSED_BY_ALL[statement]):
                call(folder, *command)


def test_other_studies_of_the_storage_are_not_affected(damage, invoke):
    folder = damage(with_config("'{'"))
    storage = ("--storage", url_of(folder))
    done = invoke("status", "quick", *storage)
    require_refused(done, "study 'quick' is damaged")
    words = ("--name", "other", "--corpus", f"{folder}/text", "--threads", "1", *SETTINGS)
    done = invoke("run", QUICK, *storage, *words, report=False)
    assert done.returncode == 0, done.stderr


@EACH_DATABASE
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE study_user_attributes SET value_json = '{' WHERE key = 'config' AND study_id = ID",
        "UPDATE study_system_attributes SET value_json = '[[[[' WHERE study_id = ID",
    ],
)
def test_damaged_study_leaves_the_others_in_the_list(url, statement):
    with contextlib.closing(open_storage(url)) as storage:
        first = create_small_study(storage, 1, "damaged")
        storage.set_study_user_attr(first, "config", {})
        create_small_study(storage, 1, "sound")
        sound = storage.get_all_studies()[1]
        execute(url, statement.replace("ID", str(first)))
        damaged, other = storage.get_all_studies()
        assert other == sound
        assert (damaged.study_name, damaged.system_attrs) == ("damaged", {})
        assert "study 'damaged' is damaged (attribute" in damaged.user_attrs["damaged"]


@EACH_DATABASE
def test_attribute_of_plain_optuna_may_be_called_damaged(url):
    """And what is damaged of a study, such as its system attributes, is not read with the rest."""
    with contextlib.closing(open_storage(url)) as storage:
        study_id = create_small_study(storage, 1, "sound")
        storage.set_study_user_attr(study_id, "damaged", "in transit")
        assert storage.get_study_user_attrs(study_id)["damaged"] == "in transit"
        execute(url, "UPDATE study_system_attributes SET value_json = '['")
        assert storage.get_study_user_attrs(study_id)["damaged"] == "in transit"
        with pytest.raises(StudyFormatError, match="study 'sound' is damaged"):
            storage.get_study_system_attrs(study_id)


def test_study_of_an_unknown_direction_is_listed_as_damaged(damage):
    folder = damage("UPDATE study_directions SET direction = 'UNKNOWN'")
    with contextlib.closing(open_storage(url_of(folder))) as storage:
        (study,) = storage.get_all_studies()
    assert "study 'quick' is damaged (its direction is 'UNKNOWN'" in study.user_attrs["damaged"]


def execute(url, statement):
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        assert connection.execute(sa.text(statement)).rowcount
    engine.dispose()


TEXTS = ("{", "null", '"x"', "-1", "1e999", "[" * 100_000, '{"exception": "x", "value": -1}')
"""Texts in place of the JSON of an attribute."""

ATTRIBUTES = [
    *(
        ("study_user_attributes", name)
        for name in StudyRecord.model_fields
        # Of several tasks, and of a study that was extended by replicates.
        if name not in ("task_floors", "earlier_replicates")
    ),
    ("study_system_attributes", "study:metric_names"),
    *(("trial_user_attributes", name) for name in TRIAL_ATTRIBUTES),
    *(("trial_system_attributes", name) for name in ("validation_windows", "grid_trial", "lease")),
]
"""Tables and names of all attributes; new ones of the models are among them."""


@pytest.mark.extended
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("index", range(len(ATTRIBUTES)))
def test_damaged_attribute_costs_one_line_at_most(damage, index):
    """Each is missing, and has two of the texts; all commands read every third one."""
    table, name = ATTRIBUTES[index]
    row = f"key = '{name}' AND {table.partition('_')[0]}_id = 1"
    folders = [damage(f"DELETE FROM {table} WHERE {row}")]
    for text in (TEXTS[index % len(TEXTS)], TEXTS[(index + 3) % len(TEXTS)]):
        folders.append(damage(f"UPDATE {table} SET value_json = ? WHERE {row}", text))
    for folder in folders:
        require_one_line(call, folder, *STATUS)
        require_one_line(call, folder, *TABLES)
    for command in OTHERS if index % 3 == 0 else ():
        require_one_line(call, folders[1], *command)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    "statement", ["UPDATE trial_params SET distribution_json = '{'", "DELETE FROM trials"]
)
def test_damage_of_all_trials_costs_one_line_at_most(damage, statement):
    folder = damage(statement)
    for command in (STATUS, TABLES, OTHERS[0]):
        require_one_line(call, folder, *command)


def require_one_line(function, *arguments):
    """Require that a function does its work or fails with a message of one line."""
    message = ""
    try:
        function(*arguments)
    except (*USER_ERRORS, ReportError) as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 600


# ------------------------------------------------------------------ a bug


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("reader", "error"),
    [
        ("reads.decode_state", KeyError("COMPLETE")),
        ("reads.decode_param", AssertionError()),
        ("reads.check_params", TypeError("unhashable")),
        ("reads.parse_trial_attribute", ValueError("not enough values to unpack")),
        ("counts.find_status", ZeroDivisionError()),
        ("storage.decode_json", RecursionError()),
    ],
)
def test_bug_of_a_reader_is_raised_and_damages_no_study(damage, monkeypatch, caplog, reader, error):
    folder = damage("UPDATE trials SET state = state")

    def fail(*arguments):
        raise error

    monkeypatch.setattr(f"studies.storage.{reader}", fail)
    with pytest.raises(type(error)) as raised:
        call(folder, *STATUS)
    assert raised.value is error
    assert "damaged" not in caplog.text


# ------------------------------------------------------------------ a damaged trial


def require_other_trial(folder, capsys):
    """Require that status, tables and the API show trial 1."""
    capsys.readouterr()
    call(folder, *STATUS)
    status = json.loads(capsys.readouterr().out)
    assert status["planned"] in (1, 2)
    assert status["complete"] in (1, 2)
    call(folder, *TABLES)
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        assert "1" in [row["number"] for row in csv.DictReader(file)]
    study = load("quick", storage=url_of(folder))
    assert 1 in study.curves["number"].tolist()
    assert study.best.number in (0, 1)


CHOICES = '{"name": "CategoricalDistribution", "attributes": {"choices": [101]}}'
ENDLESS = '{"name": "IntDistribution", "attributes": {"low": 1, "high": Infinity}}'
NAMED = {
    f"trial_params SET distribution_json = '{ENDLESS}' WHERE param_name = 'layers'": (
        "parameter layers: its distribution cannot be read: cannot convert float infinity to "
        "integer"
    ),
    "trial_params SET param_value = -1 WHERE param_name = 'layers'": (
        "parameter layers: its choice is -1.0 of 1, counted from 0"
    ),
    f"trial_params SET distribution_json = '{CHOICES}' WHERE param_name = 'layers'": (
        "parameter layers: input should be less than or equal to 100"
    ),
    "trial_params SET param_name = 'x' WHERE param_name = 'layers'": "it has no parameter layers",
    "trial_user_attributes SET value_json = '-5' WHERE key = 'seconds'": (
        "attribute seconds: input should be greater than or equal to 0"
    ),
    "trial_values SET value = 9e999 WHERE true": "its value is inf",
    "trial_intermediate_values SET intermediate_value = 'x' WHERE step = 2": (
        "its loss at step 2 is 'x'"
    ),
    "trials SET state = 'UNKNOWN' WHERE true": "its state is 'UNKNOWN'",
}
"""Statements that damage trial 0, and what the warning says of it."""


@pytest.mark.parametrize("statement", NAMED)
def test_damaged_trial_is_named_and_the_others_are_shown(damage, capsys, caplog, statement):
    require_other_trial(damage(f"UPDATE {statement} AND trial_id = 1"), capsys)
    (warning,) = caplog.records
    reason = NAMED[statement]
    assert warning.getMessage() == f"study 'quick': trial 0 is damaged and left out ({reason})"


COLUMNS = """
    SELECT tables.name, columns.name
    FROM sqlite_master tables, pragma_table_info(tables.name) columns
    WHERE tables.name LIKE 'trial%' AND tables.name != 'trial_heartbeats'
    AND tables.type = 'table' AND NOT columns.pk AND columns.name NOT IN ('trial_id', 'study_id')
"""
VALUES = ("NULL", "'x'", "X'FF00'", "CAST(X'78FF' AS TEXT)", str(-(2**62)), "9e999")
"""Values in SQL; the fourth is a text that is not UTF-8."""


@pytest.mark.extended
@pytest.mark.parametrize("index", range(len(VALUES)))
def test_value_in_any_column_leaves_the_other_trials_shown(finished, damage, capsys, caplog, index):
    """Each column has two of the values."""
    value = VALUES[index]
    with connected(finished) as database:
        columns = database.execute(COLUMNS).fetchall()
    assert len(columns) > 15
    for table, name in columns[index % 3 :: 3]:
        caplog.clear()
        DamagedTrials._reported.clear()
        row = f"rowid = (SELECT max(rowid) FROM {table} WHERE trial_id = 1)"
        try:
            folder = damage(f"UPDATE {table} SET {name} = {value} WHERE {row}")
        except sqlite3.IntegrityError:  # the column is declared to be without it
            continue
        require_other_trial(folder, capsys)
        for line in (record.getMessage() for record in caplog.records):
            assert line.startswith("study 'quick': trial ")
            assert "is damaged and left out (" in line
            assert len(line) < 300
        assert len(caplog.records) <= 1


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    "change",
    [
        "trial_params SET param_name = 'x' WHERE param_name = 'state_size'",
        pytest.param("trials SET state = 'x' WHERE true", marks=pytest.mark.extended),
        pytest.param("trial_values SET value = 'x' WHERE true", marks=pytest.mark.extended),
    ],
)
def test_damaged_trial_leaves_every_command_its_work(damage, change):
    folder = damage(f"UPDATE {change} AND trial_id = 1")
    for command in OTHERS:
        call(folder, *command)
    assert (folder / "page.html").stat().st_size > 100_000
    source = "SELECT value_json FROM trial_user_attributes WHERE key = 'source_trials'"
    assert query(url_of(folder), f"{source} AND trial_id > 2") == [("[1]",)]


CHANGES = {
    "UPDATE trial_params SET param_value = NULL WHERE trial_id = {}": "parameter x: its choice is",
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
        execute(url, statement.replace("{}", str(first)))
        with pytest.raises(StudyFormatError, match="is damaged"):
            storage.get_trial(first)
        assert [trial.number for trial in storage.get_all_trials(study_id)] == [1]
        assert count_trials(storage, study_id).waiting == 2
    (warning,) = caplog.records
    assert CHANGES[statement] in warning.getMessage()


def test_plain_optuna_gives_attributes_another_meaning(tmp_path, caplog):
    with contextlib.closing(open_storage(url_of(tmp_path))) as storage:
        study = optuna.create_study(study_name="plain", storage=storage)
        for name in ("error", "seconds"):
            study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={name: [1]}))
        assert [trial.user_attrs for trial in study.trials] == [{"error": [1]}, {"seconds": [1]}]
    assert "damaged" not in caplog.text


KEYED = "UPDATE trial_system_attributes SET key = {} WHERE trial_id = 1 AND key = 'lease'"


@pytest.mark.parametrize(
    "statement",
    [
        KEYED.format("NULL"),
        KEYED.format("X'FF00'"),
        "UPDATE study_system_attributes SET key = NULL",
    ],
)
def test_attribute_without_a_name_costs_export_and_copy_one_line_at_most(damage, statement):
    folder = damage(statement)
    require_one_line(call, folder, export_command, "quick", "{tmp}/q.jsonl")


def test_damage_of_a_held_trial_costs_its_worker_the_lease(tmp_path):
    undecided = AuditDecision(AuditState(), AuditState(rungs=2))
    with contextlib.closing(open_storage(url_of(tmp_path))) as storage:
        study_id = create_small_study(storage, 2)
        first, second = storage.claim(study_id, "me"), storage.claim(study_id, "me")
        storage.set_trial_system_attr(second, AUDIT, [])
        execute(url_of(tmp_path), f"UPDATE trials SET state = 'x' WHERE trial_id = {first}")
        writes = [PendingWrite(trial_id, "me", {1: 2.0}) for trial_id in (first, second)]
        assert storage.flush(writes) == [first]
        assert storage.write_audit({second: undecided}) == []
        assert storage.requeue_all(writes, Failure.EXCEPTION) == [first]


def test_warnings_name_the_first_and_count_the_others(damage, caplog):
    damaged = DamagedTrials()
    for number in range(MAX_NAMED + 2):
        damaged.add(number, number, RowError("its state is 'x'"))
    url = url_of(damage("UPDATE trials SET state = state"))
    with contextlib.closing(open_storage(url)) as storage:
        damaged.report(storage, 1)
        damaged.report(storage, 1)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == MAX_NAMED + 1
    assert lines[0] == "study 'quick': trial 0 is damaged and left out (its state is 'x')"
    assert lines[-1] == "study 'quick': 2 more damaged trials are left out"


def test_commands_print_the_warning_in_one_line(damage, invoke):
    folder = damage("UPDATE trials SET state = ? WHERE trial_id = 1", "\x1b[2J")
    done = invoke("status", "quick", "--storage", url_of(folder))
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: study 'quick': trial 0 is damaged and left out (its state is")
    assert "\x1b" not in line


OF_SIZE = "UPDATE trial_params SET param_value = 99 WHERE param_name = 'state_size' AND trial_id"


def test_extension_of_a_damaged_study_is_refused(damage):
    folder = damage(f"{OF_SIZE} = 1")
    with pytest.raises(StudyFormatError, match=r"trial 0: parameter state_size: its choice is 99"):
        call(folder, *SEARCH, "--set=space.state_size=[3, 4, 5]", "--extend")
    assert query(url_of(folder), "SELECT count(*) FROM trials") == [(2,)]
    with contextlib.closing(open_storage(url_of(folder))) as storage:
        assert [trial.number for trial in read_trials(storage, 1)] == [1]


def test_attributes_of_a_study_with_a_damaged_trial_are_replaced(damage):
    folder = damage("UPDATE trial_params SET distribution_json = '{' WHERE trial_id = 1")
    with contextlib.closing(open_storage(url_of(folder))) as storage:
        assert extend_study(storage, 1, {COMMANDS: []}, {COMMANDS: ["other"]})
        assert storage.get_study_user_attrs(1)[COMMANDS] == ["other"]


OF_NUMBER = "UPDATE trials SET number = NULL WHERE trial_id"
CHOICE = "parameter state_size: its choice is 99.0 of 2, counted from 0"


@EACH_DATABASE
@pytest.mark.parametrize(
    ("change", "name", "reason", "words"),
    [
        (OF_SIZE, "trial 0", CHOICE, ()),
        pytest.param(
            *(OF_NUMBER, "trial of id {}", "its number is None", ("--prune", "--workers", "2")),
            marks=pytest.mark.extended,
        ),
    ],
)
def test_worker_fails_a_damaged_trial_and_trains_the_others(
    request, url, text, change, name, reason, words
):
    run = request.getfixturevalue("run" if "--workers" in words else "invoke")
    command = ("run", QUICK, "--storage", url, "--corpus", str(text), *SETTINGS, *words)
    assert run(*command, "--until", "0.000001s", report=False).returncode == 0
    (lowest,) = query(url, "SELECT min(trial_id) FROM trials")[0]
    execute(url, f"{change} = {lowest}")
    done = run(*command, report=False)
    assert done.returncode == 0, done.stderr
    states = query(url, "SELECT state, count(*) FROM trials GROUP BY state ORDER BY state")
    assert states == [("COMPLETE", 1), ("FAIL", 1)]
    error = "SELECT value_json FROM trial_user_attributes WHERE key = 'error'"
    assert query(url, error) == [(f'"damaged: {reason}"',)]
    output = done.stdout + done.stderr
    assert f"{name.format(lowest)} is damaged and left out ({reason}" in output
    assert "Traceback" not in output
