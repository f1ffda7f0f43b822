"""What optuna-dashboard shows of a study while it is searched, and afterwards."""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from contextlib import closing
from pathlib import Path
from uuid import uuid4
from xml.etree import ElementTree

import optuna
import pytest
from made import make_runs, make_study, own_point
from nursery import SETTINGS, until
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note
from services import free_port

from reports import beside, live, note, upkeep
from reports.dashboard import listen, local_only
from reports.errors import DashboardError
from reports.live import LiveView
from reports.renewal import MARK, renew
from reports.study_files import TEXTS
from reports.trials import read_results
from reports.upkeep import Upkeep
from studies.accounting import Accounting
from studies.definition import Definition
from studies.errors import ArtifactsError, StorageError, StudiesError, StudyNotFound
from studies.opening import load_study, open_storage

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


def artifacts_of(url, name="made"):
    told = [value for key, value in attributes(url, name).items() if key.startswith("artifacts:")]
    return {each["artifact_id"]: each for each in map(json.loads, told)}


# ------------------------------------------------------------------ what is stored


def test_the_note_says_what_is_asked_where_it_stands_and_what_is_best(url, tmp_path):
    make_study(url, finished=6)
    renew(url, "made", str(tmp_path / "files"))
    body = note_of(url)
    assert "6 of 8 points are finished" in body
    assert "\n| 5 | 0 | 1 | 0 | 0 | 2 |\n" in body
    assert "| 1 | 0 | &ensp;1×4 no gates, new state | 1.5000 |" in body
    assert "4 of the 5 complete points lie below 2.0 nats" in body
    with closing(open_storage(url)) as storage:
        stored = load_study(storage, "made").user_attrs["definition"]
    written = tomllib.loads(body.partition("```toml\n")[2].partition("```")[0])
    assert Definition.model_validate(written) == Definition.model_validate(stored)


def test_note_of_an_old_study_shows_the_settings_that_it_was_trained_with(sqlite_url, tmp_path):
    """Studies from before `evaluation.average` measured the last weights, not their average."""
    make_study(sqlite_url)
    with closing(open_storage(sqlite_url)) as storage:
        study = load_study(storage, "made")
        stored = study.user_attrs["definition"]
        del stored["evaluation"]["average"]
        study.set_user_attr("definition", stored)
    renew(sqlite_url, "made", str(tmp_path / "files"))
    written = tomllib.loads(note_of(sqlite_url).partition("```toml\n")[2].partition("```")[0])
    assert written["evaluation"]["average"] == 0
    with closing(open_storage(sqlite_url)) as storage:
        assert read_results(storage, "made").definition.evaluation.average == 0


def test_study_of_another_version_keeps_its_note(sqlite_url, tmp_path):
    make_study(sqlite_url)
    with closing(open_storage(sqlite_url)) as storage:
        study = load_study(storage, "made")
        study.set_user_attr("definition", study.user_attrs["definition"] | {"novelty": 1})
    with pytest.raises(StudiesError, match="written by another version"):
        renew(sqlite_url, "made", str(tmp_path / "files"))
    assert note_of(sqlite_url) == ""


