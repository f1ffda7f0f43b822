"""optuna-dashboard during a search and afterwards: note, figure and files of a study."""

import dataclasses
import http.client
import json
import os
import re
import signal
import socket
import threading
import tomllib
import urllib.request
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import optuna
import psutil
import pytest
from factories import (
    extend_steps,
    finish_one,
    gated_params,
    make_runs,
    make_study,
    make_union,
    results_of,
)
from helpers import EACH_DATABASE, QUICK
from hooks import HANG_TIMEOUT, Gate, Hooks
from optuna_dashboard import get_note, save_note, wsgi
from process_runner import SETTINGS, query, wait_until, wait_until_running
from services import free_port
from sqlalchemy import Engine, event

from reports.dashboard import launcher, note, publish, server
from reports.dashboard.publish import SAMPLES_FILE, StudyPublisher, publish_study
from reports.dashboard.server import PublishOnView, open_listener, same_origin_only
from reports.errors import DashboardError
from reports.findings import StudyFindings
from studies.artifacts import open_store
from studies.attributes import LOOKS, PUBLISHED, REPORT_CLAIM
from studies.config import StudyConfig
from studies.errors import ArtifactsError, StudiesError, StudyFormatError
from studies.storage.changes import rename_study, retry_trials
from studies.storage.counts import TrialCounts
from studies.storage.open import list_study_names, load_study, open_storage

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


def publish_url(url, name="made", artifacts=None):
    with closing(open_storage(url)) as storage:
        publish_study(
            storage, name, lambda: open_store(artifacts and str(artifacts), url, "artifacts")
        )


def is_published(url):
    return query(url, f"SELECT 1 FROM study_system_attributes WHERE key = '{PUBLISHED}'")


def artifacts_of(url, name="made"):
    values = [value for key, value in attributes(url, name).items() if key.startswith("artifacts:")]
    return {artifact["artifact_id"]: artifact for artifact in map(json.loads, values)}


def test_note_has_question_progress_best_trials_and_config(sqlite_url, tmp_path):
    make_study(sqlite_url, finished=6)
    publish_url(sqlite_url, "made", tmp_path / "files")
    body = note_of(sqlite_url)
    assert "6 of 8" in body
    assert "\n| 5 | 0 | 1 | 0 | 0 | 2 |\n" in body
    assert "| 1 | 0 | &ensp;1×4 no gates, new state | 1.5000 |" in body
    assert "4 of 6" in body, "are below the threshold"
    with closing(open_storage(sqlite_url)) as storage:
        stored = load_study(storage, "made").user_attrs["config"]
    written = tomllib.loads(body.partition("```toml\n")[2].partition("```")[0])
    assert StudyConfig.model_validate(written) == StudyConfig.model_validate(stored)


def test_union_is_published_at_each_architectures_best(sqlite_url, tmp_path):
    make_union(sqlite_url)
    publish_url(sqlite_url, "union", tmp_path / "files")
    body = note_of(sqlite_url, "union")
    best = [line for line in body.splitlines() if "MinGRU, norm true" in line]
    assert len(best) == len({line.partition(", learning")[0] for line in best}) > 1
    assert f"SHA-256 `{'ab' * 32}`" in body
    files = {each["filename"] for each in artifacts_of(sqlite_url, "union").values()}
    assert "best-1-trial-57.py" in files


