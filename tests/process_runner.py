"""Run the project's commands at the cost of a fork: a server process imports the project once.

The server runs this file as a program. It reads one request per line from its standard input, a
JSON object, and reports the process that it started and, later, how that process ended. Each
process runs ``rnn-search`` as a terminal would.
"""

import contextlib
import gc
import importlib
import json
import os
import queue
import select
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import hooks
from helpers import QUICK
from hooks import HANG_TIMEOUT, Hooks

ROOT = Path(__file__).parents[1]

_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}


class Command:
    """Process that runs a command."""

    def __init__(self, pid: int, out: Path) -> None:
        self.pid = pid
        self.code: int | None = None
        self.ended = threading.Event()
        self._out = out

    def send(self, number: int) -> None:
        """Send a signal, if the process still runs."""
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for the end of the process; return its exit code."""
        assert self.ended.wait(HANG_TIMEOUT), f"the command still runs:\n{self.output}"
        assert self.code is not None
        return self.code

    @property
    def stdout(self) -> str:
        return _read(self._out)

    @property
    def stderr(self) -> str:
        return _read(self._out.with_suffix(".err"))

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def _read(path: Path) -> str:
    if not path.is_file():  # not started yet, or redirected to a device
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


class ProcessRunner:
    """Context that starts commands from a server process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: queue.Queue[int] = queue.Queue()
        self._commands: dict[int, Command] = {}
        self._count = 0

    def __enter__(self) -> "ProcessRunner":
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A fork has only one thread.
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": str(ROOT)},
        )
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for command in self._commands.values():
            command.send(signal.SIGKILL)
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(HANG_TIMEOUT)

    def start(
        self,
        *arguments: str,
        stdout: str = "",
        stderr: str = "",
        ignored: Sequence[int] = (),
        cwd: Path | None = None,
        umask: int = 0o022,
        hooks: Hooks = Hooks(),  # noqa: B008  # it is immutable
        **environment: str,
    ) -> Command:
        """Start a command, as ``start("run", QUICK)`` or ``start("report", "quick")``.

        ``stdout`` and ``stderr`` are files in place of those that :class:`Command` reads, and
        ``ignored`` are signals that the process ignores from the start.
        """
        self._count += 1
        out = str(self._folder / f"command-{self._count}.out")
        request = {"arguments": arguments, "environment": environment | hooks.environment}
        request |= {"out": out, "stdout": stdout or out}
        request |= {"stderr": stderr or str(Path(out).with_suffix(".err")), "umask": umask}
        request |= {"ignored": [*ignored], "cwd": str(cwd or self._folder)}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._commands[self._started.get(timeout=HANG_TIMEOUT)]

    def run(
        self, *arguments: str, cwd: Path | None = None, report: bool = True, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end, with or without the report of a search."""
        command = self.start(*arguments, cwd=cwd, hooks=Hooks(report=report), **environment)
        code = command.wait()
        return subprocess.CompletedProcess(arguments, code, command.stdout, command.stderr)

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            message = json.loads(line)
            if "out" in message:
                pid = message["pid"]
                self._commands[pid] = Command(pid, Path(message["out"]))
                self._started.put(pid)
            else:
                command = self._commands[message["pid"]]
                command.code = message["code"]
                command.ended.set()


def wait_until(condition):
    """Wait until a condition holds; return its value."""
    deadline = time.monotonic() + HANG_TIMEOUT
    while not (value := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
    return value


def wait_until_running(commands, condition):
    """Wait until a condition holds; fail if one of the commands ends before."""

    def holds_while_running():
        ended = [command for command in commands if command.ended.is_set()]
        holds = condition()  # checked last: it may hold because a command ended
        assert holds or not ended, f"a command ended before:\n{ended[0].output}"
        return holds

    return wait_until(holds_while_running)


SETTINGS = {
    "evaluation.windows": 2,
    "evaluation.window_length": 8,
    "training.batch_size": 4,
    "training.sequence_length": 32,
    "precision": "'fp32'",
    "keep_weights": "0",
}
"""Overrides for networks that train in about a second."""


def search_starter(runner, url, text):
    """Return a function that starts a search on a small study, as ``start(training_steps=1000)``.

    Networks train one by one, so that curves repeat bit for bit. The search writes no report.
    ``gate``, ``clock`` and ``patient`` are those of :class:`hooks.Hooks`.
    """

    def start(*arguments, environment=MappingProxyType({}), lockstep="1", **settings):
        fields = {"gate", "clock", "patient"} & settings.keys()
        hooks = Hooks(report=False, **{name: settings.pop(name) for name in fields})
        given = {key.replace("_", ".", 1): value for key, value in settings.items()}
        overrides = [f"--set={key}={value}" for key, value in (SETTINGS | given).items()]
        common = (QUICK, "--storage", url, "--corpus", str(text), "--threads", "1")
        common += ("--lockstep", lockstep)
        return runner.start("run", *common, *overrides, *arguments, hooks=hooks, **environment)

    return start


def query(url, statement):
    """Return the rows of a plain SQL query."""
    if url.startswith("sqlite"):
        # rw: do not create a missing file.
        file = f"file:{url.removeprefix('sqlite:///')}?mode=rw"
        database = sqlite3.connect(file, uri=True, timeout=HANG_TIMEOUT)
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

METRICS = """
    SELECT number, key, value_json
    FROM trials t JOIN trial_system_attributes a ON a.trial_id = t.trial_id
    WHERE key LIKE 'curve:%' ORDER BY number, key
"""
"""The held-out curves."""


# ------------------------------------------------------------------ the server process


def main() -> None:
    """Serve until the standard input is closed."""
    import torch
    from helpers import open_and_count  # caches what Alembic loads

    torch.set_num_threads(1)
    for name in (
        *("reports.dashboard", "reports.page.page", "search.run"),
        *("alembic.command", "sqlalchemy.dialects.sqlite", "psycopg"),
    ):
        with contextlib.suppress(ImportError):  # of what is not installed
            importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        open_and_count(f"sqlite:///{folder}/studies.db")
    # Otherwise the first garbage collection in each process would copy all shared memory.
    gc.collect()
    gc.freeze()
    wake, wake_writer = os.pipe()
    os.set_blocking(wake_writer, False)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
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
        _send({"pid": pid, "out": request["out"]})
        return
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored if the tests run under nohup
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or as a shell's background job
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # otherwise that of the server, whatever TMPDIR is
    os.chdir(request["cwd"])
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY | os.O_CREAT),
        (2, request["stderr"], os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(path, flags, 0o600), descriptor)
    os.umask(request["umask"])
    code = 70
    try:
        hooks.install()
        code = hooks.run_program(*request["arguments"])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = 120  # as the interpreter exits if it cannot flush
        os._exit(code)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _send({"pid": ended[0], "code": os.waitstatus_to_exitcode(ended[1])})


def _send(message) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
