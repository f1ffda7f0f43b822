"""optuna-dashboard during a search and afterwards: whom it answers, and when it ends."""

import http.client
import io
import json
import signal
import socket
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from factories import make_study
from helpers import QUICK
from hooks import HANG_TIMEOUT, Gate, Hooks
from process_runner import SETTINGS, query, wait_until, wait_until_running
from services import free_port

from reports.dashboard import DashboardFiles, open_listener, same_origin_only
from rnn.errors import UserError
from rnn_search.api import serve_dashboard
from studies.artifacts import ArtifactFolders

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
    "another local name": {"ORIGIN": "http://localhost"},
    "page without an origin": {"ORIGIN": "null"},
    "form": LINK,
    "rebound name": {"HOST": "rebound.example", "ORIGIN": "http://rebound.example"},
    "longer name": {"HOST": "127.0.0.1.example"},
    "no host": {"HOST": ""},
} | {place: LINK | {"SEC_FETCH_DEST": place} for place in ("iframe", "frame", "embed", "object")}


def test_dashboard_cannot_reach_the_files_of_trials(tmp_path):
    """All kinds of files may share a folder, and a database may list any name as an artifact."""
    folders = ArtifactFolders(str(tmp_path), "sqlite:///none.db")
    weights = folders.trial_files("s-1", "safetensors")
    weights.write(1, b"weights")
    files = DashboardFiles(folders.root("artifacts"))
    for act in (files.open_reader, files.remove):
        with pytest.raises(UserError, match="is not the name of a file of the dashboard"):
            act("s-1/trial-1.safetensors")
    name = "8f14e45f-ceea-467f-a34d-0d1f2c3b4a59"
    files.write(name, io.BytesIO(b"file"))
    with files.open_reader(name) as file:
        assert file.read() == b"file"
    files.remove(name)
    assert not (tmp_path / name).exists()
    assert weights.read(1) == b"weights"


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
    in_use = pytest.raises(UserError, match=f"port {port}")
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
