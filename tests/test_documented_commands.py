"""Commands and Python of each page, and the examples, as a reader of the tutorial runs them.

The tutorial is followed once. Each other page gets a copy of what it leaves behind.
"""

import os
import shutil
from pathlib import Path

import pytest
from documents import ACTIVE, PAGES, TUTORIAL, Reader, make_clone, read_blocks, shorten_training
from filelock import FileLock
from helpers import ROOT
from hooks import Hooks

FOLLOWED = [
    page
    for page in PAGES
    if page not in TUTORIAL and {block.language for block in read_blocks(page)} & {"sh", "python"}
]

EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


@pytest.fixture(scope="session")
def after_tutorial(tmp_path_factory, runner) -> Path:
    """Clone in which a reader has followed the tutorial; the processes of a test run share it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "after-tutorial"
    followed = shared / "after-tutorial.followed"
    with FileLock(shared / "after-tutorial.lock"):
        if not folder.exists():
            make_clone(folder)
            reader = Reader(folder, runner)
            for page in TUTORIAL:
                reader.follow(page)
            followed.touch()
    assert followed.exists(), "the tutorial fails: see test_tutorial_runs"
    return folder


@pytest.fixture
def clone(after_tutorial, tmp_path) -> Path:
    """A copy of that clone, which the test may change."""
    folder = tmp_path / "clone"
    shutil.copytree(after_tutorial, folder, symlinks=True)
    return folder


@pytest.mark.extended
def test_tutorial_runs(after_tutorial):
    assert (after_tutorial / "reports" / "out" / "my-study.html").is_file()


@pytest.mark.extended
@pytest.mark.parametrize("page", FOLLOWED)
def test_page_runs_after_the_tutorial(page, clone, runner, request):
    Reader(clone, runner, lambda: request.getfixturevalue("postgresql_url")).follow(page)
    shutil.rmtree(clone)


NOTEBOOK = """
import sys
from pathlib import Path

def run_cells(program):
    names = vars(sys.modules["__main__"])
    names.pop("__file__", None)
    cells = Path(program).read_text(encoding="utf-8").replace("\\n# %%", "\\0# %%").split("\\0")
    for cell in cells:
        exec(compile(cell, "<cell>", "exec"), names)
    print("ran", len(cells), "cells")

run_cells(sys.argv[1])
"""
"""Program that runs the cells of another one after another, as a notebook does."""


@pytest.mark.extended
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_as_a_notebook(example, clone, runner):
    """What runs cell by cell, without the path of a file, is also a script."""
    code = shorten_training(example.read_text(encoding="utf-8"))
    program, copy = clone / "notebook.py", clone / "cells.py"
    program.write_text(NOTEBOOK)
    copy.write_text(code, encoding="utf-8")
    command = runner.start(program.name, copy.name, cwd=clone, hooks=Hooks(), **ACTIVE)
    assert command.wait() == 0, command.output
    assert command.stderr == ""
    count = code.count("\n# %%") + 1
    assert command.stdout.endswith(f"ran {count} cells\n")
    shutil.rmtree(clone)
