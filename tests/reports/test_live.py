"""What optuna-dashboard shows of a study while it is searched, and afterwards."""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import tomllib
import urllib.request
from contextlib import closing
from pathlib import Path
from uuid import uuid4
from xml.etree import ElementTree

import optuna
import pytest
from factories import make_runs, make_study, own_point
from helpers import ROOT
from hooks import PATIENT_SECONDS, Gate, Hooks
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note
from process_runner import SETTINGS, query, until, until_running
from services import free_port
from sqlalchemy import Engine, event

from reports.dashboard import note
from reports.dashboard import process as beside
from reports.dashboard import publish as renewal
from reports.dashboard import refresher as upkeep
from reports.dashboard import view as live
from reports.dashboard.__main__ import listen, local_only
from reports.dashboard.artifacts import TEXTS
from reports.dashboard.publish import MARK, renew
from reports.dashboard.refresher import Upkeep
from reports.dashboard.view import LiveView
from reports.data.results import read_results
from reports.errors import DashboardError
from studies.config import StudyConfig
from studies.errors import ArtifactsError, StorageError, StudiesError, StudyNotFoundError
from studies.storage.counts import TrialCounts
from studies.storage.open import load_study, open_storage

MARKUP = "<script>alert(1)</script> *a* | b"


def attributes(url, name="made"):
    with closing(open_storage(url)) as storage:
        return storage.get_study_system_attrs(load_study(storage, name)._study_id)


def note_of(url, name="made"):
    with closing(open_storage(url)) as storage:
        return get_note(load_study(storage, name))


def body_of(found):
    chunks = [value for key, value in sorted(found.items()) if "note_str" in key]
    return "".join(chunks)


def write_note(url, body):
    with closing(open_storage(url)) as storage:
        save_note(load_study(storage, "made"), body)


def finish_one(url, value):
    with closing(open_storage(url)) as storage:
        trial_id = storage.claim(load_study(storage, "made")._study_id, "me")
        storage.report(trial_id, "me", {50: value + 1, 100: value})
        storage.finish(
            trial_id, "me", TrialState.COMPLETE, value, {"parameter_count": 1, "replicate": 0}
        )
        return storage.get_trial_number_from_id(trial_id)


def is_renewed(url):
    return query(url, f"SELECT 1 FROM study_system_attributes WHERE key = '{MARK}'")


def artifacts_of(url, name="made"):
    told = [value for key, value in attributes(url, name).items() if key.startswith("artifacts:")]
    return {each["artifact_id"]: each for each in map(json.loads, told)}


# ------------------------------------------------------------------ what is stored


def test_the_note_says_what_is_asked_where_it_stands_and_what_is_best(sqlite_url, tmp_path):
    make_study(sqlite_url, finished=6)
    renew(sqlite_url, "made", str(tmp_path / "files"))
    body = note_of(sqlite_url)
    assert "6 of 8 points are finished" in body
    assert "\n| 5 | 0 | 1 | 0 | 0 | 2 |\n" in body
    assert "| 1 | 0 | &ensp;1×4 no gates, new state | 1.5000 |" in body
    assert "4 of the 5 complete points lie below 2.0 nats" in body
    with closing(open_storage(sqlite_url)) as storage:
        stored = load_study(storage, "made").user_attrs["config"]
    written = tomllib.loads(body.partition("```toml\n")[2].partition("```")[0])
    assert StudyConfig.model_validate(written) == StudyConfig.model_validate(stored)


def test_note_of_an_old_study_shows_the_settings_that_it_was_trained_with(sqlite_url, tmp_path):
    """Studies from before `evaluation.average` measured the last weights, not their average."""
    make_study(sqlite_url)
    with closing(open_storage(sqlite_url)) as storage:
        study = load_study(storage, "made")
        stored = study.user_attrs["config"]
        del stored["evaluation"]["average"]
        study.set_user_attr("config", stored)
    renew(sqlite_url, "made", str(tmp_path / "files"))
    written = tomllib.loads(note_of(sqlite_url).partition("```toml\n")[2].partition("```")[0])
    assert written["evaluation"]["average"] == 0
    with closing(open_storage(sqlite_url)) as storage:
        assert read_results(storage, "made").config.evaluation.average == 0


