"""Studies are renamed, copied, deleted and retried with everything they own, or not at all."""

import json
import sqlite3
from contextlib import closing

import optuna
import pytest
from helpers import create_small_study
from managed_studies import FILES, create, create_with_everything, dump, folder_of, list_files
from optuna.trial import TrialState
from optuna_dashboard import get_note
from process_runner import query

from search.status import read_status
from studies import errors
from studies.artifacts import ArtifactFolders
from studies.attributes import EARLIER_FAILURES
from studies.files import atomic_write
from studies.loader import read_study_record
from studies.management import StudyManager, list_studies
from studies.storage.backup import StudyIdentity
from studies.storage.open import load_study, open_storage

REFINED = {"refinement": {"source": "made", "replicates": 3}, "space": None}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "artifacts"


@pytest.fixture
def manager(url, folder):
    """Manager of a storage with a study that has everything."""
    create_with_everything(url, folder)
    return StudyManager(url, str(folder))


@pytest.mark.parametrize(
    "kind", ["the same", "SQLite", pytest.param("PostgreSQL", marks=pytest.mark.extended)]
)
def test_copy_has_every_row_and_file_of_the_study(manager, url, folder, kind, request, tmp_path):
    target = {"the same": url, "SQLite": f"sqlite:///{tmp_path}/copies.db"}.get(kind)
    target = target or request.getfixturevalue("postgresql_server").new_database()
    with closing(open_storage(target)) as storage:
        create_small_study(storage, 10, "other")  # ids of trials differ
    before, files = dump(url), list_files(folder)
    result = manager.copy("made", target, "copied", str(tmp_path / "copies"))
    assert result.files.count == 7
    copied = dump(target, "copied")
    assert dump(url) == before
    assert list_files(folder) == files
    new = folder_of(target, "copied")
    assert new.startswith("copied-")
    changed = {"study_user_attributes", "study_system_attributes", "trial_system_attributes"}
    for table in before.keys() - changed:
        assert copied[table] == before[table], table
    assert len(copied["study_user_attributes"]) == len(before["study_user_attributes"])
    assert len(copied["study_system_attributes"]) == len(before["study_system_attributes"])
    found = list_files(tmp_path / "copies")
    assert sorted(found.values()) == sorted(files.values())
    for name, content in files.items():
        if name.startswith("made-folder/"):
            assert found[name.replace("made-folder", new)] == content
    for table, content in (("study", b"of-study"), ("trial", b"of-trial")):
        keys = [row[-2] for row in copied[f"{table}_system_attributes"]]
        (key,) = (key for key in keys if key.startswith("artifacts:"))
        assert found[key.removeprefix("artifacts:")] == content
    with closing(open_storage(target)) as storage:
        study = load_study(storage, "copied")
        assert get_note(study) == "a note of the study"
        note = f"dashboard:{study.trials[0]._trial_id}:note_str:0"
        assert storage.get_study_system_attrs(study._study_id)[note] == "a note of trial 0"


def change_trial(monkeypatch, url):
    copy_files = ArtifactFolders.copy_files

    def change_meanwhile(*args):
        with closing(open_storage(url)) as storage:
            storage.claim(1, "w/2/v", paused_ids=[4])
            storage.pause(4, "w/2/v", {}, {150: 1.0})
        return copy_files(*args)

    monkeypatch.setattr(ArtifactFolders, "copy_files", change_meanwhile)


def damage_file(monkeypatch, url):
    def write_less(path, content):
        atomic_write(path, [b"".join(content)[:-1]])

    monkeypatch.setattr("studies.artifacts.atomic_write", write_less)


def damage_rows(statement):
    def damage(monkeypatch, url):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file, file:
            file.execute(statement)

    return damage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_trial, "changed while its files were copied"),
        (damage_file, "it changed, or its copy is damaged"),
        (
            damage_rows("UPDATE trials SET state = 'x' WHERE number = 2"),
            "damaged .trial 2: its state is 'x'",
        ),
        (damage_rows("UPDATE trial_values SET value = 'x'"), "trial 0: its value is 'x'"),
    ],
)
def test_copy_that_is_not_whole_is_undone(
    sqlite_url, folder, tmp_path, postgresql_url, monkeypatch, change, message
):
    create_with_everything(sqlite_url, folder)
    manager, copies = StudyManager(sqlite_url, str(folder)), str(tmp_path / "copies")
    change(monkeypatch, sqlite_url)
    with pytest.raises(errors.StudiesError, match=message):
        manager.copy("made", postgresql_url, None, copies)
    assert query(postgresql_url, "SELECT count(*) FROM studies") == [(0,)]
    assert list_files(copies) == {}


