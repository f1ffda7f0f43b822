"""Studies are renamed, deleted and retried with everything they own, or not at all."""

import json
from contextlib import closing

import optuna
import pytest
from helpers import create_small_study
from managed_studies import FILES, create, create_with_everything, dump, list_files
from optuna.trial import TrialState
from process_runner import query

from search.status import read_status
from studies import errors
from studies.artifacts import ArtifactFolders
from studies.attributes import EARLIER_FAILURES
from studies.management import delete_study, list_studies, rename_study, retry_trials
from studies.storage.counts import StudyIdentity
from studies.storage.open import load_study, open_storage, read_study_record

REFINED = {"refinement": {"source": "made", "replicates": 3}, "space": None}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "artifacts"


@pytest.fixture
def made(url, folder):
    """A study that has everything; its storage and artifacts."""
    create_with_everything(url, folder)
    return url, str(folder)


def test_renamed_study_is_found_by_the_studies_that_derive_from_it(made, url, folder):
    create(url, "derived", **REFINED)
    before = dump(url)
    files = list_files(folder)
    assert rename_study(url, "made", "better name") == ["derived"]
    assert dump(url, "better name") == before
    assert list_files(folder) == files
    attributes = dict(dump(url, "derived")["study_user_attributes"])
    assert json.loads(attributes["config"])["refinement"]["source"] == "better name"


def test_operation_that_is_refused_changes_nothing(made, url, folder):
    create(url, "other")
    operations = [
        lambda name, new: rename_study(url, name, new),
        lambda name, new: retry_trials(url, name, ["failed"]),
        lambda name, new: delete_study(*made, name),
    ]
    with closing(open_storage(url)) as storage:
        create_small_study(storage, 3, "plain")
        storage.claim(1, "node1/17/token", paused_ids=[4])
    before, files = dump(url), list_files(folder)
    for operation in operations:
        with pytest.raises(errors.StudyNotFoundError):
            operation("missing", "new")
        with pytest.raises(errors.UserError, match=r"node1/17 holds trial 3, last heard of \d"):
            operation("made", "new")
    with pytest.raises(errors.UserError):
        rename_study(url, "other", "made")
    with pytest.raises(errors.UserError):
        rename_study(url, "other", " ")
    assert dump(url) == before
    assert list_files(folder) == files
    names = [name for (name,) in query(url, "SELECT study_name FROM studies ORDER BY study_id")]
    assert names == ["made", "other", "plain"]


def test_worker_that_waits_works_on_under_the_new_name(made, url):
    with closing(open_storage(url)) as storage:
        storage.require_study(StudyIdentity(1, "made", "made-folder"))
        study = load_study(storage, "made")
        config = read_study_record(study).config
        rename_study(url, "made", "new")
        assert storage.claim(1, "w/2/v", paused_ids=[4]) == 4
        assert read_status(study, storage, config).name == "new"  # its report is that of "new"


def test_deletion_takes_all_rows_and_files_of_the_study_alone(made, url, folder):
    create_with_everything(url, folder, "other")
    with closing(open_storage(url)) as storage:
        entry = {"artifact_id": "of-made", "filename": "c.txt"}
        storage.set_study_system_attr(1, "artifacts:of-made", json.dumps(entry))
    (folder / "of-made").write_text("not in the other study")
    other = dump(url, "other")
    delete_study(*made, "made")
    assert dump(url, "other") == other
    for table in ("studies", "trials", *dump(url, "other")):
        owner = "trial_id" if table.startswith("trial_") else "study_id"
        ids = "trials" if table.startswith("trial_") else "studies"
        orphans = f"SELECT count(*) FROM {table} WHERE {owner} NOT IN (SELECT {owner} FROM {ids})"
        assert query(url, orphans) == [(0,)]
    # Both studies name the files of the dashboard.
    assert sorted(list_files(folder)) == sorted(
        ["of-study", "of-trial"]
        + [f"other-folder/{name}" for names in FILES.values() for name in names]
    )


