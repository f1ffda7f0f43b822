"""optuna-dashboard during a search and afterwards: note, figure and files of a study."""

import http.client
import json
import re
import signal
import socket
import textwrap
import threading
import tomllib
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import psutil
import pytest
from factories import extend_steps, finish_one, gated_params, make_runs, make_study, make_union
from helpers import EACH_DATABASE, QUICK
from hooks import HANG_TIMEOUT, Gate, Hooks
from optuna_dashboard import get_note, save_note, wsgi
from process_runner import SETTINGS, query, wait_until, wait_until_running
from services import free_port
from sqlalchemy import Engine, event

from reports.dashboard import publish, server
from reports.dashboard.publish import SEPARATOR, StudyPublisher
from reports.dashboard.server import PublishOnView, open_listener, same_origin_only
from reports.errors import DashboardError
from rnn_search.api import serve_dashboard
from studies.artifacts import open_store
from studies.attributes import PUBLISHED
from studies.config import StudyConfig
from studies.errors import ArtifactsError
from studies.storage.changes import rename_study
from studies.storage.open import load_study, open_storage


class Shown:
    """A stored study, and what optuna-dashboard shows of it."""

    def __init__(self, url, folder, name):
        self.storage, self.folder = open_storage(url), folder
        self.study = load_study(self.storage, name)
        self.store = open_store(str(folder), url, "artifacts")

    def publish(self, store=None):
        StudyPublisher(self.storage, self.study.study_name, store or self.store).publish()

    @property
    def attributes(self):
        return self.storage.get_study_system_attrs(self.study._study_id)

    def set(self, key, value):
        self.storage.set_study_system_attr(self.study._study_id, key, value)

    @property
    def note(self):
        return get_note(self.study)

    @note.setter
    def note(self, body):
        save_note(self.study, body)

    @property
    def files(self):
        """Texts of the files by their names; all that are stored are listed."""
        found = [each for key, each in self.attributes.items() if key.startswith("artifacts:")]
        names = {each["artifact_id"]: each["filename"] for each in map(json.loads, found)}
        paths = list(self.folder.iterdir()) if self.folder.exists() else []
        assert {path.name for path in paths} == set(names)
        return {names[path.name]: path.read_text("utf-8") for path in paths}

    def assert_current(self):
        """Check that publishing a study that has not changed renders and writes nothing."""
        before = self.attributes
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publish, "render_note", None)
            self.publish()
        assert self.attributes == before


@pytest.fixture
def show(tmp_path):
    """Function that opens a stored study."""
    with ExitStack() as stack:

        def open_shown(url, name="made"):
            shown = Shown(url, tmp_path / "files", name)
            stack.callback(shown.storage.close)
            return shown

        yield open_shown


# ------------------------------------------------------------------ what is published


def test_plain_optuna_dashboard_shows_note_figure_and_files(sqlite_url, show):
    make_study(sqlite_url, finished=6)
    made = show(sqlite_url)
    made.publish()
    request = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies/1", "QUERY_STRING": "after=0"}
    answer = json.loads(b"".join(wsgi(sqlite_url)(request, lambda *response: None)))
    body = answer["note"]["body"]
    for part in (
        "6 of 8",
        "\n| 5 | 0 | 1 | 0 | 0 | 2 |\n",
        "| 1 | 0 | &ensp;1×4 no gates, new state | 1.5000 |",
        "4 of 6",  # trials below the threshold
        "\n    rnn-search report made\n",
    ):
        assert part in body
    written = tomllib.loads(textwrap.dedent(body.partition("### Config\n")[2]))
    stored = made.study.user_attrs["config"]
    assert StudyConfig.model_validate(written) == StudyConfig.model_validate(stored)
    assert [each["id"] for each in answer["plotly_graph_objects"]] == ["effects"]
    assert "best-1-trial-0.py" in [each["filename"] for each in answer["artifacts"]]


