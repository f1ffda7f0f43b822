"""Rows that cannot be decoded, and an Optuna with other tables, are errors of one line."""

import json
import subprocess
import sys
from contextlib import closing

import optuna
import pytest
import sqlalchemy as sa
from helpers import create_small_study, study_attributes
from invocation import refused
from optuna.trial import TrialState

from rnn.config import LATER_SWITCHES
from studies.attributes import AUDIT_LOOKS, SCHEMA_VERSION
from studies.config import ImportedResults, StudyConfig
from studies.errors import StudyFormatError
from studies.space import distributions
from studies.storage.counts import count_trials, read_active_workers
from studies.storage.edits import create_study
from studies.storage.open import open_storage, parse_record
from studies.storage.reads import TrialReader, read_audit_looks, read_curves, read_trials
from studies.storage.trials import StoredStudy, StoredTrial

ATTRIBUTE = "UPDATE trial_user_attributes SET value_json = '{}' WHERE key = 'seconds'"
LEASED = "UPDATE trial_system_attributes SET value_json = '[]' WHERE key = 'lease'"
PARAM = "UPDATE trial_params SET {} WHERE trial_id = {{first}}"
DAMAGES = {
    ATTRIBUTE.format("["): "trial 0: attribute seconds: invalid JSON",
    ATTRIBUTE.format("-5"): "trial 0: attribute seconds: input should be greater than or equal",
    PARAM.format("param_value = 7"): "trial 0: parameter x: its choice is 7 of ",
    PARAM.format("distribution_json = '['"): "trial 0: parameter x: its distribution cannot be ",
    "DELETE FROM trial_values": "trial 0: it is complete without a value",
}
"""Damage of trial 0 that both databases allow, and what the message says of it."""


@pytest.fixture
def storage(url):
    with closing(open_storage(url)) as storage:
        for name in ("small", "other"):
            study_id = create_small_study(storage, 3, name)
            first = storage.claim(study_id, "me/1")
            storage.finish(first, "me/1", TrialState.COMPLETE, 1.0, {"seconds": 2.0}, {1: 2.0})
            storage.claim(study_id, "me/2")
        yield storage


def execute(storage, statement):
    with storage.engine.begin() as connection:
        of_study = "trial_id IN (SELECT trial_id FROM trials WHERE study_id = 1)"
        first = connection.scalar(sa.text("SELECT min(trial_id) FROM trials"))
        place = "AND" if "WHERE" in statement else "WHERE"
        statement = f"{statement.format(first=first)} {place} {of_study}"
        assert connection.exec_driver_sql(statement).rowcount


@pytest.mark.parametrize("statement", DAMAGES)
def test_trial_that_cannot_be_decoded_is_named_and_other_studies_stay_readable(storage, statement):
    reader = TrialReader(storage, 1)
    execute(storage, statement)
    advice = "from a backup, or repair an SQLite file with sqlite3 FILE .recover"
    for read in (lambda: read_trials(storage, 1), reader.read):
        with refused(StudyFormatError, [f"study 'small' is damaged ({DAMAGES[statement]}", advice]):
            read()
    assert len(read_trials(storage, 2)) == 3


def test_lease_that_cannot_be_decoded_is_named(storage):
    execute(storage, LEASED)
    with storage.reading() as connection:
        assert len(read_active_workers(connection, 2)) == 1
    for read in (lambda: storage.running_leases(1), lambda: storage.is_finished_by(2, "me/2")):
        with pytest.raises(StudyFormatError, match=r"trial 1: attribute lease: "):
            read()


def test_state_and_curve_that_sqlite_alone_lets_be_anything_are_named(sqlite_url):
    with closing(open_storage(sqlite_url)) as storage:
        trial_id = storage.claim(create_small_study(storage, 2), "me/1")
        storage.finish(trial_id, "me/1", TrialState.COMPLETE, 1.0, {}, {1: 2.0})
        execute(storage, "UPDATE trial_intermediate_values SET intermediate_value = 'x'")
        with pytest.raises(StudyFormatError, match=r"loss of trial 0 at step 1 is 'x'"):
            read_curves(storage, 1)
        execute(storage, "UPDATE trials SET state = 'ODD' WHERE number = 1")
        for read in (storage.get_all_trials, lambda study: count_trials(storage, study)):
            with pytest.raises(StudyFormatError, match=r"its state is 'ODD'"):
                read(1)


