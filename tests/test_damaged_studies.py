"""Damaged rows of a database: each command does its work or names them in one line."""

import contextlib
import shutil
import sqlite3

import pytest
import sqlalchemy as sa
from helpers import EACH_DATABASE, QUICK, TEXT, TINY, create_small_study
from invocation import invoke_command, require_refused

import refine
import reports.cli
import run_search
from reports.dashboard.publish import publish_study
from reports.errors import ReportError
from search.errors import USER_ERRORS
from search.export import export
from search.sample import sample
from studies.artifacts import open_store
from studies.attributes import EVAL_WINDOWS, SOURCE_TRIALS, StudyRecord, TrialRecord
from studies.errors import StudyFormatError
from studies.space import GATED_PARAMS
from studies.storage.damage import DamagedTrials
from studies.storage.open import open_storage

DAMAGE = {
    "no JSON": "{",
    "null": "null",
    "word": '"x"',
    "negative": "-1",
    "infinite": "1e999",
    "deep": "[" * 100_000,
    "object": '{"exception": "x", "value": -1}',
    "missing": None,
}
"""Texts in place of the JSON of an attribute; None removes it."""

SPACE = dict.fromkeys(GATED_PARAMS[:5], "[false]")
SPACE |= {"state_source": "['new']", "layers": "[1]", "state_size": "[3, 4]"}
SETTINGS = (*TINY, "--set=keep_weights=2", *(f"--set=space.{n}={v}" for n, v in SPACE.items()))
DERIVED = (*TINY, "--set=refinement.top=1", "--set=refinement.variants=[{}]", "--name", "derived")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder with a finished study of two trials, of which trial 0 has every attribute."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text").write_bytes(TEXT)
    common = ("--storage", f"sqlite:///{folder}/studies.db", "--threads", "1")
    corpus = ("--corpus", str(folder / "text"))
    words = (QUICK, *common, *corpus, *SETTINGS)
    done = invoke_command("run_search.py", *words, cwd=folder, report=False)
    assert done.returncode == 0, done.stderr
    with connected(folder) as database:
        present = {key for (key,) in database.execute("SELECT key FROM trial_user_attributes")}
        for key in TRIAL_ATTRIBUTES - present:
            database.execute(
                "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (1, ?, ?)",
                (key, "[]" if key == SOURCE_TRIALS else "null"),
            )
    return folder


@contextlib.contextmanager
def connected(folder):
    with contextlib.closing(sqlite3.connect(folder / "studies.db")) as database, database:
        yield database


TRIAL_ATTRIBUTES = {*TrialRecord.model_fields, SOURCE_TRIALS} - {*EVAL_WINDOWS.values()}
ATTRIBUTES = [
    *(("study_user_attributes", name) for name in StudyRecord.model_fields),
    ("study_system_attributes", "study:metric_names"),
    *(("trial_user_attributes", name) for name in sorted(TRIAL_ATTRIBUTES)),
    *(("trial_system_attributes", name) for name in ("validation_windows", "grid_trial", "lease")),
]
"""Tables and names of all attributes; new ones of the models are among them."""

ROWS = [
    f"UPDATE trial_params SET distribution_json = '{text}' WHERE param_name = 'layers'"
    for text in (
        "{",
        "[]",
        '{"name": "CategoricalDistribution", "attributes": {"choices": [1000000000]}}',
        '{"name": "CategoricalDistribution", "attributes": {"choices": ["x"]}}',
        '{"name": "CategoricalDistribution", "attributes": {"choices": [[1]]}}',
        '{"name": "CategoricalDistribution", "attributes": {"choices": []}}',
        '{"name": "IntDistribution", "attributes": {"low": 0, "high": 9}}',
    )
] + [
    "UPDATE trial_params SET param_value = 99 WHERE param_name = 'layers'",
    "UPDATE trial_params SET param_value = 9e999 WHERE param_name = 'layers'",
    "UPDATE trial_params SET param_value = NULL WHERE param_name = 'layers'",
    "UPDATE trial_params SET param_name = 'unknown' WHERE param_name = 'layers' AND trial_id = 1",
    "UPDATE trial_intermediate_values SET intermediate_value = NULL",
    "UPDATE trial_intermediate_values SET intermediate_value = 'x'",
    "UPDATE trial_intermediate_values SET intermediate_value_type = 'UNKNOWN'",
    "UPDATE trial_values SET value = NULL WHERE trial_id = 1",
    "UPDATE trial_values SET value = 9e999 WHERE trial_id = 1",
    "UPDATE trial_values SET value_type = 'UNKNOWN' WHERE trial_id = 1",
    "INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (1, 1, 2, 'FINITE')",
    "DELETE FROM trial_values WHERE trial_id = 1",
    "UPDATE trials SET state = 'UNKNOWN' WHERE trial_id = 1",
    "UPDATE trials SET number = 1000000000 WHERE trial_id = 1",
    "UPDATE trials SET number = NULL WHERE trial_id = 1",
    "UPDATE trials SET datetime_start = 'x' WHERE trial_id = 1",
    "UPDATE study_directions SET direction = 'UNKNOWN'",
    "DELETE FROM trials",
]
"""Statements that damage other rows of Optuna's tables."""