def test_study_of_another_version_keeps_its_note(sqlite_url, tmp_path):
    make_study(sqlite_url)
    with closing(open_storage(sqlite_url)) as storage:
        study = load_study(storage, "made")
        study.set_user_attr("config", study.user_attrs["config"] | {"novelty": 1})
    with pytest.raises(StudiesError, match="written by another version"):
        renew(sqlite_url, "made", str(tmp_path / "files"))
    assert note_of(sqlite_url) == ""


def renew_in_vain(*what):
    """See that a study is up to date, without making anything anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(note, "compose", None)
        renew(*what)


def test_it_is_renewed_when_something_has_changed_and_only_then(sqlite_url, tmp_path):
    files = tmp_path / "files"
    make_study(sqlite_url, finished=6)
    renew(sqlite_url, "made", str(files))
    before = attributes(sqlite_url)
    times = {path: path.stat().st_mtime_ns for path in files.iterdir()}
    renew_in_vain(sqlite_url, "made", str(files))
    assert attributes(sqlite_url) == before
    finish_one(sqlite_url, 2.5)
    renew(sqlite_url, "made", str(files))
    after = attributes(sqlite_url)
    assert "7 of 8 points" in note_of(sqlite_url)
    # The best are those that they were.
    assert {path: path.stat().st_mtime_ns for path in files.iterdir()} == times
    assert after[MARK] != before[MARK]
    # Else who edits the note in the dashboard at that moment could not save it.
    assert after["dashboard:note_ver"] == before["dashboard:note_ver"]
    assert max(len(str(value)) for value in after.values()) <= 2045


def test_a_study_of_which_nothing_is_complete_has_a_note_alone(sqlite_url, tmp_path):
    make_study(sqlite_url, finished=0)
    renew(sqlite_url, "made", str(tmp_path / "files"))
    assert "No point is complete yet" in note_of(sqlite_url)
    renew_in_vain(sqlite_url, "made", str(tmp_path / "files"))
    assert not any("plot_data" in key for key in attributes(sqlite_url))
    assert artifacts_of(sqlite_url) == {}
    assert not (tmp_path / "files").exists()


def test_files_take_the_place_of_those_before(sqlite_url, tmp_path):
    files = tmp_path / "files"
    make_study(sqlite_url, finished=5)
    renew(sqlite_url, "made", str(files))
    before = artifacts_of(sqlite_url)
    names = {each["filename"] for each in before.values()}
    assert {"best-curves.csv", "best-curves.svg", "best-1-trial-0.py"} <= names
    best = finish_one(sqlite_url, 1.0)
    renew(sqlite_url, "made", str(files))
    after = artifacts_of(sqlite_url)
    content = {
        each["filename"]: (files / key).read_text("utf-8")
        for key, each in after.items()
        if key in before or each["filename"] == "best-5-trial-4.py"
    }
    assert set(content) == {each["filename"] for each in after.values()}
    assert {path.name for path in files.iterdir()} == set(after)
    compile(content[f"best-1-trial-{best}.py"], "best", "exec")
    assert content["best-curves.csv"].splitlines()[0].startswith(f"step,trial {best},trial 0,")
    assert content["best-curves.csv"].splitlines()[2].startswith("100,1.000000,1.500000,")
    picture = ElementTree.fromstring(content["best-curves.svg"])
    assert len(picture.findall(".//{*}polyline")) == 5


def test_what_the_best_write_is_one_file(sqlite_url, tmp_path):
    files, samples = tmp_path / "files", ("once <upon>\n a time", None, "there was")
    runs = [(own_point(1 + i), 1.5 + i, {"sample": text}) for i, text in enumerate(samples)]
    make_runs(sqlite_url, "made", {"space": {"layers": [1, 2, 3], "state_size": [4]}}, runs)
    renew(sqlite_url, "made", str(files))
    (key,) = (key for key, each in artifacts_of(sqlite_url).items() if each["filename"] == TEXTS)
    first, *_, last = (files / key).read_text("utf-8").strip().splitlines()
    assert first == "1: trial 0, 1×4 no gates, new state, 1.5000 nats a byte"
    assert last == "there was"
    assert "once <upon>\n a time\n" in (files / key).read_text("utf-8")
    assert "curves, the texts and forward functions" in note_of(sqlite_url)
    renew_in_vain(sqlite_url, "made", str(files))


def test_a_file_that_a_person_removed_comes_back(sqlite_url, tmp_path):
    make_study(sqlite_url)
    renew(sqlite_url, "made", None)
    before = artifacts_of(sqlite_url)
    key = f"artifacts:{next(iter(before))}"
    with closing(open_storage(sqlite_url)) as storage:
        study_id = load_study(storage, "made")._study_id
        storage.set_study_system_attr(study_id, key, json.dumps(None))
    renew(sqlite_url, "made", None)
    assert artifacts_of(sqlite_url) == before


@pytest.mark.parametrize(
    "edit",
    [
        lambda body: f"My words\n\n{body}",
        lambda body: f"{body}\n\nMy words\n",
        lambda body: f"My words\n{body.removeprefix(note.LINE)}",
        lambda body: "My words",
        lambda body: body.replace(note.LINE, f"My words\n{note.LINE[:-9]}"),
    ],
    ids=["above", "at the end", "in place of the line", "in place of all", "line edited"],
)
def test_what_a_person_wrote_stays(sqlite_url, edit):
    make_study(sqlite_url, finished=5)
    renew(sqlite_url, "made", None)
    write_note(sqlite_url, edit(note_of(sqlite_url)))
    for value in (1.9, 1.95):
        finish_one(sqlite_url, value)
        renew(sqlite_url, "made", None)
    above, line, below = note_of(sqlite_url).partition(note.LINE)
    assert above.startswith("My words")
    assert line
    assert "7 of 8 points" in below
    assert "points are finished" not in above
    assert "My words" not in below


def test_what_a_person_did_to_the_note_below_the_line_is_mended(sqlite_url):
    make_study(sqlite_url)
    renew(sqlite_url, "made", None)
    before = note_of(sqlite_url)
    write_note(sqlite_url, before.replace("8 of 8", "9 of 8"))
    renew(sqlite_url, "made", None)
    assert note_of(sqlite_url) == before


def test_markup_in_names_is_shown_as_it_is(sqlite_url):
    make_study(sqlite_url, MARKUP)
    renew(sqlite_url, MARKUP, None)
    heading = r"## \<script\>alert(1)\</script\> \*a\* \| b"
    assert heading in note_of(sqlite_url, MARKUP)
    with closing(open_storage(sqlite_url)) as storage:
        results = read_results(storage, MARKUP)
    results = dataclasses.replace(results, table=results.table.assign(label="a|b\n```"))
    text = note.compose(
        "made", results.config, results.corpus, ["```"], TrialCounts(8), results, False
    )
    assert r"&ensp;a\|b \`\`\` | 1.5000" in text
    assert "````sh\n```\n````" in text


def test_others_studies_are_left_alone(sqlite_url):
    make_study(sqlite_url)
    optuna.create_study(study_name="foreign", storage=sqlite_url)
    with pytest.raises(StudyNotFoundError, match="was not made by"):
        renew(sqlite_url, "foreign", None)
    assert attributes(sqlite_url, "foreign") == {}


def test_without_a_place_for_files_all_else_is_renewed(sqlite_url, tmp_path):
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "folder")
    make_study(sqlite_url, finished=7)
    for _ in range(2):
        with pytest.raises(ArtifactsError, match="cannot be written"):
            renew(sqlite_url, "made", nowhere)
    assert "7 of 8 points" in note_of(sqlite_url)
    assert "dashboard:plot_data:effects:0" in attributes(sqlite_url)
    assert artifacts_of(sqlite_url) == {}
    # They follow as soon as there is one, and again after it was away.
    renew(sqlite_url, "made", None)
    assert len(artifacts_of(sqlite_url)) == 7
    best = finish_one(sqlite_url, 1.0)
    with pytest.raises(ArtifactsError, match="cannot be written"):
        renew(sqlite_url, "made", nowhere)
    renew(sqlite_url, "made", None)
    names = {each["filename"] for each in artifacts_of(sqlite_url).values()}
    assert f"best-1-trial-{best}.py" in names


def see_that_one_alone_would_have_made_the_same(url, files):
    before, contents = attributes(url), {path: path.read_bytes() for path in files.iterdir()}
    with closing(open_storage(url)) as storage:
        study_id = load_study(storage, "made")._study_id
        storage.set_study_system_attr(study_id, MARK, before[MARK] | {"form": 0})
    renew(url, "made", str(files))
    assert attributes(url) == before
    assert {path: path.read_bytes() for path in files.iterdir()} == contents


def finished_and_intact(url):
    """Check that what is stored is all of one state; return how many points it counts."""
    found = query(url, "SELECT key, value_json FROM study_system_attributes")
    found = {key: json.loads(value) for key, value in found}
    assert note.is_intact(body_of(found), note.Written(*found[MARK]["note"]))
    return found[MARK]["points"]["complete"]


def is_locked(url):
    """Tell whether another renewal would have to wait before it writes."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
        return False
    try:
        query(url, "SELECT 1 FROM studies FOR UPDATE NOWAIT")
    except Exception as error:
        return type(error).__name__ == "LockNotAvailable"
    return False