def test_study_is_published_again_only_after_a_change_such_as_an_extension(sqlite_url, show):
    make_study(sqlite_url, finished=0)
    made = show(sqlite_url)
    made.publish()
    assert "0 of 8" in made.note
    assert not any("plot_data" in key for key in made.attributes)
    assert made.files == {}
    finish_one(sqlite_url, 1.5)
    made.publish()
    before = made.attributes
    assert {"best-curves.csv", "best-1-trial-0.py"} == made.files.keys()
    made.assert_current()
    best = finish_one(sqlite_url, 1.0)
    made.publish()
    assert "2 of 8 trials" in made.note
    # Otherwise a user who is editing the note could not save it.
    assert made.attributes["dashboard:note_ver"] == before["dashboard:note_ver"]
    assert max(len(str(value)) for value in made.attributes.values()) <= 2045
    compile(made.files[f"best-1-trial-{best}.py"], "best", "exec")
    curves = made.files["best-curves.csv"].splitlines()
    assert curves[0] == f"step,trial {best},trial 0"
    assert curves[2] == "100,1.000000,1.500000"
    # All trials finish again, in the same order: numbers and file names stay the same.
    for _ in range(6):
        finish_one(sqlite_url, 1.6)
    made.publish()
    names = made.files.keys()
    extend_steps(sqlite_url, 20_000, range(8))
    for number in range(8):
        finish_one(sqlite_url, 0.8 + 0.1 * (number != best))
    made.publish()
    assert "0.8000 |" in made.note
    assert "\n100,0.800000," in made.files["best-curves.csv"]
    assert made.files.keys() == names
    made.assert_current()


# ------------------------------------------------------------------ the note

EDITS = [
    lambda body: "text 0",
    lambda body: f"text 1\n\n{body}",
    lambda body: f"{body}\n\ntext 2",
    lambda body: body.replace(SEPARATOR, f"text 3\n{SEPARATOR[:-9]}"),
    lambda body: body.replace(SEPARATOR, "") + "\n\ntext 4",
    lambda body: body.replace("of 8 trials", "of 8 trials (text 5)"),
]
"""Each edits the note: everywhere, above and below the line, the line, and the generated text."""


def test_text_of_a_user_is_kept(sqlite_url, show):
    make_study(sqlite_url, finished=1)
    made = show(sqlite_url)
    made.publish()
    for number, edit in enumerate(EDITS):
        made.note = edit(made.note)
        # What the version before has stored of a publication.
        made.set(PUBLISHED, {"format": 6, "note": made.attributes[PUBLISHED]["note"]})
        finish_one(sqlite_url, 1.9)
        made.publish()
        above, _, below = made.note.partition(SEPARATOR)
        assert {f"text {n}" for n in range(number + 1)} == set(re.findall(r"text \d", above))
        assert not re.search(r"text \d", below)
        assert f"\n{number + 2} of 8 trials" in below


def test_finished_study_is_published_again_after_a_change(sqlite_url, show, tmp_path):
    make_union(sqlite_url, "made")
    made = show(sqlite_url)
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactsError, match="cannot write"):
        made.publish(open_store(None, f"sqlite:///{tmp_path}/file/x.db", "artifacts"))
    assert "63 of 63 trials" in made.note
    assert "dashboard:plot_data:effects:0" in made.attributes
    assert made.files == {}
    # The files are written as soon as the store works.
    made.publish()
    body, files = made.note, made.files
    assert body.startswith(f"{SEPARATOR}\n\n## made\n\n63 of 63 trials")
    best = re.findall(r"&ensp;(.*), learning", body)
    assert len(best) == len(set(best)) == 5, "each architecture at its best rate"
    assert "best-1-trial-57.py" in files
    for edited in ("", body.replace(SEPARATOR, ""), body):
        made.note = edited
        # As the dashboard deletes a file.
        made.set(next(key for key in made.attributes if key.startswith("artifacts:")), "null")
        made.publish()
        assert (made.note, made.files) == (body, files), edited
    rename_study(made.storage, "made", "other")
    other = show(sqlite_url, "other")
    other.publish()
    renamed = body.replace("## made\n", "## other\n").replace("report made", "report other")
    assert (other.note, other.files) == (renamed, files)


def test_samples_are_one_file_and_markup_in_names_is_escaped(sqlite_url, show):
    name, escaped = "<script>alert(1)</script> *a* | b", r"a\|b \`\`\`"
    samples = ("once <upon>\n a time", None, "there was")
    runs = [(gated_params(1 + i), 1.5 + i, {"sample": text}) for i, text in enumerate(samples)]
    raw = {"space": {"layers": [1, 2, 3], "state_size": [4]}, "question": "a|b\n```"}
    make_runs(sqlite_url, name, raw, runs)
    made = show(sqlite_url, name)
    made.publish()
    written = made.files["best-samples.txt"]
    assert written.startswith("1: trial 0, 1×4 no gates, new state, 1.5000 nats per byte\n")
    assert "once <upon>\n a time\n" in written
    assert written.endswith("there was\n")
    assert f"\n## {escaped}\n" in made.note
    # Code is indented, so that nothing in it can end it.
    marked = [line for line in made.note.splitlines() if "<script>" in line or "```" in line]
    assert marked
    assert all(line.startswith("    ") for line in marked)


