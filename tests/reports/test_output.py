"""``rnn-search report``: its output files, what it prints, and its errors."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from factories import finish_one, make_study
from invocation import require_refused

from reports.page.page import write_report
from rnn_search.commands.reports import report
from studies.atomic_files import default_report

pytestmark = pytest.mark.usefixtures("without_optuna_figures")


@pytest.fixture
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


def test_folder_or_device_in_place_of_an_output_file_is_refused(folder, sqlite_url, invoke):
    make_study(sqlite_url)
    (folder / "folder").mkdir()
    for option in ("--output", "--csv"):
        for name, reason in (("/dev/null", "not a regular file"), ("folder", "is a directory")):
            done = invoke("report", "made", "--storage", sqlite_url, option, name, cwd=folder)
            require_refused(done, reason)
            assert done.stdout == ""
    assert list(folder.iterdir()) == [folder / "folder"]


def test_study_names_are_escaped_and_distinguished_in_paths(sqlite_url, tmp_path, monkeypatch):
    name = "<script>alert(1)</script>/../x" + "é" * 200
    make_study(sqlite_url, name)
    monkeypatch.chdir(tmp_path)
    path = write_report(sqlite_url, [name]).path
    assert path.parent == tmp_path / "reports" / "out"
    html = path.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert default_report(["a_b"]).name == "a_b.html"
    assert default_report(["a b"]) != default_report(["a_b"])