def test_renewal_appears_as_a_whole(url, tmp_path):
    """Another process, which looks after each statement, sees all of the state before or after."""
    files = tmp_path / "files"
    make_study(url, finished=1)
    write_note(url, "A person's words. " * 200)
    renew(url, "made", str(files))
    finish_one(url, 1.3)
    seen = []

    def look(*statement):
        seen.append(finished_and_intact(url))

    event.listen(Engine, "after_cursor_execute", look)
    try:
        renew(url, "made", str(files))
    finally:
        event.remove(Engine, "after_cursor_execute", look)
    assert finished_and_intact(url) == 2
    assert len(seen) > 5
    assert seen == sorted(seen)


def test_renewal_from_an_older_state_gives_way_to_a_newer_one(url, tmp_path, monkeypatch):
    """Another terminal finishes a trial and renews before this one, which is slow, writes."""
    files = tmp_path / "files"
    make_study(url, finished=1)
    write_note(url, "A person's words. " * 200)
    rewrite = renewal.update_system_attributes

    def rewrite_last(storage, study_id, compose):
        def compose_alone(now):
            assert is_locked(url)
            return compose(now)

        monkeypatch.setattr(renewal, "update_system_attributes", rewrite)
        finish_one(url, 1.3)
        renew(url, "made", str(files))
        newer = attributes(url)
        assert not is_locked(url)
        rewrite(storage, study_id, compose_alone)
        assert attributes(url) == newer

    monkeypatch.setattr(renewal, "update_system_attributes", rewrite_last)
    renew(url, "made", str(files))
    assert finished_and_intact(url) == 2
    see_that_one_alone_would_have_made_the_same(url, files)


