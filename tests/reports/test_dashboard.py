"""optuna-dashboard during a search and afterwards: note, figure and files of a study."""

import http.client
import json
import os
import re
import signal
import socket
import textwrap
import threading
import tomllib
import urllib.request
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
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

from reports import cli
from reports.dashboard import publish, server
from reports.dashboard.publish import SAMPLES_FILE, SEPARATOR, StudyPublisher
from reports.dashboard.server import (
    PublishOnView,
    open_listener,
    same_origin_only,
    serve_dashboard,
)
from reports.errors import DashboardError
from reports.findings import StudyFindings
from studies.artifacts import open_store
from studies.attributes import LOOKS, PUBLISHED, REPORT_CLAIM
from studies.config import StudyConfig
from studies.errors import ArtifactsError, StudiesError, StudyFormatError
from studies.storage.changes import rename_study, retry_trials
from studies.storage.open import load_study, open_storage

ESCAPED = r"a\|b \`\`\`"
MARKUP = "<script>alert(1)</script> *a* | b"


def change(url, function, name="made"):
    """Call a function with the storage and a study."""
    with closing(open_storage(url)) as storage:
        return function(storage, load_study(storage, name))


def attributes(url, name="made"):
    return change(url, lambda storage, s: storage.get_study_system_attrs(s._study_id), name)


def set_attribute(url, key, value):
    """Set a system attribute of the study."""
    change(url, lambda storage, s: storage.set_study_system_attr(s._study_id, key, value))


def note_of(url, name="made"):
    return change(url, lambda storage, study: get_note(study), name)


def publish_study(url, files=None, name="made"):
    store = open_store(files and str(files), url, "artifacts")
    change(url, lambda storage, _: StudyPublisher(storage, name, store).publish(), name)


def is_published(url):
    return query(url, f"SELECT 1 FROM study_system_attributes WHERE key = '{PUBLISHED}'")


def files_of(url, name="made"):
    """Return the listed files of a study, by their names in the artifact store."""
    values = [value for key, value in attributes(url, name).items() if key.startswith("artifacts:")]
    return {each["artifact_id"]: each["filename"] for each in map(json.loads, values)}


def read_files(url, folder):
    """Return the texts of the stored files, all of which are listed, by their names."""
    listed = files_of(url)
    assert {path.name for path in folder.iterdir()} == set(listed)
    return {name: (folder / key).read_text("utf-8") for key, name in listed.items()}