def assert_current(url, name="made", artifacts=None):
    """Check that publishing a study that has not changed renders nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "render_note", None)
        publish_url(url, name, artifacts)


def test_study_is_published_again_only_after_a_change(sqlite_url, tmp_path):
    files = tmp_path / "files"
    make_study(sqlite_url, finished=6)
    publish_url(sqlite_url, "made", files)
    before = attributes(sqlite_url)
    assert_current(sqlite_url, "made", files)
    assert attributes(sqlite_url) == before
    finish_one(sqlite_url, 2.5)
    publish_url(sqlite_url, "made", files)
    after = attributes(sqlite_url)
    assert "7 of 8 trials" in note_of(sqlite_url)
    # Otherwise a user who is editing the note could not save it.
    assert after["dashboard:note_ver"] == before["dashboard:note_ver"]
    assert max(len(str(value)) for value in after.values()) <= 2045


def test_study_extended_to_more_steps_is_published_again_with_its_files(sqlite_url, tmp_path):
    """All trials finish in the same order as before: numbers and file names are the same."""
    files = tmp_path / "files"
    make_study(sqlite_url, diverged=None)
    publish_url(sqlite_url, "made", files)
    (curves,) = [path for path in files.iterdir() if path.read_text().startswith("step,")]
    assert "\n100,1.500000," in curves.read_text()
    extend_steps(sqlite_url, 20_000, range(8))
    for number in range(8):
        finish_one(sqlite_url, 1.0 + number / 10)
    publish_url(sqlite_url, "made", files)
    assert "1.0000 |" in note_of(sqlite_url)
    assert "\n100,1.000000," in curves.read_text()
    assert_current(sqlite_url, "made", files)


def test_study_without_complete_trials_has_only_a_note(sqlite_url, tmp_path):
    make_study(sqlite_url, finished=0)
    publish_url(sqlite_url, "made", tmp_path / "files")
    assert "0 of 8" in note_of(sqlite_url)
    assert_current(sqlite_url, "made", tmp_path / "files")
    assert not any("plot_data" in key for key in attributes(sqlite_url))
    assert artifacts_of(sqlite_url) == {}
    assert not (tmp_path / "files").exists()


def test_new_files_replace_the_previous_ones(sqlite_url, tmp_path):
    files = tmp_path / "files"
    make_study(sqlite_url, finished=5)
    publish_url(sqlite_url, "made", files)
    names = {each["filename"] for each in artifacts_of(sqlite_url).values()}
    assert {"best-curves.csv", "best-1-trial-0.py"} <= names
    best = finish_one(sqlite_url, 1.0)
    publish_url(sqlite_url, "made", files)
    after = artifacts_of(sqlite_url)
    content = {each["filename"]: (files / key).read_text("utf-8") for key, each in after.items()}
    assert {path.name for path in files.iterdir()} == set(after)
    compile(content[f"best-1-trial-{best}.py"], "best", "exec")
    assert content["best-curves.csv"].splitlines()[0].startswith(f"step,trial {best},trial 0,")
    assert content["best-curves.csv"].splitlines()[2].startswith("100,1.000000,1.500000,")


def test_samples_of_the_best_trials_are_one_file(sqlite_url, tmp_path):
    files, samples = tmp_path / "files", ("once <upon>\n a time", None, "there was")
    runs = [(gated_params(1 + i), 1.5 + i, {"sample": text}) for i, text in enumerate(samples)]
    make_runs(sqlite_url, "made", {"space": {"layers": [1, 2, 3], "state_size": [4]}}, runs)
    publish_url(sqlite_url, "made", files)
    (key,) = (
        key for key, each in artifacts_of(sqlite_url).items() if each["filename"] == SAMPLES_FILE
    )
    written = (files / key).read_text("utf-8")
    assert written.startswith("1: trial 0, 1×4 no gates, new state, 1.5000 nats per byte\n")
    assert "once <upon>\n a time\n" in written
    assert written.endswith("there was\n")


EDITS = {
    "above": lambda body: f"My text\n\n{body}".replace("5 of 8", "9 of 8"),
    "below": lambda body: f"{body}\n\nMy text",
    "replaces all": lambda body: "My text",
    "separator edited": lambda body: body.replace(
        note.SEPARATOR, f"My text\n{note.SEPARATOR[:-9]}"
    ),
    "separator removed": lambda body: body.replace(note.SEPARATOR, "") + "\n\nMy text",
}


@pytest.mark.parametrize("is_earlier", [False, True])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_text_of_a_user_is_kept(sqlite_url, edit, is_earlier):
    make_study(sqlite_url, finished=5)
    publish_url(sqlite_url)
    write_note(sqlite_url, edit(note_of(sqlite_url)))
    if is_earlier:
        published = {"format": 6, "steps": 10_000, "counts": {}, "files": {"artifacts:a": "x"}}
        published["note"] = attributes(sqlite_url)[PUBLISHED]["note"]
        set_published(sqlite_url, published)
    for value in (1.9, 1.95):
        finish_one(sqlite_url, value)
        publish_url(sqlite_url)
    above, _, below = note_of(sqlite_url).partition(note.SEPARATOR)
    assert above.startswith("My text")
    assert "7 of 8 trials" in below
    assert "trials are finished" not in above
    assert "My text" not in below


def set_published(url, published):
    with closing(open_storage(url)) as storage:
        study_id = load_study(storage, "made")._study_id
        storage.set_study_system_attr(study_id, PUBLISHED, published)


@pytest.mark.parametrize(
    "change",
    [
        lambda storage, study: save_note(study, ""),
        lambda storage, study: save_note(study, get_note(study).replace("8 of 8", "9 of 8")),
        lambda storage, study: rename_study(storage, "made", "other"),
        lambda storage, study: delete_first_file(storage, study),
    ],
    ids=["note removed", "note edited", "renamed", "file deleted"],
)
def test_finished_study_is_published_again_after_a_change(sqlite_url, change):
    make_study(sqlite_url)
    publish_url(sqlite_url)
    files = artifacts_of(sqlite_url)
    with closing(open_storage(sqlite_url)) as storage:
        study = load_study(storage, "made")
        change(storage, study)
        (name,) = list_study_names(storage)
    publish_url(sqlite_url, name)
    body = note_of(sqlite_url, name)
    assert f"\n## {name}\n\n8 of 8 trials" in body
    assert body.startswith(note.SEPARATOR)
    assert body.count("\n## ") == 1
    assert artifacts_of(sqlite_url, name) == files


def delete_first_file(storage, study):
    """Delete a file as the dashboard does."""
    attrs = storage.get_study_system_attrs(study._study_id)
    key = next(each for each in attrs if each.startswith("artifacts:"))
    storage.set_study_system_attr(study._study_id, key, json.dumps(None))


def test_markup_in_names_is_escaped(sqlite_url):
    make_study(sqlite_url, MARKUP)
    publish_url(sqlite_url, MARKUP)
    heading = r"## \<script\>alert(1)\</script\> \*a\* \| b"
    assert heading in note_of(sqlite_url, MARKUP)
    results = results_of(sqlite_url, MARKUP)
    names = "a|b\n```" + results.table["architecture"]
    results = dataclasses.replace(results, table=results.table.assign(architecture=names))
    text = note.render_note(
        "made", results.config, results.corpus, ["```"], TrialCounts(8), StudyFindings(results)
    )
    assert r"&ensp;a\|b \`\`\`1×4 no gates, new state | 1.5000" in text
    assert "````sh\n```\n````" in text


def test_studies_of_other_programs_and_versions_are_left_alone(sqlite_url):
    make_study(sqlite_url)
    with closing(open_storage(sqlite_url)) as storage:
        study = load_study(storage, "made")
        study.set_user_attr("config", study.user_attrs["config"] | {"novelty": 1})
    optuna.create_study(study_name="foreign", storage=sqlite_url)
    with pytest.raises(StudiesError, match=r"invalid attribute config\.novelty"):
        publish_url(sqlite_url, "made")
    with pytest.raises(StudyFormatError, match="has no schema version"):
        publish_url(sqlite_url, "foreign")
    assert note_of(sqlite_url) == ""
    assert attributes(sqlite_url, "foreign") == {}


def test_note_and_figure_are_published_without_a_place_for_files(sqlite_url, tmp_path):
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "folder")
    make_study(sqlite_url, finished=7)
    for _ in range(2):
        with pytest.raises(ArtifactsError, match="cannot write"):
            publish_url(sqlite_url, "made", nowhere)
    assert "7 of 8 trials" in note_of(sqlite_url)
    assert "dashboard:plot_data:effects:0" in attributes(sqlite_url)
    assert artifacts_of(sqlite_url) == {}
    # The files are written as soon as the store works.
    publish_url(sqlite_url)
    assert len(artifacts_of(sqlite_url)) == 6


def ask(application, path):
    """Return what optuna-dashboard, as the WSGI application that it is, answers to a GET."""
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "after=0"}
    return json.loads(b"".join(application(environ, lambda *response: None)))


def test_plain_optuna_dashboard_shows_note_figure_and_files(sqlite_url):
    make_study(sqlite_url)
    publish_url(sqlite_url)
    shown = ask(wsgi(sqlite_url), "/api/studies/1")
    assert shown["note"]["body"] == note_of(sqlite_url)
    assert [each["id"] for each in shown["plotly_graph_objects"]] == ["effects"]
    assert "best-1-trial-0.py" in [each["filename"] for each in shown["artifacts"]]


def test_damaged_study_is_listed_and_leaves_the_others_to_be_viewed(sqlite_url):
    make_study(sqlite_url)
    make_study(sqlite_url, "damaged")
    with closing(open_storage(sqlite_url)) as storage:
        with storage.transaction() as connection:
            damage = "UPDATE study_user_attributes SET value_json = '{' WHERE study_id = 2"
            connection.exec_driver_sql(damage)
        listed = ask(wsgi(storage), "/api/studies")["study_summaries"]
        assert [each["study_name"] for each in listed] == ["made", "damaged"]
        assert ask(wsgi(storage), "/api/studies/1")["best_trials"]


def finished_and_intact(url):
    """Check that the publication is of one state; return its number of complete trials."""
    found = query(url, "SELECT key, value_json FROM study_system_attributes")
    found = {key: json.loads(value) for key, value in found}
    body = body_of(found)
    assert note.is_intact(body, found[PUBLISHED]["note"])
    return int(re.search(r"(\d+) of 8 trials", body)[1])


@EACH_DATABASE
def test_publication_is_one_transaction(url, tmp_path):
    """A reader between any two statements sees either the old or the new publication."""
    files = tmp_path / "files"
    make_study(url, finished=1)
    write_note(url, "A user's text. " * 200)
    publish_url(url, "made", files)
    finish_one(url, 1.3)
    seen = []

    def inspect(*statement):
        seen.append(finished_and_intact(url))

    event.listen(Engine, "after_cursor_execute", inspect)
    try:
        publish_url(url, "made", files)
    finally:
        event.remove(Engine, "after_cursor_execute", inspect)
    assert finished_and_intact(url) == 2
    assert len(seen) > 5
    assert seen == sorted(seen)


@EACH_DATABASE
def test_publication_of_an_older_state_gives_way_to_a_newer_one(url, tmp_path):
    """Another process finishes a trial and publishes before this slow one writes its files."""
    files = tmp_path / "files"
    make_study(url, finished=1)
    newer = []

    def open_late():
        if not newer:
            best = finish_one(url, 1.3)
            publish_url(url, "made", files)
            newer.extend([attributes(url), {path: path.read_text() for path in files.iterdir()}])
            assert any(f"trial {best},trial 0" in text for text in newer[1].values())
        return open_store(str(files), url, "artifacts")

    with closing(open_storage(url)) as storage:
        publish_study(storage, "made", open_late)
    assert [attributes(url), {path: path.read_text() for path in files.iterdir()}] == newer
    assert finished_and_intact(url) == 2


# ------------------------------------------------------------------ the end of a search


def test_end_of_a_search_writes_the_report_and_publishes(sqlite_url, monkeypatch):
    make_study(sqlite_url)
    reported = []
    monkeypatch.setattr(
        launcher, "write_final_report", lambda *arguments: reported.append(arguments)
    )
    launcher.finalize_search(sqlite_url, "made", None, 8, False)
    assert reported == [(sqlite_url, ["made"])]
    assert "8 of 8 trials" in note_of(sqlite_url)


@EACH_DATABASE
def test_one_of_the_processes_that_see_a_search_end_writes_the_report(url, monkeypatch, capsys):
    make_study(url)
    monkeypatch.setattr(launcher, "write_final_report", lambda *_: print("written"))
    monkeypatch.setattr(publish, "publish_study", lambda *_: None)

    def end_on(host, was_finished=False):
        monkeypatch.setattr(socket, "gethostname", lambda: host)
        launcher.finalize_search(url, "made", None, 8, was_finished)
        return capsys.readouterr().out

    def store(change):
        with closing(open_storage(url)) as storage:
            change(storage, load_study(storage, "made")._study_id)

    def retry(storage, study_id):
        retry_trials(storage, "made", ["diverged"])
        finish_one(url, 1.3)

    leaves_it = (
        f"report: process one/{os.getpid()} writes it; for another copy: rnn-search report made\n"
    )
    assert end_on("one") == "written\n"
    assert end_on("two") == leaves_it
    assert end_on("one") == "written\n", "its first answer was lost"
    assert end_on("two") == leaves_it
    assert end_on("two", was_finished=True) == "written\n"
    earlier = {"finished": 8, "host": "two", "pid": 1, "path": "", "is_written": False}
    for change in (
        retry,
        lambda storage, study_id: storage.set_study_user_attr(study_id, LOOKS, [{}]),
        lambda storage, study_id: storage.set_study_system_attr(study_id, REPORT_CLAIM, earlier),
    ):
        assert end_on("two") == leaves_it
        store(change)
        assert end_on("two") == "written\n"
        assert end_on("one") == leaves_it.replace("one", "two")
        store(lambda storage, study_id: storage.set_study_system_attr(study_id, REPORT_CLAIM, {}))
        assert end_on("one") == "written\n"


def test_failure_at_the_end_of_a_search_is_printed_and_a_bug_has_its_traceback(
    sqlite_url, monkeypatch, capsys
):
    make_study(sqlite_url)

    def fail(*arguments):
        raise error

    error: Exception = OSError("disk full")
    for place in ("page.page.write_report", "dashboard.publish.publish_study"):
        monkeypatch.setattr(f"reports.{place}", fail)
    launcher.finalize_search(sqlite_url, "made", None, 8, False)
    printed = capsys.readouterr()
    lines = (printed.out + printed.err).splitlines()
    assert len(lines) == 2
    for line in ("cannot update the dashboard: disk full", "no report: disk full"):
        assert any(each.endswith(line) for each in lines)
    error = KeyError("a defect")
    launcher.finalize_search(sqlite_url, "made", None, 8, False)
    printed = capsys.readouterr()
    assert printed.out == "no report: 'a defect'\n"
    assert printed.err.count("Traceback (most recent call last):") == 2
    assert printed.err.count("\nwarning: bug in rnn-search (KeyError: 'a defect'): please ") == 2
    error = OSError("disk full")
    monkeypatch.setattr(launcher, "_claim_report", fail)
    launcher.finalize_search(sqlite_url, "made", None, 8, False)
    assert capsys.readouterr() == ("no report: disk full\n", "")


def test_search_continues_without_a_dashboard_that_cannot_start(monkeypatch, capsys):
    monkeypatch.setattr("sys.executable", "/no/python")
    with launcher.serve_dashboard("sqlite:///x.db", None, free_port()):
        (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("dashboard: ")
    assert line.endswith("'/no/python'; the search continues without it")


def request(application, path):
    return application({"PATH_INFO": path}, lambda *response: None)


@pytest.fixture
def viewed(sqlite_url, tmp_path):
    """Middleware over one study."""
    make_study(sqlite_url)
    store = open_store(str(tmp_path / "files"), sqlite_url, "artifacts")
    with closing(open_storage(sqlite_url)) as storage:
        yield PublishOnView(lambda environ, start: [b"answer"], storage, store)


def test_viewed_study_is_published_in_the_background(viewed, sqlite_url):
    for path in ("/", "/api/studies", "/dashboard/studies/1", "/api/trials/1"):
        assert request(viewed, path) == [b"answer"]
    assert not viewed._publishing.locked()
    assert not is_published(sqlite_url)
    request(viewed, "/api/studies/1")
    wait_until(lambda: is_published(sqlite_url))
    assert "8 of 8 trials" in note_of(sqlite_url)


def test_requests_do_not_wait_for_a_publication_and_ask_for_one_per_interval(viewed, monkeypatch):
    calls, started, finish = [], threading.Event(), threading.Event()

    def publish_slowly(publisher):
        calls.append(publisher.study.study_name)
        started.set()
        finish.wait(HANG_TIMEOUT)

    monkeypatch.setattr(StudyPublisher, "publish", publish_slowly)
    request(viewed, "/api/studies/1")
    assert started.wait(HANG_TIMEOUT)
    assert request(viewed, "/api/studies/1") == [b"answer"]
    finish.set()
    wait_until(lambda: viewed._due)
    request(viewed, "/api/studies/1")
    assert calls == ["made"]
    viewed._due.clear()
    request(viewed, "/api/studies/1/param_importances")
    wait_until(lambda: len(calls) == 2)


def test_failed_publication_of_a_viewed_study_is_warned_of_once(viewed, monkeypatch, capsys):
    monkeypatch.setattr(server, "PUBLISH_INTERVAL_SECONDS", 0)
    attempts = []

    def fail(*arguments):
        attempts.append(arguments)
        raise KeyError("a defect")

    monkeypatch.setattr(StudyPublisher, "publish", fail)
    for n in (1, 2, 3):
        wait_until(lambda: not viewed._publishing.locked())
        request(viewed, "/api/studies/1")
        wait_until(lambda n=n: len(attempts) == n)
    wait_until(lambda: not viewed._publishing.locked())
    printed = capsys.readouterr().err
    assert printed.startswith("warning: cannot publish a study: 'a defect'\nTraceback (")
    assert printed.count("Traceback (") == printed.count("bug in rnn-search (KeyError:") == 1


LOCAL, OTHER = "127.0.0.1:8080", "http://elsewhere.example"

OWN_REQUESTS = {
    "plain client": {},
    "own page": {"ORIGIN": f"http://{LOCAL}", "SEC_FETCH_SITE": "same-origin"},
    "tunnel": {"HOST": "localhost:9000", "ORIGIN": "http://localhost:9000"},
    "IPv6": {"HOST": "[::1]:8080", "ORIGIN": "http://[::1]:8080"},
    "address bar": {"SEC_FETCH_SITE": "none"},
}

FOREIGN_REQUESTS = {
    "script of another site": {"ORIGIN": OTHER, "SEC_FETCH_SITE": "cross-site"},
    "script of another port": {"SEC_FETCH_SITE": "same-site", "SEC_FETCH_MODE": "cors"},
    "another port": {"ORIGIN": "http://127.0.0.1:1"},
    "no port": {"ORIGIN": "http://127.0.0.1"},
    "another local name": {"ORIGIN": "http://localhost"},
    "page without an origin": {"ORIGIN": "null"},
    "form": {"SEC_FETCH_SITE": "cross-site", "SEC_FETCH_MODE": "navigate"},
    "rebound name": {"HOST": "rebound.example", "ORIGIN": "http://rebound.example"},
    "longer name": {"HOST": "127.0.0.1.example"},
    "no address": {"HOST": "[::1"},
    "no host": {"HOST": ""},
}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_only_the_own_page_and_plain_clients_at_a_local_name_are_answered(method):
    def answer(headers):
        given = {"HOST": LOCAL} | headers
        environ = {f"HTTP_{name}": value for name, value in given.items()}
        statuses = []
        application = same_origin_only(lambda environ, start: start("200 OK", []) or [])
        application({"REQUEST_METHOD": method} | environ, lambda line, _: statuses.append(line[:3]))
        return statuses

    for kind, headers in OWN_REQUESTS.items():
        assert answer(headers) == ["200"], kind
    for kind, headers in FOREIGN_REQUESTS.items():
        assert answer(headers) == ["403"], kind
    link = {"SEC_FETCH_SITE": "cross-site", "SEC_FETCH_MODE": "navigate"}
    for place in ("iframe", "frame", "embed", "object"):
        assert answer(link | {"SEC_FETCH_DEST": place}) == ["403"], place
    assert answer(link | {"SEC_FETCH_DEST": "document"}) == ["200" if method == "GET" else "403"]


@pytest.fixture(scope="module")
def served(runner, tmp_path_factory):
    """URL and port of a dashboard, which ends without a word when it is told to."""
    url = f"sqlite:///{tmp_path_factory.mktemp('served')}/studies.db"
    make_study(url)
    port = free_port()
    process = runner.start("dashboard", "--port", str(port), "--storage", url)
    wait_until_running([process], lambda: answers(port))
    yield url, port
    process.send(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert process.output == f"dashboard: http://127.0.0.1:{port} (stop with Ctrl-C)\n"


def send(port, method, path, **headers):
    """Send a request to the dashboard; return its status and headers."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_TIMEOUT)) as client:
        client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        response = client.getresponse()
        response.read()
        return response.status, response.headers