def test_attribute_of_a_study_is_named_and_the_others_are_listed(storage, url, invoke):
    storage.set_study_system_attr(1, AUDIT_LOOKS, {"first": {"trials": -1}})
    with pytest.raises(StudyFormatError, match=r"'small' is damaged \(system attribute rnn_search"):
        read_audit_looks(storage, 1)
    storage.set_study_user_attr(1, "config", {})
    with storage.transaction() as connection:
        connection.exec_driver_sql("UPDATE study_user_attributes SET value_json = '{'")
    done = invoke("list", "--storage", url, "--json")
    assert done.returncode == 0, done.stderr
    damaged, other = sorted(json.loads(done.stdout), key=lambda study: study["kind"])
    assert (damaged["study"], damaged["kind"]) == ("small", "damaged")
    assert "study 'small' is damaged (attribute config: " in damaged["problem"]
    assert (other["study"], other["planned"]) == ("other", 3)


def test_plain_optuna_gives_attributes_another_meaning(sqlite_url):
    with closing(open_storage(sqlite_url)) as storage:
        study = optuna.create_study(study_name="plain", storage=storage)
        given = {"error": [1], "seconds": [2], "lease": [3]}
        study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs=given))
        assert study.trials[0].user_attrs == given


FOREIGN = [
    ({"schema_version": SCHEMA_VERSION + 1}, f"expected {SCHEMA_VERSION}"),
    ({"schema_version": None}, "no schema version"),
    ({"artifact_folder": "/tmp"}, "an invalid attribute artifact_folder"),
    ({"artifact_folder": "x/../../foreign"}, "an invalid attribute artifact_folder"),
    ({"config": {"nuisance": ["x"]}}, "an invalid attribute config"),
]


@pytest.mark.parametrize(("changes", "message"), FOREIGN)
def test_study_of_another_version_or_with_a_folder_that_leads_elsewhere_is_refused(
    changes, message
):
    results = ImportedResults(source="x", parameters=["y"])
    attributes = study_attributes(StudyConfig(results=results))
    parse_record("small", attributes)
    with pytest.raises(StudyFormatError, match=message):
        parse_record("small", attributes | changes)


def test_trial_that_was_stored_without_a_switch_has_it_off(sqlite_url, monkeypatch):
    monkeypatch.setitem(LATER_SWITCHES, "input_gate", False)
    others = {"forget_gate": True, "output_gate": True, "state_gate": True, "residual": True}
    params = others | {"state_source": "new", "layers": 1, "state_size": 4}
    choices = distributions({name: [value] for name, value in params.items()})
    with closing(open_storage(sqlite_url)) as storage:
        create_study(storage, StoredStudy("earlier", "loss", {}, choices, [StoredTrial(params)]))
        (trial,) = read_trials(storage, 1)
    assert trial.params == params | {"input_gate": False}


# ------------------------------------------------------------------ an Optuna that differs


CHANGES = {
    "del models.TrialValueModel": "cannot import name 'TrialValueModel'",
    "del RDBStorage._get_trials": "RDBStorage has no method _get_trials",
    "tables['trials']._columns.remove(tables['trials'].c.number)": (
        "table trials has the columns trial_id study_id state"
    ),
    "models.BaseModel.metadata.remove(tables['trial_values'])": (
        "table trial_values has the columns None, expected trial_value_id"
    ),
}
"""Statements that make another Optuna of the installed one, and what the line says of it."""

PROGRAM = """
import json, os, sys
from optuna.storages import RDBStorage
from optuna.storages._rdb import models

tables = models.BaseModel.metadata.tables
changes = json.loads(sys.argv[1])
runs = [(change, ["list"]) for change in changes] + [(changes[-1], ["report", "quick"])]
for change, command in runs:
    pid = os.fork()
    if not pid:
        exec(change)
        from rnn_search.commands import main
        main(*command)
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 2
"""


def test_other_tables_or_classes_of_optuna_are_named_with_the_versions_that_work(tmp_path):
    """Each change is made in a fork of one process, which has imported Optuna."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(list(CHANGES))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    messages = list(CHANGES.values())
    for line, expected in zip(lines, [*messages, messages[-1]], strict=True):
        assert line.startswith("error: Optuna 5.")
        assert expected in line
        assert line.endswith(": install optuna>=5,<6")
