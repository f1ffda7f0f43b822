"""Configuration of the tests; the fixtures are in ``service_fixtures.py``.

Where PyTorch, numpy and pytest are all that is installed, the tests of :mod:`test_contract` and
:mod:`test_gpu` can run.
"""

import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]

IS_COMPLETE = all(
    map(find_spec, ("click", "hypothesis", "optuna", "psutil", "pydantic", "safetensors"))
)
"""Whether the libraries are installed that all tests but those of a GPU need."""

if IS_COMPLETE:
    pytest_plugins = ["service_fixtures"]

# Few cores; and a network that trains alone repeats bit for bit at one thread count.
torch.set_num_threads(1)

FILES_BEFORE = pytest.StashKey[dict[str, tuple[int, int]]]()
CHANGED_FILES = pytest.StashKey[list[str]]()

TOOL_FOLDERS = {
    ".git", ".venv", ".venv-lowest", ".hypothesis", ".import_linter_cache", ".mypy_cache",
    ".pytest_cache", ".ruff_cache", "__pycache__",
}  # fmt: skip
"""Folders of tools and their caches, which tests may change."""


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # the job of a shell in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers",
        "extended: long or large: crowds, chaos, the commands of the documents, the browser",
    )
    config.addinivalue_line(
        "markers", "impatient: a worker gives up on an unavailable storage as early as for users"
    )
    config.addinivalue_line("markers", "gpu: needs a GPU; skipped where PyTorch finds none")
    if IS_COMPLETE:
        config.addinivalue_line("filterwarnings", "ignore::optuna.exceptions.ExperimentalWarning")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Collect nothing but the tests of a GPU where the project's libraries are missing."""
    if IS_COMPLETE:
        return None
    folder = ROOT / "tests" / "rnn"
    gpu_tests = folder / "test_contract.py", folder / "test_gpu.py"
    return collection_path not in (*gpu_tests, folder, *folder.parents) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Follow the tutorial, which other tests wait for, then run fault tests and other commands.

    These take longest. One process runs a file: the longest one must not be the last that is left.
    """
    here = Path(__file__).parent
    folders = here, here / "faults"
    items.sort(
        key=lambda item: (
            item.name != "test_tutorial_runs",
            item.path.parent not in folders,
        )
    )
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU: PyTorch finds none"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out the long tests that would begin after RNN_SEARCH_EXTENDED_UNTIL, a Unix time."""
    until = float(os.environ.get("RNN_SEARCH_EXTENDED_UNTIL", "inf"))
    if time.time() > until and item.get_closest_marker("extended"):
        pytest.skip("the time for long tests is over")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute the tests by file, but the documents' commands by page."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "test_documented_commands" in nodeid else super()._split_scope(nodeid)

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


# ------------------------------------------------------------------ tests leave no file behind


def list_checkout_files() -> dict[str, tuple[int, int]]:
    """Return size and modification time of each file: tracked, untracked and ignored."""
    files = {}
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in TOOL_FOLDERS]
        for name in names:
            path = Path(folder, name)
            status = path.lstat()
            files[str(path.relative_to(ROOT))] = status.st_size, status.st_mtime_ns
    return files


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # of a worker of pytest-xdist
        session.config.stash[FILES_BEFORE] = list_checkout_files()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if it created, changed or removed a file of the checkout."""
    if FILES_BEFORE not in session.config.stash:
        return
    before, after = session.config.stash[FILES_BEFORE], list_checkout_files()
    changed = sorted(path for path in before | after if before.get(path) != after.get(path))
    session.config.stash[CHANGED_FILES] = changed
    if changed:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: "pytest.TerminalReporter", config: pytest.Config
) -> None:
    for path in config.stash.get(CHANGED_FILES, []):
        terminalreporter.write_line(f"FAILED: {path} in the checkout was changed by the tests")
