"""Run the project's commands in the process of the tests, at the cost of a function call.

A command runs as ``rnn-search`` would run it, with its handling of errors and its exit code. What a
process would take with it when it ends is restored afterwards: signal handlers, loggers,
environment variables, the working directory, threads of PyTorch.

Commands that start processes (``--workers 2``, ``--dashboard``), and those that are to be killed or
held, need a process of their own: see ``process_runner.py``.
"""

import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hooks import run_program

import reports.final_report
from search.worker.shutdown import SIGNALS

SECRETS = ("s3cret", "hunter2")
"""Passwords that tests give to commands, which print none."""


def invoke_command(
    *arguments: str, cwd: Path, report: bool = True, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command, as ``invoke_command("report", "quick", cwd=tmp_path)``."""
    before = set(threading.enumerate())
    with (
        restored_process(),
        contextlib.chdir(cwd),
        CliRunner().isolation(env=environment) as (out, err, _),
    ):
        if not report:
            reports.final_report.finalize_search = lambda *study: None
        code = run_program(*arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        stdout, stderr = (stream.getvalue().decode(errors="replace") for stream in (out, err))
    left = [thread for thread in threading.enumerate() if thread not in before]
    assert not left, f"the command left threads behind: {left}"
    return subprocess.CompletedProcess(arguments, code, stdout, stderr)


def require_refused(done: "subprocess.CompletedProcess[str]", *parts: str) -> str:
    """Require that a command refused its input, with one line that has these parts; return it."""
    assert done.returncode == 2, done.stdout + done.stderr
    line = done.stderr.removesuffix("\n")
    assert line.startswith("error: ")
    assert len(line.splitlines()) == 1, line
    for part in parts:
        assert part in line, line
    for secret in SECRETS:
        assert secret not in done.stdout + done.stderr
    return line


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Require that a block changes neither a file nor a database of a folder."""
    before = _read_content(folder)
    yield
    assert _read_content(folder) == before


@contextlib.contextmanager
def refused(
    error: type[Exception] | tuple[type[Exception], ...],
    message: str | Sequence[str],
    folder: Path | None = None,
) -> Iterator[None]:
    """Require that a block raises an error of one line with a message, and leaves a folder as is.

    Args:
        error: classes of the error.
        message: part of its line, or several.
        folder: folder that must be :func:`unchanged`; None for none.
    """
    kept = contextlib.nullcontext() if folder is None else unchanged(folder)
    with kept, pytest.raises(error) as raised:
        yield
    line = str(getattr(raised.value, "message", raised.value))
    for part in [message] if isinstance(message, str) else message:
        assert part in line, line
    assert len(line.splitlines()) == 1, line
    assert not any(secret in line for secret in SECRETS)


def _read_content(folder: Path) -> dict[str, object]:
    """Return the rows of each database by its path, and the bytes of each other file."""
    content: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.name in ("studies.db-wal", "studies.db-shm"):
            continue  # a reader may create them
        content[str(path)] = path.read_bytes() if path.is_file() else None
        if path.name == "studies.db":
            with contextlib.closing(sqlite3.connect(path)) as database:
                content[str(path)] = list(database.iterdump())
    return content


@contextlib.contextmanager
def restored_process() -> Iterator[None]:
    """Restore what a command changes in its process."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    argv = sys.argv
    variables = dict(os.environ)
    threads, finalize = torch.get_num_threads(), reports.final_report.finalize_search
    loggers = [each for each in logging.root.manager.loggerDict.values() if hasattr(each, "level")]
    settings = [(each, each.level, [*each.handlers], each.propagate) for each in loggers]
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.argv = argv
        os.environ.clear()
        os.environ.update(variables)
        torch.set_num_threads(threads)
        reports.final_report.finalize_search = finalize
        for logger, level, its_handlers, propagate in settings:
            logger.setLevel(level)
            logger.handlers, logger.propagate = its_handlers, propagate