def renew_in_vain(*what):
    """See that a study is up to date, without making anything anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(note, "compose", None)
        renew(*what)


def test_it_is_renewed_when_something_has_changed_and_only_then(url, tmp_path):
    files = tmp_path / "files"
    make_study(url, finished=6)
    renew(url, "made", str(files))
    before = attributes(url)
    times = {path: path.stat().st_mtime_ns for path in files.iterdir()}
    renew_in_vain(url, "made", str(files))
    assert attributes(url) == before
    finish_one(url, 2.5)
    renew(url, "made", str(files))
    after = attributes(url)
    assert "7 of 8 points" in note_of(url)
    # The best are those that they were.
    assert {path: path.stat().st_mtime_ns for path in files.iterdir()} == times
    assert after[MARK] != before[MARK]
    # Else who edits the note in the dashboard at that moment could not save it.
    assert after["dashboard:note_ver"] == before["dashboard:note_ver"]
    assert max(len(str(value)) for value in after.values()) <= 2045


def test_a_study_of_which_nothing_is_complete_has_a_note_alone(url, tmp_path):
    make_study(url, finished=0)
    renew(url, "made", str(tmp_path / "files"))
    assert "No point is complete yet" in note_of(url)
    renew_in_vain(url, "made", str(tmp_path / "files"))
    assert not any("plot_data" in key for key in attributes(url))
    assert artifacts_of(url) == {}
    assert not (tmp_path / "files").exists()


def test_files_take_the_place_of_those_before(url, tmp_path):
    files = tmp_path / "files"
    make_study(url, finished=5)
    renew(url, "made", str(files))
    before = artifacts_of(url)
    names = {each["filename"] for each in before.values()}
    assert {"best-curves.csv", "best-curves.svg", "best-1-trial-0.py"} <= names
    best = finish_one(url, 1.0)
    renew(url, "made", str(files))
    after = artifacts_of(url)
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
        "made", results.definition, results.corpus, ["```"], Accounting(8), results, False
    )
    assert r"&ensp;a\|b \`\`\` | 1.5000" in text
    assert "````sh\n```\n````" in text


def test_others_studies_are_left_alone(sqlite_url):
    make_study(sqlite_url)
    optuna.create_study(study_name="foreign", storage=sqlite_url)
    with pytest.raises(StudyNotFound, match="was not made by"):
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


def renew_often(url, files, seed, ended):
    random.seed(seed)
    while not ended.is_set():
        renew(url, "made", files)
    renew(url, "made", files)


def test_two_that_renew_at_once_never_mix(url, tmp_path):
    files = tmp_path / "files"
    make_study(url, finished=1)
    write_note(url, "A person's words. " * 200)
    context = multiprocessing.get_context("fork")
    ended = context.Event()
    each = [context.Process(target=renew_often, args=(url, str(files), i, ended)) for i in (0, 1)]
    for process in each:
        process.start()
    for value in (1.9, 1.4, 1.3, 1.2, 1.1):
        finish_one(url, value)
        looks, end = 0, time.monotonic() + 0.2
        while time.monotonic() < end or looks < 3:
            found = attributes(url)
            if MARK in found:
                looks += 1
                assert note.is_intact(body_of(found), note.Written(*found[MARK]["note"]))
    ended.set()
    for process in each:
        process.join(60)
    assert [process.exitcode for process in each] == [0, 0]
    # What is left is what one alone would have made.
    before, contents = attributes(url), {path: path.read_bytes() for path in files.iterdir()}
    with closing(open_storage(url)) as storage:
        study_id = load_study(storage, "made")._study_id
        storage.set_study_system_attr(study_id, MARK, before[MARK] | {"form": 0})
    renew(url, "made", str(files))
    assert attributes(url) == before
    assert {path: path.read_bytes() for path in files.iterdir()} == contents


# ------------------------------------------------------------------ beside a search


def test_a_renewal_that_fails_is_said_once_and_ends_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(upkeep, "EVERY_SECONDS", 0.01)
    tries = []

    def renew_and_count(*what):
        tries.append(what)
        renew(*what)

    monkeypatch.setattr("reports.renewal.renew", renew_and_count)
    url = f"sqlite:///{tmp_path}/gone.db"
    ended = threading.Event()
    renewing = threading.Thread(target=Upkeep(url, "made", None).go_on, args=(ended,))
    renewing.start()
    until(lambda: len(tries) > 3)
    ended.set()
    renewing.join(60)
    assert not renewing.is_alive()
    said = capsys.readouterr().err
    assert said.count("warning: what the dashboard shows is not up to date") == 1
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="not there any more"):
        renew(url, "made", None)


def upkeeps(study):
    return [n for n, words in processes().items() if f"reports.upkeep -- {study} " in words]


def test_a_study_is_kept_up_in_a_process_beside_the_search(url, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(live, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(live, "AGAIN_SECONDS", 0.01)
    name = f"--help {uuid4().hex}"
    make_study(url, name, finished=6)
    with LiveView().meanwhile(url, name, str(tmp_path / "files"), None):
        until(lambda: "6 of 8 points" in note_of(url, name))
        (first,) = upkeeps(name)
        assert capsys.readouterr().err == ""
        os.kill(first, signal.SIGKILL)
        until(lambda: set(upkeeps(name)) - {first})
    assert upkeeps(name) == []
    said = capsys.readouterr().err
    assert "has ended (exit code -9); it is started again" in said
    assert said.count("\n") == 1


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


def test_a_search_that_ends_at_once_has_no_process_beside_it(sqlite_url, monkeypatch):
    make_study(sqlite_url)
    monkeypatch.setattr("reports.beside.start", None)
    with LiveView().meanwhile(sqlite_url, "made", None, None):
        (waiting,) = [each for each in threading.enumerate() if each.name == "upkeep"]
    waiting.join(60)
    assert not waiting.is_alive()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_keeps_a_study_up_ends_when_it_is_told_to(sqlite_url, tmp_path, number):
    name = uuid4().hex
    make_study(sqlite_url, name)
    process = beside.start("reports.upkeep", ["--", name], sqlite_url, str(tmp_path / "files"))
    until(lambda: note_of(sqlite_url, name))
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    assert not list(tmp_path.glob("files/*.part"))


def test_what_keeps_a_study_up_outlives_no_search_though_nothing_answers(
    tmp_path,
):
    """Its storage takes connections and never answers, as a frozen server does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+psycopg://me@127.0.0.1:{silent.getsockname()[1]}/studies"
        process = beside.start("reports.upkeep", ["--", "made"], url, str(tmp_path))
        connection, _ = silent.accept()
        assert process.stdin is not None
        process.stdin.close()  # as if the search had been killed
        assert process.wait(20) == 1
        connection.close()


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

    monkeypatch.setattr("reports.page.write_report", fail)
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
        ended = run("-m", "reports.dashboard", "--port", str(port), "--storage", sqlite_url)
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
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return answer.read()


