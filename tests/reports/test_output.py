"""The files of reports, those at the end of a search, and the answer in the note of the study."""

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from factories import finish_one, make_study
from invocation import require_refused
from optuna_dashboard import get_note

from reports import final_report
from reports.page.page import write_report
from rnn_search.commands.reports import report
from studies.atomic_files import default_report
from studies.storage.edits import retry_trials
from studies.storage.open import load_study, open_storage

pytestmark = pytest.mark.usefixtures("without_optuna_figures")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory: an empty folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(url, *arguments):
    """Run the command; return the path that it prints."""
    done = CliRunner().invoke(report, ["made", "--storage", url, *arguments])
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    return Path(done.stdout.splitlines()[0])


def test_report_replaces_the_file_that_is_there(folder, sqlite_url):
    make_study(sqlite_url, finished=4)
    page = folder / "reports" / "out" / "made.html"
    assert write(sqlite_url) == page
    finish_one(sqlite_url, 1.0)
    assert write(sqlite_url) == page
    assert "so far: 5 of 8 trials are finished" in page.read_text("utf-8")
    notes = folder / "notes.html"
    notes.write_text("notes")
    assert write(sqlite_url, "--output", "notes.html") == Path("notes.html")
    assert notes.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert sorted(folder.rglob("*.*")) == [notes, page]


def test_folder_in_place_of_an_output_file_is_refused(folder, sqlite_url, invoke):
    make_study(sqlite_url)
    (folder / "folder").mkdir()
    for option in ("--output", "--csv"):
        done = invoke("report", "made", "--storage", sqlite_url, option, "folder", cwd=folder)
        require_refused(done, "is a directory")
        assert done.stdout == ""
    assert list(folder.iterdir()) == [folder / "folder"]


def test_study_names_are_escaped_and_distinguished_in_paths(sqlite_url, folder):
    name = "<script>alert(1)</script>/../x" + "é" * 200
    make_study(sqlite_url, name)
    path = write_report(sqlite_url, [name]).path
    assert path.parent == folder / "reports" / "out"
    html = path.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert default_report(["a_b"]).name == "a_b.html"
    assert default_report(["a b"]) != default_report(["a_b"])


# ------------------------------------------------------------------ the end of a search


def test_note_has_the_answer_of_each_final_report(url, capsys):
    make_study(url, finished=6)
    with closing(open_storage(url)) as storage:
        study = load_study(storage, "made")
        final_report.write_final_report(url, "made")
        first, *answer = capsys.readouterr().out.splitlines()
        note = get_note(study)
        assert note.startswith("## made\n\n- so far: 6 of 8 trials are finished\n- whether any ")
        assert "\n- best: 1×4 no gates, new state" in note
        assert note.count("\n- ") == len(answer) == 3
        assert note.endswith(f"The report:\n\n    {first.removeprefix('report: ')}")
        finish_one(url, 1.0)
        final_report.write_final_report(url, "made")
        assert "1.0000" in get_note(study)


def test_one_of_the_processes_that_see_a_search_end_writes_the_report(url, monkeypatch, capsys):
    make_study(url)
    storage = open_storage(url)
    monkeypatch.setattr(final_report, "write_final_report", lambda *study: print("written"))

    def end_on(host, was_finished=False):
        monkeypatch.setattr(socket, "gethostname", lambda: host)
        final_report.finalize_search(url, "made", 8, was_finished)
        return capsys.readouterr().out

    command = "for another copy: rnn-search report made\n"
    assert end_on("one") == "written\n"
    assert end_on("one") == "written\n", "its first answer was lost"
    assert end_on("two", was_finished=True) == "written\n"
    assert end_on("two") == f"report: process one/{os.getpid()} writes it; {command}"
    retry_trials(storage, "made", ["diverged"])
    finish_one(url, 1.3)
    assert end_on("two") == "written\n"
    storage.close()


def test_report_of_a_finished_study_is_written_again_only_if_it_would_show_something_else(
    sqlite_url, folder, monkeypatch, capsys
):
    make_study(sqlite_url)

    def join() -> tuple[list[str], str]:
        """Join the finished study; return what is printed, and the report."""
        final_report.finalize_search(sqlite_url, "made", 8, True)
        return capsys.readouterr().out.splitlines(), path.read_text()

    path = default_report(["made"])
    lines, _ = join()
    path.write_text("as before")
    assert join() == ([*lines, "nothing has changed since it was written"], "as before")
    with closing(open_storage(sqlite_url)) as storage:
        study = load_study(storage, "made")
        changed = study.user_attrs["config"] | {"question": "Why?"}
        storage.set_study_user_attr(study._study_id, "config", changed)
    lines, second = join()
    assert "Why?" in second
    path.unlink()
    assert join()[0] == lines, "the file was removed"
    path.write_text("as before")
    monkeypatch.setattr(final_report, "_hash_code", lambda: "other code")
    assert join()[0] == lines
    assert path.read_text() != "as before"


def test_failure_at_the_end_of_a_search_is_printed_and_a_bug_has_its_traceback(
    sqlite_url, monkeypatch, capsys
):
    make_study(sqlite_url)

    def fail(*arguments):
        raise error

    def end():
        final_report.finalize_search(sqlite_url, "made", 8, False)
        return capsys.readouterr()

    error: Exception = OSError("disk full")
    monkeypatch.setattr(final_report, "update_note", fail)
    out, err = end()
    assert out.startswith("report: ")
    assert err == "warning: cannot update the note of the study: disk full\n"
    monkeypatch.setattr("reports.page.page.write_report", fail)
    assert end() == ("no report: disk full\n", "")
    error = KeyError("a defect")
    out, err = end()
    assert out == "no report: 'a defect'\n"
    assert err.count("Traceback (most recent call last):") == 1
    assert err.count("warning: bug in rnn-search (KeyError: 'a defect'): please ") == 1
    error = OSError("disk full")
    monkeypatch.setattr(final_report, "_claim_report", fail)
    assert end() == ("no report: disk full\n", "")
