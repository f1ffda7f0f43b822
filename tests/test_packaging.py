"""The distributions: their content, and the use of an installed one in an empty folder."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from helpers import ONE_TRIAL, ROOT, copy_checkout

import rnn_search

SEARCH_OUTPUT = [
    "studies/studies.db",
    "studies/studies.db.checkpoints/quick-1/trial-0.checkpoint",
    "studies/other.sqlite.checkpoints/quick-1/trial-0.checkpoint",
    "studies/checkpoints/quick-1/trial-0.checkpoint",
    "reports/out/quick.html",
    "reports/out/best-network/network.py",
    "examples.db.weights/quick-1/trial-0.safetensors",
    "effects.html",
]

PACKAGES = {"reports", "rnn", "rnn_search", "search", "studies"}


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Copy of the project with the output of searches and reports."""
    folder = tmp_path_factory.mktemp("project")
    copy_checkout(folder)
    for name in SEARCH_OUTPUT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("output")
    return folder


UV = Path(sys.executable).with_name("uv")


@pytest.fixture(scope="module")
def built(project) -> Path:
    """Folder with a source distribution of that copy, and the wheel that is built from it."""
    command = [UV, "build", "--quiet", "--no-build-isolation", "--python", sys.executable]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return project / "dist"


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """Environment with the wheel and what it requires, and nothing else."""
    environment = tmp_path_factory.mktemp("installed") / "environment"
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    # As `make install` does, with the settings that pip has here.
    command = [environment / "bin" / "pip", "install", "--quiet", "--no-compile", wheel]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return environment


@pytest.mark.extended
def test_wheel_contains_only_sources_templates_and_study_files(built):
    expected = {"refine.py", "run_search.py"}
    for name in tracked():
        path = PurePosixPath(name)
        is_part = path.suffix in {".py", ".toml", ".c", ".h"} or "templates" in path.parts
        if path.parts[0] in PACKAGES and is_part:
            expected.add(name)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected


@pytest.mark.extended
def test_source_distribution_contains_only_tracked_files(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert names - {"PKG-INFO"} <= set(tracked())
    assert {"tests/test_packaging.py", "studies/quick.toml", "examples/01_first_search.py"} <= names
    assert {"mkdocs.yml", "docs/index.md", "docs/generator/hooks.py"} <= names


def test_git_ignores_the_output_of_a_search():
    command = ["git", "-C", str(ROOT), "check-ignore", "--no-index", *SEARCH_OUTPUT]
    ignored = subprocess.run(command, capture_output=True, text=True).stdout
    assert ignored.splitlines() == SEARCH_OUTPUT


def test_git_ignores_no_tracked_file():
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(listed, capture_output=True, text=True, check=True).stdout == ""


@pytest.mark.extended
def test_installed_package_runs_the_study_of_the_demo(installed, tmp_path, text):
    """With the default storage and output folder, outside of the checkout."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RNN_SEARCH_")}
    environment.pop("PYTHONPATH", None)

    def run(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [installed / "bin" / program, *arguments],
            **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True},
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    two = ("--set=space.residual=[false, true]", "--set=space.training.learning_rate=[0.01]")
    two += ("--set=nuisance=[]",)
    output = run("rnn-search", "run", "quick", "--corpus", str(text), *ONE_TRIAL, *two)
    page = tmp_path / "reports" / "out" / "quick.html"
    assert f"report: {page}\n" in output
    page.unlink()
    assert run("rnn-search", "report", "quick").splitlines()[0] == str(page)
    assert page.exists()
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert written == {text.name, "studies", "reports"}
    version = f"rnn-search, version {rnn_search.__version__}\n"
    assert run("rnn-search", "--version") == version
    program = "import rnn_search; print(rnn_search.load('quick').counts.complete, rnn_search)"
    assert run("python", "-c", program).startswith(f"2 <module 'rnn_search' from '{installed}/")


def test_statistics_import_numpy_alone():
    """The other libraries are slow to import, and search and studies import the statistics."""
    code = """
import importlib, pkgutil, sys
import reports.stats
for module in pkgutil.iter_modules(reports.stats.__path__, "reports.stats."):
    importlib.import_module(module.name)
print(*sys.modules)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "reports.stats.replicates" in loaded
    others = PACKAGES | {"optuna", "pandas", "pydantic", "scipy", "threadpoolctl", "torch"}
    found = {name for name in loaded if name.partition(".")[0] in others}
    assert {name for name in found if not f"{name}.".startswith("reports.stats.")} == {"reports"}


def test_nodes_of_a_ray_cluster_get_all_sources():
    ray = pytest.importorskip("search.launch.ray", exc_type=ImportError)
    suffixes = {PurePosixPath(name).suffix for name in tracked() if name.startswith("rnn/")}
    assert suffixes == {".py", ".c", ".h"}
    assert {f"!*{suffix}" for suffix in suffixes} <= set(ray._EXCLUDED)