@pytest.fixture
def damage(finished, tmp_path):
    """Copy the study, and change the copy by a statement; return the URL of the storage."""
    copies = iter(range(1000))

    def change(statement, *values):
        folder = tmp_path / str(next(copies))
        shutil.copytree(finished, folder)
        with connected(folder) as database:
            assert database.execute(statement, values).rowcount
        return f"sqlite:///{folder}/studies.db"

    return change


@pytest.fixture
def quiet(monkeypatch):
    """Draw none of Optuna's figures, and write no report after a search."""
    for name in ("compute_block_importances", "compute_importances"):
        monkeypatch.setattr(f"reports.page.sections.{name}", lambda *results: [])
    monkeypatch.setattr("reports.dashboard.launcher.finalize_search", lambda *study: None)


@pytest.fixture
def run_commands(finished, tmp_path, quiet):
    """Run the commands that read a study, or all, and require that each fails in one line at most.

    A damaged trial is left out, so that a command may also do its work.
    """

    def publish(url):
        with contextlib.closing(open_storage(url)) as storage:
            publish_study(storage, "quick", lambda: open_store(None, url, "artifacts"))

    def run(url, every=False):
        corpus = ("--corpus", str(finished / "text"), "--threads", "1")
        tables = ("--csv", f"{tmp_path}/a.csv", "--curves", f"{tmp_path}/b.csv")
        commands = [
            (run_search.run_search, QUICK, "--status", "--json"),
            (reports.cli.reports, "quick", *tables),
            (sample, "quick", "--length", "5"),
        ]
        if every:
            commands += [
                (run_search.run_search, QUICK, *corpus, *SETTINGS),
                (refine.refine, "quick-refined", "--threads", "1", *DERIVED),
                (reports.cli.reports, "quick", "--output", f"{tmp_path}/page.html"),
                (export, "quick", f"{tmp_path}/exported"),
            ]
        for command, *words in commands:
            with one_line():
                command.main([*words, "--storage", url], standalone_mode=False)
        if every:
            with one_line():
                publish(url)

    return run


@contextlib.contextmanager
def one_line():
    message = ""
    try:
        yield
    except (*USER_ERRORS, ReportError) as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 600


def damage_attribute(table, name, kind):
    """Return a statement that damages an attribute of the study or of trial 0, and its values."""
    row = "trial_id = 1" if table.startswith("trial") else "study_id = 1"
    if DAMAGE[kind] is None:
        return f"DELETE FROM {table} WHERE key = ? AND {row}", name
    return f"UPDATE {table} SET value_json = ? WHERE key = ? AND {row}", DAMAGE[kind], name


KINDS = [*DAMAGE]
SOME_DAMAGE = [
    (*attribute, KINDS[index % len(KINDS)]) for index, attribute in enumerate(ATTRIBUTES)
]
"""Each attribute, damaged in one of the ways."""


@pytest.mark.parametrize(("table", "name", "kind"), SOME_DAMAGE)
def test_damaged_attribute_costs_one_line_at_most(damage, run_commands, table, name, kind):
    run_commands(damage(*damage_attribute(table, name, kind)))


@pytest.mark.extended
@pytest.mark.parametrize(("table", "name"), ATTRIBUTES)
def test_attribute_damaged_in_any_way_costs_one_line_at_most(damage, run_commands, table, name):
    for kind in KINDS:
        run_commands(damage(*damage_attribute(table, name, kind)))


@pytest.mark.parametrize("statement", ROWS)
def test_damaged_row_costs_one_line_at_most(damage, run_commands, statement):
    run_commands(damage(statement))


@pytest.mark.extended
@pytest.mark.parametrize(
    "damaged",
    [
        *((statement,) for statement in ROWS[::3]),
        *(damage_attribute(*each, "word") for each in ATTRIBUTES[::6]),
    ],
    ids=str,
)
def test_damage_costs_each_command_one_line_at_most(damage, run_commands, damaged):
    run_commands(damage(*damaged), every=True)


OF_TRIAL = "WHERE param_name = 'layers' AND trial_id = 1"
CHOICES = '{"name": "CategoricalDistribution", "attributes": {"choices": [101]}}'
NAMED = {
    "UPDATE study_user_attributes SET value_json = '{' WHERE key = 'corpus'": (
        "attribute corpus: Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1)"
    ),
}
"""Statements, and how the message names what they damage."""

LEFT_OUT = {
    "UPDATE trial_user_attributes SET value_json = '-5' WHERE key = 'seconds' AND trial_id = 1": (
        "attribute seconds: input should be greater than or equal to 0"
    ),
    f"UPDATE trial_params SET param_value = -1 {OF_TRIAL}": (
        "parameter layers: its choice is -1.0 of 1, counted from 0"
    ),
    f"UPDATE trial_params SET distribution_json = '{CHOICES}' {OF_TRIAL}": (
        "parameter layers: input should be less than or equal to 100"
    ),
}
"""Statements that damage trial 0, and how the warning names what is wrong."""