def test_deletion_of_a_source_is_refused_unless_forced(made, url):
    create(url, "derived", **REFINED)
    before = dump(url)
    with pytest.raises(errors.UserError, match="is the source of 'derived'"):
        delete_study(*made, "made")
    assert dump(url) == before
    delete_study(*made, "made", force=True)
    assert query(url, "SELECT study_name FROM studies") == [("derived",)]


def test_study_of_a_dead_worker_is_deleted_if_forced(made, url, folder):
    with closing(open_storage(url)) as storage:
        storage.require_study(StudyIdentity(1, "made", "made-folder"))
        trial_id = storage.claim(1, "node1/17/token", paused_ids=[4])
        delete_study(*made, "made", force=True)
        with pytest.raises(errors.StorageLostError):
            storage.finish(trial_id, "node1/17/token", TrialState.COMPLETE, 1.0, {})
    assert query(url, "SELECT count(*) FROM trials") == [(0,)]
    assert list_files(folder) == {}


def test_damaged_study_and_one_of_plain_optuna_can_be_deleted(url):
    create(url)
    optuna.create_study(storage=open_storage(url), study_name="plain").enqueue_trial({})
    with closing(open_storage(url)) as storage:
        storage.set_study_user_attr(1, "config", "x")
        storage.set_study_user_attr(1, "artifact_folder", "../..")
    for name in ("made", "plain"):
        delete_study(url, None, name)
    assert query(url, "SELECT count(*) FROM studies") == [(0,)]
    assert query(url, "SELECT count(*) FROM trials") == [(0,)]


def test_retried_trial_keeps_what_it_was(made, url):
    assert retry_trials(url, "made", ["failed"]) == {"failed": 1}
    assert retry_trials(url, "made", ["failed"]) == {"failed": 0}
    with closing(open_storage(url)) as storage:
        trial_id = storage.claim(1, "w/3/x")
        storage.finish(trial_id, "w/3/x", TrialState.FAIL, None, {"error": "z"})
        assert retry_trials(url, "made", ["failed"]) == {"failed": 1}
        trial = storage.get_trial(trial_id)
    assert (trial.user_attrs, trial.intermediate_values, trial.value) == ({}, {}, None)
    first, second = trial.system_attrs[EARLIER_FAILURES]
    assert first["attributes"]["error"] == "ValueError: y"
    assert first["attributes"]["retries"] == {"exception": 1}
    assert first["started"]
    assert second["attributes"]["error"] == "z"


def test_study_that_is_deleted_meanwhile_is_not_listed(url, folder, monkeypatch):
    create(url)

    def load_and_delete(storage, name):
        study = load_study(storage, name)
        optuna.delete_study(study_name=name, storage=storage)
        return study

    monkeypatch.setattr("studies.management.load_study", load_and_delete)
    with closing(open_storage(url)) as storage:
        assert list_studies(storage, ArtifactFolders(str(folder), url)) == []


def test_list_shows_each_study_and_its_workers(made, url, folder):
    create(url, "derived", **REFINED)
    create(url, "broken")
    optuna.create_study(storage=open_storage(url), study_name="plain").enqueue_trial({})
    with closing(open_storage(url)) as storage:
        storage.claim(1, "node1/17/token", paused_ids=[4])
        study_id = load_study(storage, "broken")._study_id
        storage.set_study_user_attr(study_id, "config", {"space": 3})
        listed = {
            each.name: each for each in list_studies(storage, ArtifactFolders(str(folder), url))
        }
    assert list(listed) == ["broken", "derived", "made", "plain"]
    kinds = [each.kind for each in listed.values()]
    assert kinds == ["damaged", "replicates of 'made'", "grid", "plain Optuna"]
    made = listed["made"]
    assert (made.counts.complete, made.counts.diverged, made.counts.failed) == (1, 1, 1)
    assert made.best == 1.0625
    assert made.artifact_bytes == sum(
        (folder / "made-folder" / name).stat().st_size for names in FILES.values() for name in names
    )
    assert [(each.host, each.trials) for each in made.workers] == [("node1", (3,))]
    assert "invalid attribute config" in listed["broken"].problem
    assert listed["plain"].counts.waiting == 1
    json.dumps([each.as_json() for each in listed.values()])
