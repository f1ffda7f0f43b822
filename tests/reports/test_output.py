"""``rnn-search report``: its output files, what it prints, and its errors."""

import os
import re
import socket
from contextlib import closing
from types import SimpleNamespace

import pytest
from factories import finish_one, make_study
from helpers import EACH_DATABASE
from sqlalchemy.engine import make_url

from reports import cli
from reports.cli import reports
from reports.errors import OutputTakenError
from reports.hypotheses import hypotheses_command
from reports.output import default_path, study_identity
from reports.page.page import write_report
from rnn_search.studies_cli import delete, rename
from studies.attributes import REPORT_CLAIM
from studies.storage.changes import retry_trials
from studies.storage.open import load_study, open_storage

pytestmark = pytest.mark.usefixtures("without_optuna_figures")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory: an empty folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def urls(tmp_path):
    """Two storages, each with a study of the same name."""
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("one", "other")]
    for url, worker in zip(urls, ("first", "second"), strict=True):
        make_study(url, worker=worker)
    return urls


def write(command, capsys, *arguments):
    """Run a command; return the path it prints and its standard error."""
    capsys.readouterr()
    command.main([*arguments], standalone_mode=False)
    output = capsys.readouterr()
    return output.out.splitlines()[0], output.err


@pytest.mark.parametrize("command", [reports, hypotheses_command], ids=["reports", "hypotheses"])
def test_report_of_other_studies_is_not_replaced(command, folder, urls, capsys):
    first, note = write(command, capsys, "made", "--storage", urls[0])
    assert note == ""
    before = (folder / first).read_bytes()
    second, note = write(command, capsys, "made", "--storage", urls[1])
    assert re.fullmatch(r"(made|findings)-[0-9a-f]{8}\.(html|md)", second.split("/")[-1])
    assert note.startswith(f"{first} is not a report of these studies")
    assert (folder / first).read_bytes() == before
    # Each is replaced when it is written again.
    assert [write(command, capsys, "made", "--storage", url)[0] for url in urls] == [first, second]
    assert len(list((folder / "reports" / "out").iterdir())) == 2
    with pytest.raises(OutputTakenError, match=f"{first} is a report of other studies"):
        write(command, capsys, "made", "--storage", urls[1], "--output", first)


@pytest.mark.parametrize("content", ["<!DOCTYPE html>\n<title>an old report</title>\n", "notes\n"])
def test_file_without_an_identity_is_kept(folder, urls, capsys, content):
    taken = folder / "reports" / "out" / "made.html"
    taken.parent.mkdir(parents=True)
    taken.write_text(content)
    path, note = write(reports, capsys, "made", "--storage", urls[0])
    assert path != str(taken)
    assert str(taken) in note
    assert taken.read_text() == content
    with pytest.raises(OutputTakenError, match="choose another path"):
        write(reports, capsys, "made", "--storage", urls[0], "--output", str(taken), "--watch")
    assert taken.read_text() == content


def test_deletion_keeps_and_names_the_reports_of_all_names_of_a_study_alone(
    folder, sqlite_url, capsys
):
    """A study that is deleted and created again has the same name and another folder."""

    def make(name, folder):
        make_study(sqlite_url, name)
        with closing(open_storage(sqlite_url)) as storage:
            study_id = storage.get_study_id_from_name(name)
            storage.set_study_user_attr(study_id, "artifact_folder", folder)

    make("made", "made-1")
    make("other", "other-1")
    at = ("--storage", sqlite_url)
    both = write(hypotheses_command, capsys, "made", "other", *at)[0]
    before = write(reports, capsys, "made", *at)[0]
    write(hypotheses_command, capsys, "other", *at)
    rename.main(["made", "better", *at], standalone_mode=False)
    after = write(hypotheses_command, capsys, "better", *at)[0]
    delete.main(["better", "--yes", *at], standalone_mode=False)
    (line,) = capsys.readouterr().out.splitlines()[-1:]
    told = line.partition("reports are kept: ")[2].split(", ")
    assert sorted(told) == sorted([both, before, after])
    make("better", "better-1")
    assert write(hypotheses_command, capsys, "better", *at)[0] not in told