def renew_often(url, files, seed, renewals, ended):
    random.seed(seed)
    while not ended.is_set():
        renew(url, "made", files)
        renewals.value += 1
    renew(url, "made", files)


@pytest.mark.extended
def test_two_that_renew_at_once_never_mix(url, tmp_path):
    files = tmp_path / "files"
    make_study(url, finished=1)
    write_note(url, "A person's words. " * 200)
    renew(url, "made", str(files))
    context = multiprocessing.get_context("fork")
    ended = context.Event()
    renewals = [context.Value("i", 0) for _ in range(2)]
    each = [
        context.Process(target=renew_often, args=(url, str(files), i, renewals[i], ended))
        for i in range(2)
    ]
    for process in each:
        process.start()
    for value in (1.9, 1.4, 1.3, 1.2, 1.1):
        finish_one(url, value)
        before = [own.value for own in renewals]
        # Each renews once from this state at least: one that counts now may have begun before.
        while any(own.value <= was + 1 for own, was in zip(renewals, before, strict=True)):
            assert all(process.is_alive() for process in each)
            finished_and_intact(url)
    ended.set()
    for process in each:
        process.join(PATIENT_SECONDS)
    assert [process.exitcode for process in each] == [0, 0]
    see_that_one_alone_would_have_made_the_same(url, files)


# ------------------------------------------------------------------ beside a search