def test_renamed_study_is_found_by_the_studies_that_derive_from_it(manager, url, folder):
    create(url, "derived", **REFINED)
    before = dump(url)
    files = list_files(folder)
    assert manager.rename("made", "better name") == ["derived"]
    assert dump(url, "better name") == before
    assert list_files(folder) == files
    attributes = dict(dump(url, "derived")["study_user_attributes"])
    assert json.loads(attributes["config"])["refinement"]["source"] == "better name"


def test_operation_that_is_refused_changes_nothing(manager, url, folder, tmp_path):
    create(url, "other")
    target = f"sqlite:///{tmp_path}/new.db"
    operations = [
        manager.rename,
        lambda name, new: manager.copy(name, None, new),
        lambda name, new: manager.retry(name, ["failed"]),
        lambda name, new: manager.delete(name),
    ]
    with closing(open_storage(url)) as storage:
        create_small_study(storage, 3, "plain")
        storage.claim(1, "node1/17/token", paused_ids=[4])
    before, files = dump(url), list_files(folder)
    for operation in operations:
        with pytest.raises(errors.StudyNotFoundError):
            operation("missing", "new")
        with pytest.raises(
            errors.StudyHeldError, match=r"node1/17 holds trial 3, last heard of \d"
        ):
            operation("made", "new")
    for operation in operations[:2]:
        with pytest.raises(errors.StudyExistsError):
            operation("other", "made")
        with pytest.raises(errors.ConfigError):
            operation("other", " ")
    with pytest.raises(errors.ArtifactsError, match="is not writable"):
        manager.copy("other", target, None, str(tmp_path / "no" / "folder"))
    with pytest.raises(errors.StudyFormatError, match="no schema version"):
        manager.copy("plain", target)
    assert dump(url) == before
    assert list_files(folder) == files
    names = [name for (name,) in query(url, "SELECT study_name FROM studies ORDER BY study_id")]
    assert names == ["made", "other", "plain"]
    assert not (tmp_path / "new.db").exists()


def test_worker_that_waits_works_on_under_the_new_name(manager, url):
    with closing(open_storage(url)) as storage:
        storage.require_study(StudyIdentity(1, "made", "made-folder"))
        study = load_study(storage, "made")
        config = read_study_record(study).config
        manager.rename("made", "new")
        assert storage.claim(1, "w/2/v", paused_ids=[4]) == 4
        assert read_status(study, storage, config).name == "new"  # its report is that of "new"


def test_deletion_takes_all_rows_and_files_of_the_study_alone(manager, url, folder):
    create_with_everything(url, folder, "other")
    with closing(open_storage(url)) as storage:
        entry = {"artifact_id": "of-made", "filename": "c.txt"}
        storage.set_study_system_attr(1, "artifacts:of-made", json.dumps(entry))
    (folder / "of-made").write_text("not in the other study")
    other = dump(url, "other")
    manager.delete("made")
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


def test_deletion_of_a_source_is_refused_unless_forced(manager, url):
    create(url, "derived", **REFINED)
    before = dump(url)
    with pytest.raises(errors.StudiesError, match="is the source of 'derived'"):
        manager.delete("made")
    assert dump(url) == before
    manager.delete("made", force=True)
    assert query(url, "SELECT study_name FROM studies") == [("derived",)]


def test_deletion_waits_for_the_lease_of_a_dead_worker(manager, url, folder):
    with closing(open_storage(url)) as storage:
        storage.claim(1, "node1/17/token", 0.2, paused_ids=[4])
    lines = []
    StudyManager(url, str(folder), True, lines.append).delete("made")
    assert len(lines) == 1
    assert lines[0].startswith("waiting: node1/17 holds trial 3, last heard of ")
    assert query(url, "SELECT count(*) FROM trials") == [(0,)]
    assert list_files(folder) == {}


def test_damaged_study_and_one_of_plain_optuna_can_be_deleted(url):
    create(url)
    optuna.create_study(storage=open_storage(url), study_name="plain").enqueue_trial({})
    with closing(open_storage(url)) as storage:
        storage.set_study_user_attr(1, "config", "x")
        storage.set_study_user_attr(1, "artifact_folder", "../..")
    for name in ("made", "plain"):
        StudyManager(url).delete(name)
    assert query(url, "SELECT count(*) FROM studies") == [(0,)]
    assert query(url, "SELECT count(*) FROM trials") == [(0,)]


def test_retried_trial_keeps_what_it_was(manager, url):
    assert manager.retry("made", ["failed"]) == {"failed": 1}
    assert manager.retry("made", ["failed"]) == {"failed": 0}
    with closing(open_storage(url)) as storage:
        trial_id = storage.claim(1, "w/3/x")
        storage.finish(trial_id, "w/3/x", TrialState.FAIL, None, {"error": "z"})
        assert manager.retry("made", ["failed"]) == {"failed": 1}
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


def test_list_shows_each_study_and_its_workers(manager, url, folder):
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
