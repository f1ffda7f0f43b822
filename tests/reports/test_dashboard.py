"""optuna-dashboard during a search and afterwards, and the note of a study that it shows."""

import http.client
import io
import json
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from factories import finish_one, make_study
from helpers import EACH_DATABASE, QUICK, join_study
from hooks import HANG_TIMEOUT, Gate, Hooks
from optuna_dashboard import get_note, save_note, wsgi
from process_runner import SETTINGS, query, wait_until, wait_until_running
from services import free_port

from reports.cli import write_final_report
from reports.dashboard import open_listener, same_origin_only
from reports.errors import DashboardError
from rnn_search import export_study, import_results, import_study
from rnn_search.api import serve_dashboard
from studies.note import update_note
from studies.storage.open import load_study, open_storage, read_storage

# ------------------------------------------------------------------ the note


def read_note(url, name="made"):
    with closing(read_storage(url)) as storage:
        return get_note(load_study(storage, name))


def make_report(url, capsys):
    """Write the report of a finished search; return its path and the lines of its answer."""
    capsys.readouterr()
    write_final_report(url, "made")
    first, *answer = capsys.readouterr().out.splitlines()
    return first.removeprefix("report: "), answer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@EACH_DATABASE
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


def test_refinement_and_imported_studies_have_a_note(sqlite_url, folder):
    join_study(QUICK, sqlite_url, corpus="stdlib").storage.close()
    finish_one(sqlite_url, 1.0, name="quick")
    derived = ("refinement.source='quick'", "refinement.top=1")
    join_study("stage-two", sqlite_url, derived, partial=True).storage.close()
    Path("table.csv").write_text("depth,value\n1,2.0\n2,1.5\n")
    import_results("table.csv", storage=sqlite_url)
    export_study("quick", "quick.jsonl", storage=sqlite_url)
    import_study("quick.jsonl", name="again", storage=sqlite_url)
    for name in ("stage-two", "table", "again"):
        assert read_note(sqlite_url, name).endswith(f"    {folder}/reports/out/{name}.html")
    assert "    rnn-search refine stage-two --set" in read_note(sqlite_url, "stage-two")


@EACH_DATABASE
@pytest.mark.usefixtures("without_optuna_figures")
def test_note_has_the_answer_of_each_final_report_until_a_user_edits_it(url, folder, capsys):
    make_study(url, finished=6)
    path, answer = make_report(url, capsys)
    note = read_note(url)
    assert answer
    assert note.startswith("## made\n\n- best: 1×4 no gates, new state")
    assert note.count("\n- ") == len(answer)
    assert note.endswith(f"The report:\n\n    {path}")
    finish_one(url, 1.0)
    make_report(url, capsys)
    assert "1.0000" in read_note(url)
    with closing(open_storage(url)) as storage:
        study = load_study(storage, "made")
        update_note(storage, study._study_id, "long " * 1000)
        assert get_note(study) == "long " * 1000
        update_note(storage, study._study_id, "short")
        assert get_note(study) == "short"
        save_note(study, "A user's text.")
        update_note(storage, study._study_id, "short")
        assert get_note(study) == "A user's text."


def test_note_that_a_user_writes_first_is_kept(sqlite_url):
    make_study(sqlite_url)
    with closing(open_storage(sqlite_url)) as storage:
        study = load_study(storage, "made")
        save_note(study, "A user's text.")
        update_note(storage, study._study_id, "another text")
        assert get_note(study) == "A user's text."


@pytest.mark.usefixtures("without_optuna_figures")
def test_text_that_a_user_writes_in_the_dashboard_is_kept(sqlite_url, folder, capsys):
    make_study(sqlite_url)
    make_report(sqlite_url, capsys)
    application = wsgi(sqlite_url)

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

    note = json.loads(request("GET", "/api/studies/1"))["note"]
    assert note["body"] == read_note(sqlite_url)
    edited = f"{note['body']}\n\nA user's text."
    request("PUT", "/api/studies/1/note", body=edited, version=note["version"] + 1)
    make_report(sqlite_url, capsys)
    assert read_note(sqlite_url) == edited
    # A dashboard that renames a study stores a new one, with its note as of the first version.
    request("POST", "/api/studies/1/rename", study_name="made")
    request("POST", "/api/studies/1/rename", study_name="renamed")
    write_final_report(sqlite_url, "renamed")
    assert read_note(sqlite_url, "renamed") == edited


def test_note_is_written_without_importing_the_dashboard():
    code = "import rnn_search.cli, studies.note, sys; print('optuna_dashboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ------------------------------------------------------------------ the server

LOCAL, OTHER = "127.0.0.1:8080", "http://elsewhere.example"
LINK = {"SEC_FETCH_SITE": "cross-site", "SEC_FETCH_MODE": "navigate"}

ANSWERED = {
    "plain client": {},
    "own page": {"ORIGIN": f"http://{LOCAL}", "SEC_FETCH_SITE": "same-origin"},
    "tunnel": {"HOST": "localhost:9000", "ORIGIN": "http://localhost:9000"},
    "IPv6": {"HOST": "[::1]:8080", "ORIGIN": "http://[::1]:8080"},
    "address bar": {"SEC_FETCH_SITE": "none"},
}