def test_a_renewal_that_fails_is_said_once_and_ends_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(upkeep, "EVERY_SECONDS", 0.01)
    tries = []

    def renew_and_count(*what):
        tries.append(what)
        renew(*what)

    monkeypatch.setattr("reports.dashboard.publish.renew", renew_and_count)
    url = f"sqlite:///{tmp_path}/gone.db"
    ended = threading.Event()
    renewing = threading.Thread(target=Upkeep(url, "made", None).go_on, args=(ended,))
    renewing.start()
    until(lambda: len(tries) > 3)
    ended.set()
    renewing.join(PATIENT_SECONDS)
    assert not renewing.is_alive()
    said = capsys.readouterr().err
    assert said.count("warning: what the dashboard shows is not up to date") == 1
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="not there any more"):
        renew(url, "made", None)


def upkeeps(study):
    return [
        n for n, words in processes().items() if f"reports.dashboard.refresher -- {study} " in words
    ]


@pytest.mark.parametrize(
    ("ended_by", "code"),
    [
        (signal.SIGTERM, 128 + signal.SIGTERM),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.extended),
    ],
)
def test_a_study_is_kept_up_in_a_process_beside_the_search(
    sqlite_url, tmp_path, monkeypatch, capsys, ended_by, code
):
    monkeypatch.setattr(live, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(live, "AGAIN_SECONDS", 0.01)
    name = f"--help {uuid4().hex}"
    make_study(sqlite_url, name, finished=6)
    with LiveView().meanwhile(sqlite_url, name, str(tmp_path / "files"), None):
        until(lambda: is_renewed(sqlite_url))
        assert "6 of 8 points" in note_of(sqlite_url, name)
        (first,) = upkeeps(name)
        assert capsys.readouterr().err == ""
        os.kill(first, ended_by)
        until(lambda: set(upkeeps(name)) - {first})
    assert upkeeps(name) == []
    said = capsys.readouterr().err
    assert f"has ended (exit code {code}); it is started again" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("files/*.part"))