def test_identity_of_a_storage_depends_on_neither_spelling_nor_password(folder, tmp_path):
    def identify(*urls):
        return [study_identity(make_url(url), "made", "made-1") for url in urls]

    (tmp_path / "link").symlink_to(tmp_path)
    files = (f"{tmp_path}/one.db", f"{tmp_path}/link/one.db", "../one.db")
    assert len(set(identify(*(f"sqlite:///{file}" for file in files)))) == 1
    found = identify(
        "postgresql+psycopg://me@host/studies?sslmode=require",
        "postgresql+psycopg://me:s3cret@host/studies?sslmode=require&sslpassword=s3cret",
        "postgresql+psycopg://me@elsewhere/studies?sslmode=require",
        "postgresql+psycopg://me@host/others?sslmode=require",
    )
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_pipe_in_place_of_an_output_file_is_refused_at_once(folder, urls, invoke):
    os.mkfifo("pipe.csv")
    for command in (
        ("report", "--output", "pipe.csv"),
        ("report", "--csv", "pipe.csv"),
        ("report", "--dataframe", "pipe.csv"),
        ("report", "--curves", "pipe.csv"),
        ("hypotheses", "--output", "pipe.csv"),
    ):
        done = invoke(*command, "made", "--storage", urls[0], cwd=folder)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
        assert "not a regular file" in done.stderr
        assert (folder / "pipe.csv").is_fifo()
    assert len(list(folder.iterdir())) == 1


def test_study_names_are_escaped_and_distinguished_in_paths(sqlite_url, tmp_path, monkeypatch):
    name = "<script>alert(1)</script>/../x" + "é" * 200
    make_study(sqlite_url, name)
    monkeypatch.chdir(tmp_path)
    path = write_report(sqlite_url, [name]).path
    assert path.parent == tmp_path / "reports" / "out"
    html = path.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert default_path(["a_b"]).name == "a_b.html"
    assert default_path(["a b"]) != default_path(["a_b"])


def test_watched_report_is_updated_until_the_study_is_finished(
    sqlite_url, tmp_path, monkeypatch, capsys
):
    make_study(sqlite_url, finished=0)
    page, pages = tmp_path / "page.html", []

    def finish_some(seconds):
        for _ in range(7 if page.exists() else 1):
            finish_one(sqlite_url, 1.4)
        pages.append(page.read_text(encoding="utf-8") if page.exists() else None)

    monkeypatch.setattr("reports.cli.time", SimpleNamespace(sleep=finish_some))
    arguments = ["made", "--watch", "--output", str(page), "--storage", sqlite_url]
    reports.main(arguments, standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    for line, words in zip(lines, ("no complete trial", "1 of 8", "8 of 8"), strict=False):
        assert words in line
    pages.append(page.read_text(encoding="utf-8"))
    assert pages[0] is None
    for html, is_finished in zip(pages[1:], (False, True), strict=True):
        assert ("Unfinished: 1 of 8 trials." not in html) == is_finished
        assert ("data-refresh-seconds=" not in html) == is_finished


# ------------------------------------------------------------------ the end of a search


@EACH_DATABASE
def test_one_of_the_processes_that_see_a_search_end_writes_the_report(
    url, tmp_path, monkeypatch, capsys
):
    make_study(url)
    storage = open_storage(url)
    study = load_study(storage, "made")
    monkeypatch.setattr(cli, "write_final_report", lambda *study: print("written"))

    def end_on(host, was_finished=False):
        monkeypatch.setattr(socket, "gethostname", lambda: host)
        cli.finalize_search(url, "made", 8, was_finished)
        return capsys.readouterr().out

    def retry():
        retry_trials(storage, "made", ["diverged"])
        finish_one(url, 1.3)

    def leave_a_claim_of_the_version_before():
        claim = {"finished": 8, "host": "two", "pid": 1, "path": "", "is_written": False}
        storage.set_study_system_attr(study._study_id, REPORT_CLAIM, claim)

    command = "for another copy: rnn-search report made\n"
    assert end_on("one") == "written\n"
    assert end_on("one") == "written\n", "its first answer was lost"
    assert end_on("two", was_finished=True) == "written\n"
    writer, other = "one", "two"
    for reach_state in (retry, leave_a_claim_of_the_version_before):
        assert end_on(other) == f"report: process {writer}/{os.getpid()} writes it; {command}"
        reach_state()
        assert end_on(other) == "written\n"
        writer, other = other, writer
    storage.close()


def test_failure_at_the_end_of_a_search_is_printed_and_a_bug_has_its_traceback(
    sqlite_url, folder, monkeypatch, capsys
):
    make_study(sqlite_url)

    def fail(*arguments):
        raise error

    def end():
        cli.finalize_search(sqlite_url, "made", 8, False)
        return capsys.readouterr()

    error: Exception = OSError("disk full")
    monkeypatch.setattr(cli, "update_note", fail)
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
    monkeypatch.setattr(cli, "_claim_report", fail)
    assert end() == ("no report: disk full\n", "")
