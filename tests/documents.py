"""The documents as data, and a reader who runs their commands and their Python in a clone."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import ROOT, TINY, copy_checkout
from hooks import ALIASES
from invocation import restored_process
from process_runner import ProcessRunner

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
}
"""Text of each page by its path."""

TUTORIAL = ("docs/index.md", "docs/tutorial.md")
"""Pages that a reader of any other page has followed."""

SHORTER = (20, 10, 5)
"""A training of the documents is shortened by the first of these that leaves a hundred steps."""

FEW_WINDOWS = "\n[evaluation]\nwindows = 32\n"
"""What is added to the study files that a reader saves: most of a short training is evaluation."""

ACTIVE = {"RNN_SEARCH_STORAGE": "sqlite:///studies/studies.db", "RNN_SEARCH_ARTIFACTS": ""}
"""Environment variables of a reader who has set none."""

INSTALLERS = ("cd", "git", "pip", "uv")
"""Programs by which a reader gets the project, which the clone and its environment stand for."""

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_NAME_IN_COMMENT = re.compile(r"# ([\w-]+\.(?:toml|py))(?=[\s:,]|$)")
_NAME_IN_TEXT = re.compile(r"`([\w-]+\.(?:toml|py))`")
_STEPS, _LOG_EVERY = (
    re.compile(rf"""(?<!\w)({key}["']?\s*[=:]\s*)(\d[\d_]*)""") for key in ("steps", "log_every")
)
_SHELL = re.compile(r"[|&;<>`]|\$\(|^\w+=")
_SUFFIXES = {"toml": ".toml", "python": ".py"}


@dataclass(frozen=True)
class Block:
    """Fenced block of a page.

    Attributes:
        name: file to which the reader saves it; "" if the page names none.
        is_new: whether the page says so in its text, and not in the block: it does not replace a
            file that exists.
    """

    language: str
    text: str
    name: str = ""
    is_new: bool = False


def read_blocks(page: str) -> list[Block]:
    """Return the blocks of a page, in their order."""
    text = PAGES[page]
    return [_read_block(found, text[: found.start()]) for found in _FENCED.finditer(text)]


def blocks(page: str, language: str) -> list[str]:
    """Return the text of each block of a language."""
    return [block.text for block in read_blocks(page) if block.language == language]


def _read_block(found: re.Match[str], before: str) -> Block:
    """Read a block, and its file from its first line or from the paragraph that announces it."""
    language, text = found.groups()
    if language not in _SUFFIXES:
        return Block(language, text)
    if named := _NAME_IN_COMMENT.match(text):
        return Block(language, text, named[1])
    paragraph = before.rstrip().rpartition("\n\n")[2]
    names = {
        name for name in _NAME_IN_TEXT.findall(paragraph) if name.endswith(_SUFFIXES[language])
    }
    if paragraph.endswith(":") and len(names) == 1:
        return Block(language, text, names.pop(), is_new=True)
    return Block(language, text)


def split_commands(block: str) -> list[str]:
    """Return the command lines of a block; a backslash continues a line."""
    lines = re.sub(r" *\\\n *", " ", block).splitlines()
    lines = [re.sub(r"(^|\s+)#\s.*", "", line) for line in lines]
    return [line for line in lines if line.strip()]


def read_subcommand(command: list[str]) -> list[str]:
    """Return the words of a command as they follow ``rnn-search``; [] for another program."""
    match command:
        case ["rnn-search", *words] | ["python", "-m", "rnn_search", *words]:
            return words
        case ["python", program, *words] if program in ALIASES:
            return [ALIASES[program], *words]
    return []