def test_what_keeps_a_study_up_says_what_fails_through_the_search(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(live, "FIRST_SECONDS", 0.01)
    with LiveView().meanwhile(f"sqlite:///{tmp_path}/gone.db", "made", None, None):
        said = until(lambda: capsys.readouterr().err)
    assert said.startswith("warning: what the dashboard shows is not up to date: storage sqlite")
    assert said.count("\n") == 1


def test_a_process_that_cannot_be_started_ends_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(live, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with LiveView().meanwhile(f"sqlite:///{tmp_path}/gone.db", "made", None, free_port()):
        said = until(lambda: capsys.readouterr().err)
    assert said.startswith("warning: what the dashboard shows is not kept up")


def test_a_search_that_ends_at_once_has_no_process_beside_it(sqlite_url, monkeypatch, capsys):
    monkeypatch.setattr(live, "FIRST_SECONDS", 10 * PATIENT_SECONDS)
    monkeypatch.setattr("reports.dashboard.process.start", None)
    before = threading.enumerate()  # with those of earlier searches that have not ended yet
    with LiveView().meanwhile(sqlite_url, "made", None, None):
        started = [each for each in threading.enumerate() if each not in before]
        (waiting,) = [each for each in started if each.name == "upkeep"]
    waiting.join(PATIENT_SECONDS)
    assert not waiting.is_alive()
    assert capsys.readouterr().err == ""


@pytest.mark.extended
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_keeps_a_study_up_ends_when_it_is_told_to(sqlite_url, tmp_path, number):
    name = uuid4().hex
    make_study(sqlite_url, name)
    process = beside.start(
        "reports.dashboard.refresher", ["--", name], sqlite_url, str(tmp_path / "files")
    )
    until(lambda: is_renewed(sqlite_url))
    process.send_signal(number)
    assert process.wait(PATIENT_SECONDS) == 128 + number
    assert not list(tmp_path.glob("files/*.part"))


def test_what_keeps_a_study_up_outlives_no_search_though_nothing_answers(postgresql_url, tmp_path):
    """Its storage takes the connection and never answers."""
    psycopg = pytest.importorskip("psycopg")
    make_study(postgresql_url)
    with psycopg.connect(postgresql_url.replace("+psycopg", "")) as holder:
        holder.execute("LOCK TABLE studies IN ACCESS EXCLUSIVE MODE")
        process = beside.start(
            "reports.dashboard.refresher", ["--", "made"], postgresql_url, str(tmp_path)
        )
        waiting = "relation = 'studies'::regclass AND NOT granted"
        until(lambda: query(postgresql_url, f"SELECT 1 FROM pg_locks WHERE {waiting}"))
        assert process.stdin is not None
        process.stdin.close()  # as if the search had been killed
        assert process.wait(PATIENT_SECONDS) == 1


def test_at_the_end_all_is_reported_and_then_renewed(sqlite_url, monkeypatch):
    make_study(sqlite_url)
    reported = []
    monkeypatch.setattr(live, "report_at_the_end", lambda *what: reported.append(what))
    LiveView().at_the_end(sqlite_url, "made", None)
    assert reported == [(sqlite_url, ["made"])]
    assert "8 of 8 points" in note_of(sqlite_url)


def test_a_report_that_fails_is_no_failure_of_the_search(sqlite_url, monkeypatch, capsys):
    make_study(sqlite_url)

    def fail(*what):
        raise RuntimeError("a defect")

    monkeypatch.setattr("reports.page.page.write_report", fail)
    LiveView().at_the_end(sqlite_url, "made", None)
    assert capsys.readouterr().out == "no report: a defect\n"
    assert "8 of 8 points" in note_of(sqlite_url)


def test_a_port_that_is_taken_is_said_and_ends_nothing(sqlite_url, capsys, run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with LiveView().meanwhile(sqlite_url, "made", None, port):
            said = capsys.readouterr().out
        assert said.startswith(f"dashboard: port {port} cannot be had (Address already in use)")
        assert said.count("\n") == 1
        ended = run(
            "-m", "reports.dashboard.__main__", "--port", str(port), "--storage", sqlite_url
        )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: port {port} cannot be had")
    assert ended.stderr.count("\n") == 1
    assert not Path(sqlite_url.removeprefix("sqlite:///")).exists()


def test_the_server_is_gone_when_the_work_has_ended(sqlite_url, capsys):
    port = free_port()
    with LiveView().meanwhile(sqlite_url, "made", None, port):
        assert capsys.readouterr().out == f"dashboard: http://127.0.0.1:{port}\n"
        with pytest.raises(DashboardError, match=f"port {port}"):
            listen(port)
    listen(port).close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"HTTP_HOST": "127.0.0.1:8080"}, "200"),
        ({"HTTP_HOST": "localhost:9000", "HTTP_ORIGIN": "http://localhost:9000"}, "200"),
        ({"HTTP_HOST": "rebound.example:8080"}, "403"),
        ({"HTTP_HOST": "127.0.0.1.example"}, "403"),
        ({"HTTP_HOST": "127.0.0.1", "HTTP_ORIGIN": "http://elsewhere.example"}, "403"),
        ({"HTTP_HOST": "127.0.0.1", "HTTP_ORIGIN": "null"}, "403"),
        ({"HTTP_HOST": "[::1"}, "403"),
        ({}, "403"),
    ],
)
def test_only_who_means_this_machine_is_answered(headers, status):
    def application(environ, start_response):
        start_response("200 OK", [])
        return [b"all studies"]

    statuses = []
    body = local_only(application)(headers, lambda status, _: statuses.append(status))
    assert statuses[0].startswith(status)
    assert (list(body) == [b"all studies"]) == (status == "200")


def fetch(port, path):
    with urllib.request.urlopen(
        f"http://127.0.0.1:{port}{path}", timeout=PATIENT_SECONDS
    ) as answer:
        return answer.read()


def processes():
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(path.parent.name)] = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


SEARCH = f"""
import runpy

import reports.dashboard.view

reports.dashboard.view.FIRST_SECONDS = 0.01
runpy.run_path({str(ROOT / "run_search.py")!r}, run_name="__main__")
"""
"""A search whose study is kept up from its beginning."""