@pytest.mark.parametrize("statement", NAMED)
def test_message_names_study_and_attribute(damage, statement):
    url = damage(statement)
    message = (
        f"study 'quick' is damaged ({NAMED[statement]}): restore the storage from a backup, or "
        "choose another study or --name"
    )
    with pytest.raises(StudyFormatError) as refused:
        reports.cli.reports.main(["quick", "--storage", url], standalone_mode=False)
    assert str(refused.value) == message


@pytest.mark.parametrize("statement", LEFT_OUT)
def test_warning_names_trial_and_attribute(damage, tmp_path, caplog, monkeypatch, statement):
    monkeypatch.setattr(DamagedTrials, "_reported", {})
    url = damage(statement)
    arguments = ["quick", "--storage", url, "--csv", f"{tmp_path}/trials.csv"]
    reports.cli.reports.main(arguments, standalone_mode=False)
    (warning,) = caplog.records
    reason = LEFT_OUT[statement]
    assert warning.getMessage() == f"study 'quick': trial 0 is damaged and left out ({reason})"


def test_trial_is_checked_however_it_is_read(damage):
    url = damage(f"UPDATE trial_params SET param_value = -1 {OF_TRIAL}")
    with contextlib.closing(open_storage(url)) as storage:
        with pytest.raises(StudyFormatError, match=r"\(trial 0: parameter layers: its choice"):
            storage.get_trial(1)
        assert [trial.number for trial in storage.get_all_trials(1)] == [1]


def with_config(change: str) -> str:
    return f"UPDATE study_user_attributes SET value_json = {change} WHERE key = 'config'"


OPTION = '{"type": "bool", "choices": null, "default": [1]}'
CELL = f'{{"A": {{"spec": "a.py:A", "sha256": "0", "options": {{"norm": {OPTION}}}}}}}'
STORED = {
    with_config("json_set(value_json, '$.space', json('[]'))"): "config.*space has no table",
    with_config("json_set(value_json, '$.space[0].layers', 'x')"): "config.space.0.layers .*list",
    with_config("json_set(value_json, '$.space[0].width', json('[1]'))"): "unknown key width",
    with_config("json_set(value_json, '$.space[0].cell', json('[\"a.py:A\"]'))"): "is not loaded",
    with_config(f"json_set(value_json, '$.cells', json('{CELL}'))"): "config.cells.A.sha256",
    with_config("json_set(value_json, '$.nuisance', json('[\"x\"]'))"): "nuisance names 'x'",
}
"""Statements that damage what a study stores of tables and cells, and the message."""


@pytest.mark.parametrize("statement", STORED)
def test_damaged_table_or_cell_is_named_in_one_line(damage, statement):
    url = damage(statement)
    with pytest.raises(StudyFormatError, match=STORED[statement]) as refused:
        reports.cli.reports.main(["quick", "--storage", url], standalone_mode=False)
    assert "\n" not in str(refused.value)


UNREADABLE = [
    "UPDATE study_user_attributes SET value_json = '{' WHERE key = 'config' AND study_id = {}",
    "UPDATE study_system_attributes SET value_json = '[[[[' WHERE study_id = {}",
]


@pytest.mark.parametrize("statement", UNREADABLE)
@EACH_DATABASE
def test_damaged_study_leaves_the_others_in_the_list(url, statement):
    with contextlib.closing(open_storage(url)) as storage:
        first = create_small_study(storage, 1, "damaged")
        storage.set_study_user_attr(first, "config", {})
        create_small_study(storage, 1, "sound")
        sound = storage.get_all_studies()[1]
        with storage.engine.begin() as connection:
            connection.execute(sa.text(statement.replace("{}", str(first))))
        damaged, other = storage.get_all_studies()
        assert other == sound
        assert (damaged.study_name, damaged.system_attrs) == ("damaged", {})
        assert "study 'damaged' is damaged (attribute" in damaged.user_attrs["damaged"]


def test_other_studies_of_the_storage_are_not_affected(damage, finished, invoke):
    url = damage("UPDATE study_user_attributes SET value_json = '{' WHERE key = 'config'")
    done = invoke("run_search.py", QUICK, "--storage", url, "--status")
    require_refused(done, "study 'quick' is damaged")
    common = ("--storage", url, "--corpus", str(finished / "text"), "--threads", "1")
    done = invoke("run_search.py", QUICK, "--name", "other", *common, *SETTINGS, report=False)
    assert done.returncode == 0, done.stderr


def test_study_of_an_unknown_direction_is_listed_as_damaged(damage):
    url = damage("UPDATE study_directions SET direction = 'UNKNOWN'")
    with contextlib.closing(open_storage(url)) as storage:
        (study,) = storage.get_all_studies()
    assert "study 'quick' is damaged ('UNKNOWN' is not" in study.user_attrs["damaged"]
