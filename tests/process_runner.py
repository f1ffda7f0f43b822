"""Starts the project's commands at the cost of a fork: what they import is imported once.

A process of this file reads requests from its standard input, a JSON object a line, and answers
with the process that it started; when one of them ends, it says how. What runs in each of them is
``run_search.py`` or another command, as it would in a terminal.
"""

import contextlib
import gc
import importlib
import json
import os
import queue
import runpy
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
from hooks import HANG_TIMEOUT, Hooks

ROOT = Path(__file__).parents[1]

_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}


class Command:
    """A process that runs a command.

    Attributes:
        code: its exit code, negative for a signal; None while it runs.
    """

    def __init__(self, pid: int, out: Path) -> None:
        self.pid = pid
        self.code: int | None = None
        self.ended = threading.Event()
        self._out = out

    def send(self, number: int) -> None:
        """Send a signal, if there is still somebody to receive it."""
        if not self.ended.is_set():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def wait(self) -> int:
        """Return the exit code."""
        assert self.ended.wait(HANG_TIMEOUT), f"it still runs:\n{self.output}"
        assert self.code is not None
        return self.code

    @property
    def stdout(self) -> str:
        """What it has said on its standard output."""
        return _read(self._out)

    @property
    def stderr(self) -> str:
        """What it has said on its standard error."""
        return _read(self._out.with_suffix(".err"))

    @property
    def output(self) -> str:
        """What it has said on both."""
        return self.stdout + self.stderr


def _read(path: Path) -> str:
    if not path.is_file():  # it has hardly begun, or says it to a device
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


class ProcessRunner:
    """A context in which commands are started quickly.

    Args:
        folder: for what they say.
    """

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
            # Threads that a parent has begun do not live on in a child.
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
        *words: str,
        stdout: str = "",
        stderr: str = "",
        ignored: Sequence[int] = (),
        cwd: Path | None = None,
        hooks: Hooks = Hooks(),  # noqa: B008  # it is immutable
        **environment: str,
    ) -> Command:
        """Start a command, as ``start("run_search.py", "quick")`` or ``start("-m", "reports")``.

        Args:
            words: of its command line.
            stdout: the file that its standard output goes to, in place of one that is read here.
            stderr: the same for its standard error.
            ignored: signals that it is started with as ignored.
            cwd: its working directory; by default a temporary folder.
            hooks: what is changed in its processes.
            environment: what is added to its environment.
        """
        self._count += 1
        out = str(self._folder / f"command-{self._count}.out")
        request = {"words": words, "out": out, "environment": environment | hooks.environment}
        request |= {"stdout": stdout or out, "stderr": stderr or str(Path(out).with_suffix(".err"))}
        request |= {"ignored": [*ignored], "cwd": str(cwd or self._folder)}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._commands[self._started.get(timeout=HANG_TIMEOUT)]

    def run(
        self, *words: str, cwd: Path | None = None, report: bool = True, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end; without a report, if that is not what is tested."""
        command = self.start(*words, cwd=cwd, hooks=Hooks(report=report), **environment)
        code = command.wait()
        return subprocess.CompletedProcess(words, code, command.stdout, command.stderr)

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
    """Wait for a condition to be true, and return what it returns."""
    deadline = time.monotonic() + HANG_TIMEOUT
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found


def wait_until_running(commands, condition):
    """Wait for a condition that commands bring about; fail if one of them ends before."""

    def found():
        ended = [command for command in commands if command.ended.is_set()]
        holds = condition()  # after: it may have become true and a command ended since
        assert holds or not ended, f"it ended before:\n{ended[0].output}"
        return holds

    return wait_until(found)


SETTINGS = {
    "evaluation.windows": 2,
    "evaluation.window_length": 8,
    "training.batch_size": 4,
    "training.sequence_length": 32,
    "precision": "'fp32'",
    "keep_weights": "0",
}
"""Of networks that are trained in a second or so."""


def search_starter(runner, url, text):
    """Return what starts a search on a small study; settings as ``training_steps=1000``.

    Its networks are trained one by one, and so give the same curves bit for bit. It ends without a
    report, which has tests of its own. ``gate``, ``clock`` and ``patient`` are those of
    :class:`hooks.Hooks`.
    """

    def start(
        *words,
        environment=MappingProxyType({}),
        lockstep="1",
        gate=None,
        clock=None,
        patient=True,
        **settings,
    ):
        named = {key.replace("_", ".", 1): value for key, value in settings.items()}
        overrides = [f"--set={key}={value}" for key, value in (SETTINGS | named).items()]
        common = ("quick", "--storage", url, "--corpus", str(text), "--threads", "1")
        common += ("--lockstep", lockstep)
        hooks = Hooks(patient=patient, report=False, gate=gate, clock=clock)
        return runner.start(
            "run_search.py", *common, *overrides, *words, hooks=hooks, **environment
        )

    return start


def query(url, statement):
    """Ask a database in plain SQL."""
    if url.startswith("sqlite"):
        # Not made where it is not there.
        file = f"file:{url.removeprefix('sqlite:///')}?mode=rw"
        database = sqlite3.connect(file, uri=True, timeout=HANG_TIMEOUT)
        try:
            return database.execute(statement).fetchall()
        finally:
            database.close()
    import psycopg

    with psycopg.connect(url.replace("+psycopg", "")) as database:
        return database.execute(statement).fetchall()


def freeze_process(command, url):
    """Stop a process, but not in a transaction: it would keep an SQLite file's lock for itself."""
    threads = Path(f"/proc/{command.pid}/task")

    def has_halted() -> bool:
        stats = (path.read_text() for path in threads.glob("*/stat"))
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

    def is_frozen() -> bool:
        command.send(signal.SIGSTOP)
        wait_until(has_halted)
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0)) as file:
            try:
                file.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                command.send(signal.SIGCONT)
                return False
        return True

    wait_until(is_frozen)


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
    from helpers import open_and_count  # which keeps what Alembic loads

    import reports.dashboard.publish
    import reports.page.page
    import search.run

    torch.set_num_threads(1)
    assert search.run
    assert reports.page.page
    assert reports.dashboard.publish
    # What is imported late only, by the first connections.
    for name in ("alembic.command", "sqlalchemy.dialects.sqlite", "psycopg"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        open_and_count(f"sqlite:///{folder}/studies.db")
    # Else the first collection in each process would copy all memory that it shares with this one.
    gc.collect()
    gc.freeze()
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
        _say({"pid": pid, "out": request["out"]})
        return
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup, above the tests, has ignored
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY | os.O_CREAT),
        (2, request["stderr"], os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(path, flags, 0o600), descriptor)
    code = 70
    try:
        hooks.install()
        program, *words = request["words"]
        if program == "-m":
            program, *words = words
            sys.argv = [program, *words]
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            sys.argv = [program, *words]
            runpy.run_path(str(ROOT / program), run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = 120  # as an interpreter ends that cannot say its last words
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