# ------------------------------------------------------------------ several processes


def finished_and_intact(url):
    """Check that the publication is of one state; return its number of complete trials."""
    found = query(url, "SELECT key, value_json FROM study_system_attributes")
    found = {key: json.loads(value) for key, value in found}
    body = "".join(value for key, value in sorted(found.items()) if "note_str" in key)
    generated = body.partition(f"{SEPARATOR}\n\n")[2]
    assert publish.fingerprint(generated) == found[PUBLISHED]["note"]
    return int(re.search(r"(\d+) of 8 trials", body)[1])


@EACH_DATABASE
def test_publication_is_one_transaction_and_gives_way_to_a_newer_one(url, show):
    """Another process finishes a trial and publishes before this slow one writes its files.

    A reader between any two statements sees either the old or the new publication.
    """
    make_study(url, finished=1)
    made, seen, newer = show(url), [], []
    made.note = "A user's text. " * 200
    made.publish()
    finish_one(url, 1.4)

    def inspect(*statement):
        seen.append(finished_and_intact(url))

    def write_late(*file):
        if not newer:
            best = finish_one(url, 1.3)
            made.publish()
            newer.extend([made.attributes, made.files])
            assert f"best-1-trial-{best}.py" in made.files
        made.store.write(*file)

    event.listen(Engine, "after_cursor_execute", inspect)
    try:
        made.publish(SimpleNamespace(write=write_late))
    finally:
        event.remove(Engine, "after_cursor_execute", inspect)
    assert [made.attributes, made.files] == newer
    assert seen == sorted(seen)
    assert {*seen} == {1, 3}


# ------------------------------------------------------------------ publication of what is viewed


@pytest.fixture
def viewed(sqlite_url, show):
    """Middleware over one study."""
    make_study(sqlite_url)
    made = show(sqlite_url)
    return PublishOnView(lambda environ, start: [b"answer"], made.storage, made.store)


def view(middleware, path="/api/studies/1"):
    assert middleware({"PATH_INFO": path}, lambda *response: None) == [b"answer"]


def is_published(url):
    return query(url, f"SELECT 1 FROM study_system_attributes WHERE key = '{PUBLISHED}'")


def test_viewed_study_is_published_in_the_background_once_per_interval(
    viewed, show, sqlite_url, monkeypatch
):
    calls, started, finish = [], threading.Event(), threading.Event()
    publish_now = StudyPublisher.publish

    def publish_slowly(publisher):
        calls.append(publisher.key)
        started.set()
        finish.wait(HANG_TIMEOUT)
        publish_now(publisher)

    monkeypatch.setattr(StudyPublisher, "publish", publish_slowly)
    for path in ("/", "/api/studies", "/dashboard/studies/1", "/api/trials/1"):
        view(viewed, path)
    assert not viewed._publishing.locked()
    view(viewed)
    assert started.wait(HANG_TIMEOUT)
    view(viewed)
    finish.set()
    wait_until(lambda: not viewed._publishing.locked())
    assert "8 of 8 trials" in show(sqlite_url).note
    view(viewed)
    wait_until(lambda: not viewed._publishing.locked())
    assert calls == [(1, "made")]
    viewed._due.clear()
    view(viewed, "/api/studies/1/param_importances")
    wait_until(lambda: len(calls) == 2)


def test_failed_publication_of_a_viewed_study_is_warned_of_once(viewed, monkeypatch, capsys):
    monkeypatch.setattr(server, "PUBLISH_INTERVAL_SECONDS", 0)
    attempts = []

    def fail(publisher):
        attempts.append(publisher)
        raise KeyError("a defect")

    monkeypatch.setattr(StudyPublisher, "publish", fail)
    for n in (1, 2, 3):
        view(viewed)
        wait_until(lambda n=n: len(attempts) == n and not viewed._publishing.locked())
    printed = capsys.readouterr().err
    assert printed.startswith("warning: cannot publish a study: 'a defect'\nTraceback (")
    assert printed.count("Traceback (") == printed.count("bug in rnn-search (KeyError:") == 1


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
    # While the page is open, the study is published by the process that serves it.
    send(port, "GET", f"/api/studies/{study['study_id']}")
    wait_until_running([search], lambda: is_published(url))
    search.send(signal.SIGKILL)
    assert search.wait() == -signal.SIGKILL
    wait_until(lambda: not psutil.pid_exists(served))
    open_listener(port).close()