REFUSED = {
    "script of another site": {"ORIGIN": OTHER, "SEC_FETCH_SITE": "cross-site"},
    "script of another port": {"SEC_FETCH_SITE": "same-site", "SEC_FETCH_MODE": "cors"},
    "another port": {"ORIGIN": "http://127.0.0.1:1"},
    "no port": {"ORIGIN": "http://127.0.0.1"},
    "another local name": {"ORIGIN": "http://localhost"},
    "page without an origin": {"ORIGIN": "null"},
    "form": LINK,
    "rebound name": {"HOST": "rebound.example", "ORIGIN": "http://rebound.example"},
    "longer name": {"HOST": "127.0.0.1.example"},
    "no address": {"HOST": "[::1"},
    "no host": {"HOST": ""},
} | {place: LINK | {"SEC_FETCH_DEST": place} for place in ("iframe", "frame", "embed", "object")}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_only_the_own_page_and_plain_clients_at_a_local_name_are_answered(method):
    def answer(headers):
        given = {"HOST": LOCAL} | headers
        environ = {f"HTTP_{name}": value for name, value in given.items()}
        statuses = []
        application = same_origin_only(lambda environ, start: start("200 OK", []) or [])
        application({"REQUEST_METHOD": method} | environ, lambda line, _: statuses.append(line[:3]))
        return statuses

    for kind, headers in ANSWERED.items():
        assert answer(headers) == ["200"], kind
    for kind, headers in REFUSED.items():
        assert answer(headers) == ["403"], kind
    assert answer(LINK | {"SEC_FETCH_DEST": "document"}) == ["200" if method == "GET" else "403"]


def send(port, method, path, **headers):
    """Send a request to the dashboard; return its status, headers and content."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_TIMEOUT)) as client:
        client.request(method, path, headers=headers)
        response = client.getresponse()
        return response.status, response.headers, response.read()


def answers(port):
    try:
        return send(port, "GET", "/api/meta")[0] == 200
    except OSError:
        return False


def test_server_deletes_for_its_own_page_is_shown_in_no_frame_and_ends_silently(runner, sqlite_url):
    make_study(sqlite_url)
    port = free_port()
    process = runner.start("dashboard", "--port", str(port), "--storage", sqlite_url)
    wait_until_running([process], lambda: answers(port))
    for method, path, sent, expected in (
        ("GET", "/", {}, 302),
        ("GET", "/dashboard", {}, 200),
        ("GET", "/absent", {}, 404),
        ("GET", "/dashboard", {"Host": "rebound.example"}, 403),
        ("DELETE", "/api/studies/1", {"Origin": OTHER}, 403),
    ):
        status, headers, _ = send(port, method, path, **sent)
        assert status == expected
        assert headers.get_all("X-Frame-Options") == ["DENY"], status
        assert "frame-ancestors 'none'" in headers.get_all("Content-Security-Policy"), status
    assert query(sqlite_url, "SELECT study_name FROM studies") == [("made",)]
    own = f"http://127.0.0.1:{port}"
    assert send(port, "DELETE", "/api/studies/1", Origin=own)[0] == 204
    assert query(sqlite_url, "SELECT study_name FROM studies") == []
    process.send(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert process.output == f"dashboard: {own} (stop with Ctrl-C)\n"


def test_dashboard_is_served_as_long_as_the_search_runs(sqlite_url, monkeypatch, capsys, invoke):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        reason = f"port {port} cannot be used (Address already in use); choose another --port\n"
        with serve_dashboard(sqlite_url, None, port):
            assert capsys.readouterr().out == f"no dashboard: {reason}"
        ended = invoke("dashboard", "--port", str(port), "--storage", sqlite_url)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"error: {reason}")
    assert not Path(sqlite_url.removeprefix("sqlite:///")).exists()
    monkeypatch.setattr("sys.executable", "/no/python")
    with serve_dashboard(sqlite_url, None, free_port()):
        (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("no dashboard: ")
    assert line.endswith("'/no/python'")
    monkeypatch.undo()
    port = free_port()
    in_use = pytest.raises(DashboardError, match=f"port {port}")
    with serve_dashboard(sqlite_url, None, port), in_use:
        open_listener(port)
    assert capsys.readouterr().out == f"dashboard: http://127.0.0.1:{port}\n"
    open_listener(port).close()


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
    (study,) = json.loads(send(port, "GET", "/api/studies")[2])["study_summaries"]
    commands = processes()
    (served,) = (pid for pid in commands if f"rnn_search dashboard --port {port}" in commands[pid])
    assert not any(secret in command for command in commands.values())
    answer = send(port, "GET", f"/api/studies/{study['study_id']}")[2]
    assert json.loads(answer)["note"]["body"].startswith("## ")
    search.send(signal.SIGKILL)
    assert search.wait() == -signal.SIGKILL
    wait_until(lambda: not psutil.pid_exists(served))
    open_listener(port).close()
