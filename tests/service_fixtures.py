"""Fixtures of all tests: storages, services, a browser, and the commands as a user types them."""

import contextlib
import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import hooks
import optuna
import pytest
from helpers import NO_SYNC, TEXT
from hooks import HANG_TIMEOUT
from invocation import invoke_command
from process_runner import ProcessRunner
from services import PostgreSQL, report_missing
from slurm_service import Slurm

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("search").setLevel(logging.INFO)
hooks.use_one_core()

BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-swiftshader",
]


@pytest.fixture(autouse=True)
def _patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extend timeouts of the storage, unless the test is about them."""
    if request.node.get_closest_marker("impatient") is None:
        hooks.make_patient(monkeypatch.setattr)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/studies.db"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.extended)])
def url(request: pytest.FixtureRequest) -> str:
    """URL of a storage that does not exist yet: of SQLite, in extended tests of PostgreSQL too."""
    fixture = {"sqlite": "sqlite_url", "postgresql": "postgresql_url"}[request.param]
    return str(request.getfixturevalue(fixture))


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessRunner]:
    with ProcessRunner(tmp_path_factory.mktemp("commands")) as runner:
        yield runner


@pytest.fixture
def run(runner: ProcessRunner) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run a command of the project to its end, as ``run("run", QUICK, …)``."""
    return runner.run


@pytest.fixture
def invoke(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The same in this process, which costs milliseconds: see ``invocation.py`` for the limits."""
    return partial(invoke_command, cwd=tmp_path_factory.mktemp("working-directory"))


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    with PostgreSQL(NO_SYNC) as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_server: PostgreSQL) -> str:
    """URL of an empty database on a real server."""
    return postgresql_server.new_database()


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Slurm]:
    with Slurm() as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_cluster: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """SLURM cluster without jobs, which commands of this process find."""
    for name, value in slurm_cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield slurm_cluster
    slurm_cluster.end_jobs()
    slurm_cluster.resume_nodes()


# ------------------------------------------------------------------ pages


@pytest.fixture(scope="module")
def browser() -> Iterator:
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if not executable:
        report_missing("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=executable, args=BROWSER_FLAGS, timeout=1000 * HANG_TIMEOUT
        )
        yield started
        started.close()


@pytest.fixture
def open_page(browser) -> Callable[..., contextlib.AbstractContextManager]:
    """Context that opens a file offline; it fails on errors, network requests and wide pages."""

    @contextlib.contextmanager
    def open_file(path: Path, width: int = 1200, height: int = 900, before: str = "", **options):
        viewport = {"width": width, "height": height}
        context = browser.new_context(offline=True, viewport=viewport, **options)
        context.set_default_timeout(1000 * HANG_TIMEOUT)
        page = context.new_page()
        page.add_init_script(before)
        errors = []
        requests = []
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        yield page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert errors == []
        assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
        context.close()

    return open_file
