"""Every command refuses a study of another schema version and leaves it unchanged."""

import contextlib

import pytest
from helpers import QUICK, TEXT, TINY, study_attributes
from invocation import require_refused, unchanged
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
    ("run_search.py", QUICK, "--status"),
    ("refine.py", "quick-refined", "--corpus", "{tmp}/text", *TINY),
    ("-m", "reports", "quick"),
    ("-m", "reports", "quick", "--csv", "{tmp}/table.csv"),
    ("-m", "reports.hypotheses", "quick", "--output", "{tmp}/findings.md"),
    ("-m", "search.sample", "quick"),
    ("-m", "search.export", "quick", "{tmp}/network"),
]


@pytest.fixture(
    scope="module", params=[WITHOUT_VERSION, NEWER], ids=["no version", "newer version"]
)
def other_version(request, tmp_path_factory):
    """Folder with such a study, which has a complete trial, and a corpus."""
    folder = tmp_path_factory.mktemp("other-version")
    (folder / "text").write_bytes(TEXT)
    with contextlib.closing(open_storage(f"sqlite:///{folder}/studies.db")) as storage:
        planned = [PlannedTrial({"layers": layers}) for layers in (1, 2)]
        choices = {"layers": CategoricalDistribution((1, 2))}
        create_study(storage, "quick", "loss", request.param, choices, planned)
        trial_id = storage.claim(storage.get_study_id_from_name("quick"), "worker/1")
        storage.finish(trial_id, "worker/1", TrialState.COMPLETE, 1.0, {}, {50: 1.0})
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_refuses_another_schema_version(other_version, invoke, command):
    words = [word.format(tmp=other_version) for word in command]
    with unchanged(other_version):
        done = invoke(*words, "--storage", f"sqlite:///{other_version}/studies.db")
    require_refused(done, "schema version", f"expected {SCHEMA_VERSION}")


def test_dashboard_publishes_nothing_to_another_schema_version(other_version):
    with (
        unchanged(other_version),
        contextlib.closing(open_storage(f"sqlite:///{other_version}/studies.db")) as storage,
        pytest.raises(StudyFormatError, match="schema version"),
    ):
        publish_study(storage, "quick", pytest.fail)