def processes():
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(path.parent.name)] = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("kind", "ended_by", "code"),
    [("postgresql", signal.SIGINT, 130), ("sqlite", signal.SIGKILL, -signal.SIGKILL)],
)
def test_the_dashboard_lives_as_long_as_the_search(request, nursery, text, kind, ended_by, code):
    url = request.getfixturevalue(f"{kind}_url").replace("tester@", "tester:s3cret@")
    name = uuid4().hex
    port = free_port()
    search = nursery.start(
        *("run_search.py", "quick", "--corpus", str(text), "--threads", "1"),
        *(f"--set={key}={value}" for key, value in (SETTINGS | {"training.steps": 9999}).items()),
        *("--dashboard", "--port", str(port), "--artifacts", str(text.parent), "--name", name),
        RNN_SEARCH_STORAGE=url,
    )
    until(lambda: f"dashboard: http://127.0.0.1:{port}" in search.stdout)
    (study,) = json.loads(fetch(port, "/api/studies"))["study_summaries"]
    assert study["study_name"] == name
    servers = [n for n, words in processes().items() if f"reports.dashboard --port {port}" in words]
    assert len(servers) == 1
    if ended_by == signal.SIGKILL:  # nobody tells them to end
        servers += until(lambda: upkeeps(name))
    assert not any("s3cret" in words for words in processes().values())
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


def test_a_browser_shows_note_figure_and_files(browser, nursery, sqlite_url):
    make_study(sqlite_url, MARKUP)
    port = free_port()
    words = ("-m", "reports.dashboard", "--port", str(port), "--storage", sqlite_url)
    server = nursery.start(*words)
    until(lambda: answers(port))
    # A study that no search is at work on is renewed when the dashboard begins.
    until(lambda: MARK in attributes(sqlite_url, MARKUP))
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
        server.wait(30)


def answers(port):
    try:
        return fetch(port, "/api/meta")
    except OSError:
        return False
