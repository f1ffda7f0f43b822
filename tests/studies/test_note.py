"""The note of a study, as optuna-dashboard reads and edits it."""

import io
import json
import shlex
from contextlib import closing
from pathlib import Path

import pytest
from helpers import QUICK, create_small_study, join_study
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note, wsgi

from rnn_search import export_study, import_results, import_study
from studies.storage.edits import update_note, write_note
from studies.storage.open import load_study, open_storage, read_storage


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_note(url, name):
    with closing(read_storage(url)) as storage:
        return get_note(load_study(storage, name))


def test_new_study_has_a_note_with_its_question_its_command_and_the_path_of_its_report(url, folder):
    question = "question='Does *it* help?'"
    join_study(QUICK, url, (question,), "stdlib").storage.close()
    command = shlex.join(["rnn-search", "run", QUICK, "--corpus", "stdlib", "--set", question])
    assert read_note(url, "quick") == (
        "## Does \\*it\\* help?\n\n"
        f"    {command}\n\n"
        "    rnn-search report quick\n\n"
        "writes the report:\n\n"
        f"    {folder}/reports/out/quick.html"
    )


def test_command_below_an_answer_is_code(folder):
    note = write_note("a", "", ["rnn-search run a"], folder / "a.html", ["it *helps*"])
    assert "\n\n- it \\*helps\\*\n\nThe command:\n\n    rnn-search run a\n\n" in note


def test_refinement_and_imported_studies_have_a_note(sqlite_url, folder):
    with closing(join_study(QUICK, sqlite_url, corpus="stdlib").storage) as storage:
        study_id = storage.get_study_id_from_name("quick")
        trial_id = storage.claim(study_id, "w/1")
        recorded = {"validation_loss": 1.0, "seconds": 1.0}
        storage.finish(trial_id, "w/1", TrialState.COMPLETE, 1.0, recorded)
    derived = ("refinement.source='quick'", "refinement.top=1")
    join_study("stage-two", sqlite_url, derived, partial=True).storage.close()
    Path("table.csv").write_text("depth,value\n1,2.0\n2,1.5\n")
    import_results("table.csv", storage=sqlite_url)
    export_study("quick", "quick.jsonl", storage=sqlite_url)
    import_study("quick.jsonl", name="again", storage=sqlite_url)
    for name in ("stage-two", "table", "again"):
        assert read_note(sqlite_url, name).endswith(f"    {folder}/reports/out/{name}.html")
    assert "    rnn-search refine stage-two --set" in read_note(sqlite_url, "stage-two")


def test_note_is_replaced_until_a_user_edits_or_writes_it_in_the_dashboard(url):
    with closing(open_storage(url)) as storage:
        other_id = create_small_study(storage, 1, "other")
        other = load_study(storage, "other")
        save_note(other, "A user's text.")
        update_note(storage, other_id, "another text")
        assert get_note(other) == "A user's text."

        study_id = create_small_study(storage, 1, "made")
        for text in ("long " * 1000, "the answer"):
            update_note(storage, study_id, text)
            assert get_note(load_study(storage, "made")) == text
        application = wsgi(url)

        def request(method, path, **content):
            body = json.dumps(content).encode()
            environ = {
                "REQUEST_METHOD": method,
                "PATH_INFO": path,
                "QUERY_STRING": "after=0",
                "CONTENT_TYPE": "application/json",
                "CONTENT_LENGTH": str(len(body)),
                "wsgi.input": io.BytesIO(body),
            }
            return b"".join(application(environ, lambda *response: None))

        note = json.loads(request("GET", f"/api/studies/{study_id}"))["note"]
        assert note["body"] == "the answer"
        request(
            *("PUT", f"/api/studies/{study_id}/note"),
            body="the answer, and a user's text",
            version=note["version"] + 1,
        )
        # A dashboard renames by storing a new study, whose note has the first version again.
        request("POST", f"/api/studies/{study_id}/rename", study_name="renamed")
        renamed = load_study(storage, "renamed")
        update_note(storage, renamed._study_id, "a new answer")
        assert get_note(renamed) == "the answer, and a user's text"
