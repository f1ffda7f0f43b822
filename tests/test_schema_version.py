"""Every command refuses a study of another schema version and leaves it unchanged."""

import contextlib
import sqlite3

import pytest
from helpers import QUICK, TINY, study_attributes
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from reports.dashboard.publish import publish_study
from studies.attributes import SCHEMA_VERSION
from studies.config import StudyConfig
from studies.errors import StudyFormatError
from studies.storage.create_study import PlannedTrial, create_study
from studies.storage.open import open_storage

CONFIG = {"space": {"layers": [1], "state_size": [4]}}

WITHOUT_VERSION = {
    "definition": CONFIG | {"training": {"gradient_window": 1}},
    "corpus": {"name": "stdlib", "sha256": "ab", "length": 100, "split": [90, 95]},
    "commands": ["python run_search.py quick"],
    "checkpoints": "quick-0123",
}
"""Attributes from before schema versions were introduced."""

NEWER = study_attributes(StudyConfig.model_validate(CONFIG)) | {
    "schema_version": SCHEMA_VERSION + 1
}

COMMANDS = [
    ("run_search.py", QUICK, "--corpus", "{tmp}/text", *TINY),
    ("run_search.py", "old", "--corpus", "{tmp}/text"),
    ("run_search.py", QUICK, "--status"),
    ("refine.py", "quick-refined", "--corpus", "{tmp}/text", *TINY),
    ("-m", "reports", "quick"),
    ("-m", "reports", "quick", "--watch"),
    ("-m", "reports", "quick", "--csv", "{tmp}/table.csv"),
    ("-m", "reports", "quick", "--curves", "{tmp}/curves.csv"),
    ("-m", "reports.hypotheses", "quick", "--output", "{tmp}/findings.md"),
    ("-m", "search.sample", "quick"),
    ("-m", "search.export", "quick", "{tmp}/network"),
]


@pytest.fixture(params=[WITHOUT_VERSION, NEWER], ids=["no version", "newer version"])
def other_version(request, sqlite_url, text):
    """URL of a storage with two such studies, each with one complete trial."""
    with contextlib.closing(open_storage(sqlite_url)) as storage:
        for name in ("quick", "old"):
            planned = [PlannedTrial({"layers": layers}) for layers in (1, 2)]
            choices = {"layers": CategoricalDistribution((1, 2))}
            create_study(storage, name, "loss", request.param, choices, planned)
            trial_id = storage.claim(storage.get_study_id_from_name(name), "worker/1")
            storage.finish(trial_id, "worker/1", TrialState.COMPLETE, 1.0, {}, {50: 1.0})
    return sqlite_url


def dump(url):
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
        return list(database.iterdump())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_refuses_another_schema_version_in_one_line(other_version, tmp_path, run, command):
    before, files = dump(other_version), {path.name for path in tmp_path.iterdir()}
    words = [word.format(tmp=tmp_path) for word in command]
    done = run(*words, "--storage", other_version)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "schema version" in line
    assert f"expected {SCHEMA_VERSION}" in line
    assert dump(other_version) == before
    assert {path.name for path in tmp_path.iterdir()} - files <= {
        "studies.db-wal",
        "studies.db-shm",
    }


def test_dashboard_publishes_nothing_to_another_schema_version(other_version):
    before = dump(other_version)
    with (
        contextlib.closing(open_storage(other_version)) as storage,
        pytest.raises(StudyFormatError, match="schema version"),
    ):
        publish_study(storage, "quick", pytest.fail)
    assert dump(other_version) == before
