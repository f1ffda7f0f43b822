"""``python -m search.demo search|refine|report WORKERS``: run one step of ``make demo``."""

import contextlib
import hashlib
import importlib
import itertools
import os
import runpy
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from studies.interrupts import exit_on_interrupt

ROOT = Path(__file__).parents[1]

REPEAT_SECONDS = 3.0
"""Interval between lines that report a slow operation."""

STUDY, REFINEMENT = "quick", "quick-refined"


def build_command(step: str, workers: str, overrides: Sequence[str]) -> list[str]:
    """Return the arguments of Python for a step of the demo.

    Studies with overrides get names of their own, because a study accepts one set of settings only.

    Args:
        step: ``search``, ``refine`` or ``report``.
        workers: number of worker processes.
        overrides: further options for the search and the refinement.
    """
    suffix = ""
    if overrides:
        suffix = f"-{hashlib.sha256(shlex.join(overrides).encode()).hexdigest()[:8]}"
    study, refinement = STUDY + suffix, REFINEMENT + suffix
    if step == "report":
        return ["-m", "reports", study, refinement]
    common = ["--workers", workers]
    if step == "search":
        naming = ["--name", study] if suffix else []
        options = _drop_section("refinement", overrides)
        return ["run_search.py", STUDY, *common, *options, *naming]
    source = f'refinement.source="{study}"'
    naming = ["--name", refinement, "--set", source] if suffix else []
    options = _drop_section("space", overrides)
    return ["refine.py", REFINEMENT, *common, *options, *naming]


def _drop_section(section: str, overrides: Sequence[str]) -> list[str]:
    """Return the options without settings of one section of the config."""
    remaining: list[str] = []
    words = iter(overrides)
    for word in words:
        name, _, value = word.partition("=")
        is_setting = name in ("--set", "--unset")
        option = [word, *itertools.islice(words, 1)] if is_setting and not value else [word]
        key = (value or option[-1]).partition("=")[0].strip()
        if not is_setting or key.split(".")[0] != section:
            remaining += option
    return remaining


@contextlib.contextmanager
def _repeat(line: str) -> Iterator[None]:
    """Print a line every few seconds while the context is active."""
    stopped = threading.Event()

    def print_lines() -> None:
        while not stopped.wait(REPEAT_SECONDS):
            print(line, flush=True)

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def main() -> None:
    """Print the command of a step, and run it in this process."""
    exit_on_interrupt()
    step, workers = sys.argv[1:]
    overrides = os.environ.get("OVERRIDES", "")
    try:
        command = build_command(step, workers, shlex.split(overrides))
    except ValueError as error:
        print(f"error: cannot parse OVERRIDES {overrides!r}: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"$ python {shlex.join(command)}", flush=True)
    if command[0] == "-m":
        sys.argv = command[1:]
        with _repeat("still writing"):
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        with _repeat("still importing PyTorch"):
            importlib.import_module("search.run")
        runpy.run_path(str(ROOT / command[0]), run_name="__main__")


if __name__ == "__main__":
    main()
