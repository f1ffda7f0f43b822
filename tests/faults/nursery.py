"""Starts searches at the cost of a fork: what they import is imported once.

A process of this file reads requests from its standard input, a JSON object a line, and answers
with the process that it started; when one of them ends, it says how. What runs in each of them is
``run_search.py``, as it would in a terminal.
"""

import json
import os
import queue
import runpy
import select
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Searcher:
    """A process that searches."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self.code: int | None = None
        self.ended = threading.Event()

    def send(self, number: int) -> None:
        """Send a signal, if there is still somebody to receive it."""
        if not self.ended.is_set():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def wait(self, seconds: float = 60) -> int:
        """Return the exit code, negative for a signal."""
        assert self.ended.wait(seconds), f"it still runs:\n{self.output}"
        assert self.code is not None
        return self.code

    @property
    def output(self) -> str:
        """What it has said, on both of its outputs."""
        if not self.log.exists():  # it has hardly begun
            return ""
        return self.log.read_text(encoding="utf-8", errors="replace")


class Nursery:
    """A context in which searches are started quickly."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: queue.Queue[int] = queue.Queue()
        self._searchers: dict[int, Searcher] = {}
        self._count = 0

    def __enter__(self) -> "Nursery":
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Threads that a parent has begun do not live on in a child.
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for searcher in self._searchers.values():
            searcher.send(signal.SIGKILL)
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)

    def start(self, *words: str, **environment: str) -> Searcher:
        """Start ``run_search.py`` with these words."""
        self._count += 1
        log = self._folder / f"searcher-{self._count}.log"
        request = {"words": words, "log": str(log), "environment": environment}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._searchers[self._started.get(timeout=60)]

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            message = json.loads(line)
            if "log" in message:
                pid = message["pid"]
                self._searchers[pid] = Searcher(pid, Path(message["log"]))
                self._started.put(pid)
            else:
                searcher = self._searchers[message["pid"]]
                searcher.code = message["code"]
                searcher.ended.set()


def until(condition, seconds: float = 60):
    """Wait for something to be so, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found


SETTINGS = {
    "evaluation.lanes": 2,
    "evaluation.lane_length": 8,
    "training.batch_size": 4,
    "training.sequence_length": 32,
}
"""Of networks that are trained in a second or so."""


def searching(nursery, url, text):
    """Return what starts a search on a small study; settings as ``training_steps=1000``."""

    def start(*words, **settings):
        named = {key.replace("_", ".", 1): value for key, value in settings.items()}
        overrides = [f"--set={key}={value}" for key, value in (SETTINGS | named).items()]
        common = ("quick", "--storage", url, "--corpus", str(text), "--threads", "1")
        return nursery.start(*common, *overrides, *words)

    return start


def query(url, statement):
    """Ask a database in plain SQL."""
    if url.startswith("sqlite"):
        # Not made where it is not there.
        file = f"file:{url.removeprefix('sqlite:///')}?mode=rw"
        database = sqlite3.connect(file, uri=True, timeout=60)
        try:
            return database.execute(statement).fetchall()
        finally:
            database.close()
    import psycopg

    with psycopg.connect(url.replace("+psycopg", "")) as database:
        return database.execute(statement).fetchall()


FINISHED = """
    SELECT number, state, (SELECT count(*) FROM trial_values v WHERE v.trial_id = t.trial_id)
    FROM trials t ORDER BY number
"""
CURVES = """
    SELECT number, step, intermediate_value
    FROM trials t JOIN trial_intermediate_values v ON v.trial_id = t.trial_id
    ORDER BY number, step
"""


# ------------------------------------------------------------------ the process of this file


def main() -> None:
    """Serve until the standard input ends."""
    import torch

    import reports.command_line
    import search.session

    torch.set_num_threads(1)
    assert search.session
    assert reports.command_line
    wake, awaken = os.pipe()
    os.set_blocking(awaken, False)
    signal.set_wakeup_fd(awaken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    requests = ""
    while True:
        readable, _, _ = select.select([0, wake], [], [])
        if wake in readable:
            os.read(wake, 512)
            _reap()
        if 0 in readable:
            received = os.read(0, 65536)
            if not received:
                return
            *complete, requests = (requests + received.decode()).split("\n")
            for line in complete:
                _start(json.loads(line))


def _start(request) -> None:
    pid = os.fork()
    if pid:
        _say({"pid": pid, "log": request["log"]})
        return
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(request["environment"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["run_search.py", *request["words"]]
    code = 70
    try:
        runpy.run_path(str(ROOT / "run_search.py"), run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _say({"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _say(message) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