def assert_current(url, files=None, name="made"):
    """Check that publishing a study that has not changed renders nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "render_note", None)
        publish_study(url, files, name)


def ask(application, path):
    """Return what optuna-dashboard, as the WSGI application that it is, answers to a GET."""
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "after=0"}
    return json.loads(b"".join(application(environ, lambda *response: None)))


# ------------------------------------------------------------------ what is published


def test_plain_optuna_dashboard_shows_note_figure_and_files(sqlite_url):
    make_study(sqlite_url, finished=6)
    publish_study(sqlite_url)
    shown = ask(wsgi(sqlite_url), "/api/studies/1")
    body = shown["note"]["body"]
    assert "6 of 8" in body
    assert "\n| 5 | 0 | 1 | 0 | 0 | 2 |\n" in body
    assert "| 1 | 0 | &ensp;1×4 no gates, new state | 1.5000 |" in body
    assert "4 of 6" in body, "are below the threshold"
    assert "\n    rnn-search report made\n" in body
    written = StudyConfig.model_validate(
        tomllib.loads(textwrap.dedent(body.partition("### Config\n")[2]))
    )
    assert written == change(
        sqlite_url, lambda _, study: StudyConfig.model_validate(study.user_attrs["config"])
    )
    assert [each["id"] for each in shown["plotly_graph_objects"]] == ["effects"]
    assert "best-1-trial-0.py" in [each["filename"] for each in shown["artifacts"]]


def test_union_is_published_at_each_architectures_best(sqlite_url):
    make_union(sqlite_url)
    publish_study(sqlite_url, name="union")
    lines = note_of(sqlite_url, "union").splitlines()
    best = [line for line in lines if "MinGRU, norm true" in line]
    assert len(best) == len({line.partition(", learning")[0] for line in best}) > 1
    assert "best-1-trial-57.py" in files_of(sqlite_url, "union").values()


def test_study_is_published_again_only_after_a_change(sqlite_url, tmp_path):
    files = tmp_path / "files"
    make_study(sqlite_url, finished=6)
    publish_study(sqlite_url, files)
    before = attributes(sqlite_url)
    assert_current(sqlite_url, files)
    assert attributes(sqlite_url) == before
    finish_one(sqlite_url, 2.5)
    publish_study(sqlite_url, files)
    after = attributes(sqlite_url)
    assert "7 of 8 trials" in note_of(sqlite_url)
    # Otherwise a user who is editing the note could not save it.
    assert after["dashboard:note_ver"] == before["dashboard:note_ver"]
    assert max(len(str(value)) for value in after.values()) <= 2045


def test_study_extended_to_more_steps_is_published_again_with_its_files(sqlite_url, tmp_path):
    """All trials finish in the same order as before: numbers and file names are the same."""
    files = tmp_path / "files"
    make_study(sqlite_url, diverged=None)
    publish_study(sqlite_url, files)
    assert "\n100,1.500000," in read_files(sqlite_url, files)["best-curves.csv"]
    extend_steps(sqlite_url, 20_000, range(8))
    for number in range(8):
        finish_one(sqlite_url, 1.0 + number / 10)
    publish_study(sqlite_url, files)
    assert "1.0000 |" in note_of(sqlite_url)
    assert "\n100,1.000000," in read_files(sqlite_url, files)["best-curves.csv"]
    assert_current(sqlite_url, files)


def test_study_without_complete_trials_has_only_a_note(sqlite_url, tmp_path):
    files = tmp_path / "files"
    make_study(sqlite_url, finished=0)
    publish_study(sqlite_url, files)
    assert "0 of 8" in note_of(sqlite_url)
    assert_current(sqlite_url, files)
    assert not any("plot_data" in key for key in attributes(sqlite_url))
    assert files_of(sqlite_url) == {}
    assert not files.exists()


def test_new_files_replace_the_previous_ones(sqlite_url, tmp_path):
    files = tmp_path / "files"
    make_study(sqlite_url, finished=5)
    publish_study(sqlite_url, files)
    assert {"best-curves.csv", "best-1-trial-0.py"} <= read_files(sqlite_url, files).keys()
    best = finish_one(sqlite_url, 1.0)
    publish_study(sqlite_url, files)
    content = read_files(sqlite_url, files)
    compile(content[f"best-1-trial-{best}.py"], "best", "exec")
    header, _, second, *_ = content["best-curves.csv"].splitlines()
    assert header.startswith(f"step,trial {best},trial 0,")
    assert second.startswith("100,1.000000,1.500000,")


def test_samples_of_the_best_trials_are_one_file(sqlite_url, tmp_path):
    files, samples = tmp_path / "files", ("once <upon>\n a time", None, "there was")
    runs = [(gated_params(1 + i), 1.5 + i, {"sample": text}) for i, text in enumerate(samples)]
    make_runs(sqlite_url, "made", {"space": {"layers": [1, 2, 3], "state_size": [4]}}, runs)
    publish_study(sqlite_url, files)
    written = read_files(sqlite_url, files)[SAMPLES_FILE]
    assert written.startswith("1: trial 0, 1×4 no gates, new state, 1.5000 nats per byte\n")
    assert "once <upon>\n a time\n" in written
    assert written.endswith("there was\n")


def test_note_and_figure_are_published_without_a_place_for_files(sqlite_url, tmp_path):
    (tmp_path / "file").touch()
    nowhere = open_store(None, f"sqlite:///{tmp_path}/file/studies.db", "artifacts")
    make_study(sqlite_url, finished=7)
    for _ in range(2):
        with pytest.raises(ArtifactsError, match="cannot write"):
            change(sqlite_url, lambda s, _: StudyPublisher(s, "made", nowhere).publish())
    assert "7 of 8 trials" in note_of(sqlite_url)
    assert "dashboard:plot_data:effects:0" in attributes(sqlite_url)
    assert files_of(sqlite_url) == {}
    # The files are written as soon as the store works.
    publish_study(sqlite_url)
    assert len(files_of(sqlite_url)) == 6


def test_studies_of_other_programs_and_versions_are_left_alone(sqlite_url):
    make_study(sqlite_url)
    change(
        sqlite_url,
        lambda _, study: study.set_user_attr("config", study.user_attrs["config"] | {"novelty": 1}),
    )
    optuna.create_study(study_name="foreign", storage=sqlite_url)
    with pytest.raises(StudiesError, match=r"invalid attribute config\.novelty"):
        publish_study(sqlite_url)
    with pytest.raises(StudyFormatError, match="has no schema version"):
        publish_study(sqlite_url, name="foreign")
    assert note_of(sqlite_url) == ""
    assert attributes(sqlite_url, "foreign") == {}


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


# ------------------------------------------------------------------ the note is the user's as well

EDITS = {
    "above": lambda body: f"My text\n\n{body}",
    "below": lambda body: f"{body}\n\nMy text",
    "within": lambda body: body.replace("5 of 8", "My text, 5 of 8"),
    "replaces all": lambda body: "My text",
    "line edited": lambda body: body.replace(SEPARATOR, f"My text\n{SEPARATOR[:-9]}"),
    "line removed": lambda body: body.replace(SEPARATOR, "") + "\n\nMy text",
}


@pytest.mark.parametrize("edit", EDITS)
def test_text_of_a_user_is_kept(sqlite_url, edit):
    make_study(sqlite_url, finished=5)
    publish_study(sqlite_url)
    change(sqlite_url, lambda _, study: save_note(study, EDITS[edit](get_note(study))))
    # What the version before has stored of a publication.
    earlier = {"format": 6, "counts": {}, "note": attributes(sqlite_url)[PUBLISHED]["note"]}
    for value, published in ((1.9, earlier), (1.95, None)):
        if published:
            set_attribute(sqlite_url, PUBLISHED, earlier)
        finish_one(sqlite_url, value)
        publish_study(sqlite_url)
    above, _, below = note_of(sqlite_url).partition(SEPARATOR)
    assert "My text" in above
    assert above.count("trials are finished") == (edit == "within")
    assert "My text" not in below
    assert "\n7 of 8 trials" in below


def delete_file(url):
    """Delete a file as the dashboard does."""
    key = next(each for each in attributes(url) if each.startswith("artifacts:"))
    set_attribute(url, key, json.dumps(None))


CHANGES = {
    "note removed": lambda url: change(url, lambda _, study: save_note(study, "")),
    "line removed": lambda url: change(
        url, lambda _, study: save_note(study, get_note(study).replace(SEPARATOR, ""))
    ),
    "renamed": lambda url: change(url, lambda storage, _: rename_study(storage, "made", "other")),
    "file deleted": delete_file,
}


@pytest.mark.parametrize("edit", CHANGES)
def test_finished_study_is_published_again_after_a_change(sqlite_url, edit):
    make_study(sqlite_url)
    publish_study(sqlite_url)
    files = files_of(sqlite_url)
    CHANGES[edit](sqlite_url)
    name = "other" if edit == "renamed" else "made"
    publish_study(sqlite_url, name=name)
    body = note_of(sqlite_url, name)
    assert body.startswith(f"{SEPARATOR}\n\n## {name}\n\n8 of 8 trials")
    assert body.count("\n## ") == 1
    assert files_of(sqlite_url, name) == files


def test_markup_in_names_is_escaped(sqlite_url):
    make_study(sqlite_url, MARKUP, question="a|b\n```")
    publish_study(sqlite_url, name=MARKUP)
    body = note_of(sqlite_url, MARKUP)
    assert f"\n## {ESCAPED}\n" in body
    # Code is indented, so that no fence in it can end it.
    marked = [line for line in body.splitlines() if "<script>" in line or "```" in line]
    assert marked
    assert all(line.startswith("    ") for line in marked)
    results = results_of(sqlite_url, MARKUP)
    names = "a|b\n```" + results.table["architecture"]
    results = replace(results, table=results.table.assign(architecture=names))
    assert f"&ensp;{ESCAPED}1×4 no gates, new state | 1.5000" in publish.render_note(
        StudyFindings(results)
    )


def finished_and_intact(url):
    """Check that the publication is of one state; return its number of complete trials."""
    found = query(url, "SELECT key, value_json FROM study_system_attributes")
    found = {key: json.loads(value) for key, value in found}
    body = "".join(value for key, value in sorted(found.items()) if "note_str" in key)
    assert publish.is_intact(body, found[PUBLISHED]["note"])
    return int(re.search(r"(\d+) of 8 trials", body)[1])


@EACH_DATABASE
def test_publication_is_one_transaction(url, tmp_path):
    """A reader between any two statements sees either the old or the new publication."""
    files, seen = tmp_path / "files", []
    make_study(url, finished=1)
    change(url, lambda _, study: save_note(study, "A user's text. " * 200))
    publish_study(url, files)
    finish_one(url, 1.3)

    def inspect(*statement):
        seen.append(finished_and_intact(url))

    event.listen(Engine, "after_cursor_execute", inspect)
    try:
        publish_study(url, files)
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
    store, newer = open_store(str(files), url, "artifacts"), []

    def write_late(*file):
        if not newer:
            best = finish_one(url, 1.3)
            publish_study(url, files)
            newer.extend([attributes(url), read_files(url, files)])
            assert f"best-1-trial-{best}.py" in newer[1]
        store.write(*file)

    slow = SimpleNamespace(write=write_late)
    change(url, lambda storage, _: StudyPublisher(storage, "made", slow).publish())
    assert [attributes(url), read_files(url, files)] == newer
    assert finished_and_intact(url) == 2


# ------------------------------------------------------------------ the end of a search


def test_end_of_a_search_writes_the_report_and_publishes(sqlite_url, monkeypatch):
    make_study(sqlite_url)
    reported = []
    monkeypatch.setattr(cli, "write_final_report", lambda *study: reported.append(study))
    cli.finalize_search(sqlite_url, "made", None, 8, False)
    assert reported == [(sqlite_url, "made")]
    assert "8 of 8 trials" in note_of(sqlite_url)


@EACH_DATABASE
def test_one_of_the_processes_that_see_a_search_end_writes_the_report(url, monkeypatch, capsys):
    make_study(url)
    monkeypatch.setattr(cli, "write_final_report", lambda *_: print("written"))
    monkeypatch.setattr(StudyPublisher, "publish", lambda _: None)

    def end_on(host, was_finished=False):
        monkeypatch.setattr(socket, "gethostname", lambda: host)
        cli.finalize_search(url, "made", None, 8, was_finished)
        return capsys.readouterr().out

    def retry(storage, study):
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
    for reach_state in (
        lambda: change(url, retry),
        lambda: change(url, lambda _, study: study.set_user_attr(LOOKS, [{}])),
        lambda: set_attribute(url, REPORT_CLAIM, earlier),
    ):
        assert end_on("two") == leaves_it
        reach_state()
        assert end_on("two") == "written\n"
        assert end_on("one") == leaves_it.replace("one", "two")
        set_attribute(url, REPORT_CLAIM, {})
        assert end_on("one") == "written\n"


def test_failure_at_the_end_of_a_search_is_printed_and_a_bug_has_its_traceback(
    sqlite_url, monkeypatch, capsys
):
    make_study(sqlite_url)

    def fail(*arguments):
        raise error

    error: Exception = OSError("disk full")
    for place in ("page.page.write_report", "dashboard.publish.StudyPublisher.publish"):
        monkeypatch.setattr(f"reports.{place}", fail)
    cli.finalize_search(sqlite_url, "made", None, 8, False)
    assert capsys.readouterr() == (
        "no report: disk full\n",
        "warning: cannot update the dashboard: disk full\n",
    )
    error = KeyError("a defect")
    cli.finalize_search(sqlite_url, "made", None, 8, False)
    printed = capsys.readouterr()
    assert printed.out == "no report: 'a defect'\n"
    assert printed.err.count("Traceback (most recent call last):") == 2
    assert printed.err.count("\nwarning: bug in rnn-search (KeyError: 'a defect'): please ") == 2
    error = OSError("disk full")
    monkeypatch.setattr(cli, "_claim_report", fail)
    cli.finalize_search(sqlite_url, "made", None, 8, False)
    assert capsys.readouterr() == ("no report: disk full\n", "")


# ------------------------------------------------------------------ publication of what is viewed


def request(application, path):
    return application({"PATH_INFO": path}, lambda *response: None)


@pytest.fixture
def viewed(sqlite_url):
    """Middleware over one study."""
    make_study(sqlite_url)
    store = open_store(None, sqlite_url, "artifacts")
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
        calls.append(publisher.key)
        started.set()
        finish.wait(HANG_TIMEOUT)

    monkeypatch.setattr(StudyPublisher, "publish", publish_slowly)
    request(viewed, "/api/studies/1")
    assert started.wait(HANG_TIMEOUT)
    assert request(viewed, "/api/studies/1") == [b"answer"]
    finish.set()
    wait_until(lambda: viewed._due)
    request(viewed, "/api/studies/1")
    assert calls == [(1, "made")]
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


# ------------------------------------------------------------------ the server

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
    ):
        status, headers = send(port, "GET", path, **sent)
        assert status == expected
        assert headers.get_all("X-Frame-Options") == ["DENY"], status
        assert "frame-ancestors 'none'" in headers.get_all("Content-Security-Policy"), status


def test_port_in_use_is_reported_and_the_search_continues(sqlite_url, capsys, invoke):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        reason = f"port {port} cannot be used (Address already in use); choose another --port\n"
        with serve_dashboard(sqlite_url, None, port):
            assert capsys.readouterr().out == f"no dashboard: {reason}"
        ended = invoke("dashboard", "--port", str(port), "--storage", sqlite_url)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"error: {reason}")
    assert not Path(sqlite_url.removeprefix("sqlite:///")).exists()


def test_search_continues_without_a_dashboard_that_cannot_start(monkeypatch, capsys):
    monkeypatch.setattr("sys.executable", "/no/python")
    with serve_dashboard("sqlite:///x.db", None, free_port()):
        (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("no dashboard: ")
    assert line.endswith("'/no/python'")


def test_server_has_stopped_when_the_search_ends(sqlite_url):
    port = free_port()
    in_use = pytest.raises(DashboardError, match=f"port {port}")
    with serve_dashboard(sqlite_url, None, port), in_use:
        open_listener(port)
    open_listener(port).close()


def fetch(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=HANG_TIMEOUT) as response:
        return response.read()


def processes():
    found = psutil.process_iter(["cmdline"])
    return {each.pid: " ".join(each.info["cmdline"] or ()) for each in found}


@pytest.mark.extended
def test_dashboard_ends_with_a_killed_search(runner, text, tmp_path, postgresql_url):
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
    with pytest.raises(DashboardError, match="in use"):
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