def shorten_training(text: str) -> str:
    """Divide the numbers of steps in a text as :data:`SHORTER` says, and log within the rest."""
    lengths: list[int] = []

    def shorten(found: re.Match[str]) -> str:
        steps = int(found[2])
        left = [steps // factor for factor in SHORTER if steps >= 100 * factor]
        lengths.append(left[0] if left else steps)
        return f"{found[1]}{lengths[-1]}"

    def log(found: re.Match[str]) -> str:
        return f"{found[1]}{min([int(found[2]), *lengths])}"

    return _LOG_EVERY.sub(log, _STEPS.sub(shorten, text))


def make_clone(folder: Path) -> None:
    """Copy the project to a folder, with the virtual environment of the tests, installed."""
    copy_checkout(folder)
    environment = folder / ".venv"
    environment.mkdir()
    for path in Path(sys.executable).parents[1].iterdir():
        (environment / path.name).symlink_to(path)
    (environment / ".installed").unlink(missing_ok=True)
    (environment / ".installed").touch()


class Reader:
    """Follows pages in a clone whose environment is active, from top to bottom.

    Blocks are saved and run as they stand, with three differences: training is shorter, fewer
    windows are evaluated, and on other pages than the tutorial a search writes no report.

    Args:
        folder: the clone, which is the working directory.
        postgresql: returns the URL of an empty database, in place of one that a page exports. A
            folder that it exports is one next to the clone.
    """

    def __init__(
        self, folder: Path, runner: ProcessRunner, postgresql: Callable[[], str] = str
    ) -> None:
        self._folder = folder
        self._runner = runner
        self._postgresql = postgresql
        self._variables = dict(ACTIVE)
        self._names: dict[str, object] = {"__name__": "__main__"}

    def follow(self, page: str) -> None:
        """Save and run the blocks of a page."""
        for block in read_blocks(page):
            text = shorten_training(block.text)
            if block.name:
                self._save(block, text)
            elif block.language == "sh":
                for line in split_commands(text):
                    self._run(line, writes_report=page in TUTORIAL)
            elif block.language == "python":
                self.execute(text, page)

    def execute(self, code: str, origin: str) -> None:
        """Run Python in this process, after what the reader ran before."""
        imported = set(sys.modules)
        with restored_process(), _on_path(self._folder), contextlib.chdir(self._folder):
            os.environ.update(self._variables)
            exec(compile(code, f"<{origin}>", "exec"), self._names)
        for name in set(sys.modules) - imported:  # other pages have other files of this name
            file = getattr(sys.modules[name], "__file__", None) or ""
            if file.startswith(str(self._folder)):
                del sys.modules[name]

    def _save(self, block: Block, text: str) -> None:
        path = self._folder / block.name
        if path.suffix == ".toml" and "[evaluation]" not in text and "[loop]" not in text:
            text += FEW_WINDOWS
        if not (block.is_new and path.exists()):
            path.write_text(text, encoding="utf-8")

    def _run(self, line: str, writes_report: bool) -> None:
        command = shlex.split(line, comments=True)
        if command[0] in INSTALLERS:
            return
        if command[0] == ".":
            assert (self._folder / command[1]).is_file()
            return
        if command[0] == "export":
            name, _, value = command[1].partition("=")
            if value.startswith("postgresql"):
                value = self._postgresql()
            elif value.startswith("/"):
                value = str(self._folder.with_name(name))
            self._variables[name] = value
            return
        if limits := _limit(command):
            command = [*command, *limits]
            line = shlex.join(command)
        subcommand = read_subcommand(command)
        if subcommand and not _SHELL.search(line):
            run = self._runner.run
            done = run(*subcommand, cwd=self._folder, report=writes_report, **self._variables)
        else:
            done = self._run_in_shell(line)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        if command[:2] == ["make", "demo"]:
            report = [word for word in done.stdout.split() if word.endswith(".html")][-1]
            page = (self._folder / report).read_text(encoding="utf-8")
            assert page.startswith("<!DOCTYPE html>")

    def _run_in_shell(self, line: str) -> "subprocess.CompletedProcess[str]":
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "MAKE"))}
        # The tests that `make test` runs must not clean the temporary folders of this one.
        inherited["PYTEST_DEBUG_TEMPROOT"] = str(self._folder.parent)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = inherited | self._variables | {"PATH": path}
        return subprocess.run(
            ["bash", "-c", line],
            cwd=self._folder,
            env=environment,
            capture_output=True,
            text=True,
        )


def _limit(command: list[str]) -> list[str]:
    """Return the arguments that make a command end soon which a reader lets run."""
    few = [f"--set=space.{gate}_gate=[false]" for gate in ("input", "forget", "output")]
    few.append("--set=space.state_source=['new']")
    few.append("--set=space.exclude=[]")
    return {
        "make demo": [f"OVERRIDES={shlex.join([*TINY, *few])}", "WORKERS=1"],
        "make test": ["TESTS=tests/rnn/test_optimizer.py", "WORKERS=0"],
        "rnn-search dashboard": ["--help"],  # it would serve until it is stopped
    }.get(" ".join(command[:2]), [])


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
