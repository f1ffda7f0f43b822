"""``python -m search.demo search|refine|report WORKERS``: one step of ``make demo``."""

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

ROOT = Path(__file__).parents[1]

REPEAT_SECONDS = 3.0
"""Between two lines that say that something still lasts."""

STUDY, REFINED = "quick", "quick-refined"


def command_of(step: str, workers: str, overrides: Sequence[str]) -> list[str]:
    """Return the words of the command that does a step of the demo.

    Studies with overrides have names of their own, for a study is joined on its own settings only.

    Args:
        step: ``search``, ``refine`` or ``report``.
        workers: how many processes to start.
        overrides: options of the search and of the refinement.
    """
    suffix = ""
    if overrides:
        suffix = f"-{hashlib.sha256(shlex.join(overrides).encode()).hexdigest()[:8]}"
    study, refined = STUDY + suffix, REFINED + suffix
    if step == "report":
        return ["-m", "reports", study, refined]
    common = ["--workers", workers]
    if step == "search":
        named = ["--name", study] if suffix else []
        return ["run_search.py", STUDY, *common, *_without("refinement", overrides), *named]
    source = f'refinement.source="{study}"'
    named = ["--name", refined, "--set", source] if suffix else []
    return ["refine.py", REFINED, *common, *_without("space", overrides), *named]


def _without(section: str, overrides: Sequence[str]) -> list[str]:
    """Return the options without settings of a section that the study does not have."""
    kept: list[str] = []
    words = iter(overrides)
    for word in words:
        option = [word, *itertools.islice(words, 1)] if word == "--set" else [word]
        key = option[-1].removeprefix("--set=").partition("=")[0].strip()
        is_setting = word.partition("=")[0] == "--set"
        if not is_setting or key.split(".")[0] != section:
            kept += option
    return kept


@contextlib.contextmanager
def _repeating(line: str) -> Iterator[None]:
    """Print a line every few seconds."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(REPEAT_SECONDS):
            print(line, flush=True)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def main() -> None:
    """Print the step's command, and run it in this process."""
    step, workers = sys.argv[1:]
    typed = os.environ.get("OVERRIDES", "")
    try:
        overrides = shlex.split(typed)
    except ValueError as error:
        print(f"error: OVERRIDES is {typed!r} ({error}); check its quotes", file=sys.stderr)
        sys.exit(2)
    program, *words = command_of(step, workers, overrides)
    print(f"$ python {shlex.join([program, *words])}", flush=True)
    if step == "report":
        sys.argv = words
        with _repeating("still writing"):
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        return
    sys.argv = [program, *words]
    with _repeating("still importing PyTorch"):
        importlib.import_module("search.cli")
    runpy.run_path(str(ROOT / program), run_name="__main__")


if __name__ == "__main__":
    main()