@pytest.mark.parametrize(
    ("kind", "ended_by", "code"),
    [
        ("postgresql", signal.SIGKILL, -signal.SIGKILL),
        pytest.param("sqlite", signal.SIGINT, 130, marks=pytest.mark.extended),
    ],
)
def test_the_dashboard_lives_as_long_as_the_search(
    request, runner, text, tmp_path, monkeypatch, kind, ended_by, code
):
    monkeypatch.setattr("reports.dashboard.__main__.ANSWER_SECONDS", PATIENT_SECONDS)
    secret = f"secret-{uuid4().hex}"
    url = request.getfixturevalue(f"{kind}_url").replace("tester@", f"tester:{secret}@")
    name = uuid4().hex
    port = free_port()
    program = tmp_path / "search.py"
    program.write_text(SEARCH)
    gate = Gate(tmp_path / "gate", step=1)
    search = runner.start(
        *(str(program), "quick", "--corpus", str(text), "--threads", "1"),
        *(f"--set={key}={value}" for key, value in SETTINGS.items()),
        *("--dashboard", "--port", str(port), "--artifacts", str(text.parent), "--name", name),
        hooks=Hooks(gate=gate),
        RNN_SEARCH_STORAGE=url,
    )
    until_running([search], lambda: gate.held)
    assert f"dashboard: http://127.0.0.1:{port}" in search.stdout
    (study,) = json.loads(fetch(port, "/api/studies"))["study_summaries"]
    assert study["study_name"] == name
    servers = [
        n
        for n, words in processes().items()
        if f"reports.dashboard.__main__ --port {port}" in words
    ]
    assert len(servers) == 1
    servers += until_running([search], lambda: upkeeps(name))
    assert not any(secret in words for words in processes().values())
    with pytest.raises(DashboardError, match="optuna-dashboard that is there already"):
        listen(port)
    search.send(ended_by)
    assert search.wait() == code
    until(lambda: not set(servers) & set(processes()))
    listen(port).close()


# ------------------------------------------------------------------ in a browser


def look(browser, port, has_files):
    """Go through the pages of the one study as a person would."""
    page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(f"http://127.0.0.1:{port}/")
    page.get_by_text(MARKUP).first.click()
    page.wait_for_selector('[id="user-defined-plot:effects"] .trace .point')
    if has_files:
        page.get_by_text("best-1-trial-0.py").wait_for()
    page.goto(f"{page.url}/note")
    page.get_by_role("heading", name="The best").wait_for()
    assert page.get_by_role("heading", name=MARKUP).count() == 1
    cells = page.locator("tr", has_text="1×8 no gates, new state").locator("td").all_inner_texts()
    assert [*map(str.strip, cells)][:4] == ["2", "1", "1×8 no gates, new state", "1.6000"]
    assert dialogs == []
    page.context.close()


@pytest.mark.extended
def test_a_browser_shows_note_figure_and_files(browser, runner, sqlite_url):
    make_study(sqlite_url, MARKUP)
    port = free_port()
    words = ("-m", "reports.dashboard.__main__", "--port", str(port), "--storage", sqlite_url)
    server = runner.start(*words)
    until(lambda: answers(port))
    # A study that no search is at work on is renewed when the dashboard begins.
    until(lambda: is_renewed(sqlite_url))
    look(browser, port, has_files=True)
    (csv,) = (
        each["artifact_id"]
        for each in artifacts_of(sqlite_url, MARKUP).values()
        if each["filename"] == "best-curves.csv"
    )
    assert fetch(port, f"/artifacts/1/{csv}").startswith(b"step,trial 0,")
    server.send(signal.SIGTERM)
    assert server.wait() == 128 + signal.SIGTERM
    assert server.output == f"dashboard: http://127.0.0.1:{port} (Ctrl-C ends it)\n"


@pytest.mark.extended
def test_plain_optuna_dashboard_shows_note_and_figure(browser, sqlite_url):
    make_study(sqlite_url, MARKUP)
    renew(sqlite_url, MARKUP, None)
    port = free_port()
    program = Path(sys.executable).with_name("optuna-dashboard")
    server = subprocess.Popen(
        [program, "--port", str(port), "--host", "127.0.0.1", sqlite_url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: answers(port))
        look(browser, port, has_files=False)  # it was not told where they are
    finally:
        server.terminate()
        server.wait(PATIENT_SECONDS)


def answers(port):
    try:
        return fetch(port, "/api/meta")
    except OSError:
        return False