def study_names(url):
    return [name for (name,) in query(url, "SELECT study_name FROM studies ORDER BY study_id")]


def test_only_the_dashboards_own_page_deletes_a_study(served):
    url, port = served
    make_study(url, "second")
    assert send(port, "DELETE", "/api/studies/2", Origin=OTHER)[0] == 403
    assert study_names(url) == ["made", "second"]
    assert send(port, "DELETE", "/api/studies/2", Origin=f"http://127.0.0.1:{port}")[0] == 204
    assert study_names(url) == ["made"]


def test_no_response_may_be_shown_in_a_frame(served):
    _, port = served
    for path, sent, expected in (
        ("/", {}, 302),
        ("/dashboard", {}, 200),
        ("/absent", {}, 404),
        ("/dashboard", {"Host": "rebound.example"}, 403),
        ("/dashboard", {f"Header{n}": "1" for n in range(101)}, 431),  # before it is parsed
    ):
        status, headers = send(port, "GET", path, **sent)
        assert status == expected
        assert headers.get_all("X-Frame-Options") == ["DENY"], status
        assert "frame-ancestors 'none'" in headers.get_all("Content-Security-Policy"), status


def test_port_in_use_is_reported_and_the_search_continues(sqlite_url, capsys, invoke, monkeypatch):
    monkeypatch.setattr(server, "PROBE_TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with launcher.serve_dashboard(sqlite_url, None, port):
            output = capsys.readouterr().out
        assert output.startswith(f"dashboard: port {port} cannot be used (Address already in use)")
        assert output.count("\n") == 1
        ended = invoke("dashboard", "--port", str(port), "--storage", sqlite_url)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: port {port} cannot be used")
    assert ended.stderr.count("\n") == 1
    assert not Path(sqlite_url.removeprefix("sqlite:///")).exists()


def test_server_has_stopped_when_the_search_ends(sqlite_url, monkeypatch):
    monkeypatch.setattr(server, "PROBE_TIMEOUT_SECONDS", 0.1)
    port = free_port()
    in_use = pytest.raises(DashboardError, match=f"port {port}")
    with launcher.serve_dashboard(sqlite_url, None, port), in_use:
        open_listener(port)
    open_listener(port).close()


def fetch(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=HANG_TIMEOUT) as response:
        return response.read()


def processes():
    found = psutil.process_iter(["cmdline"])
    return {each.pid: " ".join(each.info["cmdline"] or ()) for each in found}


@pytest.mark.extended
def test_dashboard_ends_with_a_killed_search(runner, text, tmp_path, monkeypatch, postgresql_url):
    monkeypatch.setattr(server, "PROBE_TIMEOUT_SECONDS", HANG_TIMEOUT)
    secret = f"secret-{uuid4().hex}"
    url = postgresql_url.replace("tester@", f"tester:{secret}@")
    port = free_port()
    gate = Gate(tmp_path / "gate", step=1)
    search = runner.start(
        *("run", QUICK, "--corpus", str(text), "--threads", "1"),
        *(f"--set={key}={value}" for key, value in SETTINGS.items()),
        *("--dashboard", "--port", str(port), "--artifacts", str(text.parent)),
        hooks=Hooks(gate=gate),
        RNN_SEARCH_STORAGE=url,
    )
    wait_until_running([search], lambda: gate.held)
    assert f"dashboard: http://127.0.0.1:{port}" in search.stdout
    (study,) = json.loads(fetch(port, "/api/studies"))["study_summaries"]
    commands = processes()
    (served,) = (pid for pid in commands if f"rnn_search dashboard --port {port}" in commands[pid])
    assert not any(secret in command for command in commands.values())
    # While the page is open, the study is published by the process that serves it.
    fetch(port, f"/api/studies/{study['study_id']}")
    wait_until_running([search], lambda: is_published(url))
    with pytest.raises(DashboardError, match="another optuna-dashboard"):
        open_listener(port)
    search.send(signal.SIGKILL)
    assert search.wait() == -signal.SIGKILL
    wait_until(lambda: not psutil.pid_exists(served))
    open_listener(port).close()


def answers(port):
    try:
        return fetch(port, "/api/meta")
    except OSError:
        return False
