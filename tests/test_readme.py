"""Every command of the README, in the same words, made small by overrides."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import optuna
import pytest
from helpers import ROOT, TINY
from hooks import PATIENT_SECONDS
from services import free_port

from studies.config import StudyConfig

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("sh") for line in block.strip().splitlines()]


def parts() -> dict[str, list[str]]:
    """The commands, parted where they need nothing of those before."""
    found: dict[str, list[str]] = {}
    part = "on a file"
    for line in COMMANDS:
        command = shlex.split(line, comments=True)
        if command[0] == "export":
            part = "on a server"
        alone = command[:2] in (["make", "demo"], ["make", "test"])
        found.setdefault(line if alone else part, []).append(line)
    return found


PARTS = parts()

FEW = (
    "--set=space.input_gate=[false]",
    "--set=space.forget_gate=[false]",
    "--set=space.output_gate=[false]",
)
SMALLER = {
    "stage-one": (*TINY, *FEW, "--set=space.layers=[1]", "--set=space.state_size=[32]"),
    "quick": (*TINY, *FEW),
    "replicates": ("--set=refinement.top=2", "--set=refinement.replicates=2"),
    "baselines": (*TINY, "--set=space.layers=[1]", "--set=space.state_size=[8]"),
}


def smaller(command: list[str], text: Path) -> list[str]:
    """What makes a command small; a derived study inherits most of it."""
    named = "".join(word for word in command[2:3] if not word.startswith("-"))
    if command[:2] == ["python", "run_search.py"]:
        if "--status" in command:
            return []
        return [*SMALLER.get(named or "stage-one", TINY), "--corpus", str(text)]
    if command[:2] == ["python", "refine.py"]:
        return list(SMALLER.get(named, TINY))
    return {
        "make demo": ["OVERRIDES=" + " ".join(TINY), "WORKERS=1"],
        "make test": ["TESTS=tests/search/test_space.py", "WORKERS=0"],
    }.get(" ".join(command[:2]), [])


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the project as git has it, with the environment that it was installed into."""
    folder = tmp_path / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    return folder


@pytest.fixture
def environment(sqlite_url, tmp_path):
    """As after ``. .venv/bin/activate``, with a storage of the test's own."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "MAKE"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Tests that are run by a test must not clear up after it.
    inherited["PYTEST_DEBUG_TEMPROOT"] = str(tmp_path)
    ours = {"RNN_SEARCH_STORAGE": sqlite_url, "RNN_SEARCH_ARTIFACTS": str(tmp_path / "artifacts")}
    return {**inherited, "PATH": path, **ours}


def look_at_dashboard(command: list[str], checkout: Path, environment: dict[str, str]) -> None:
    port = free_port()
    process = subprocess.Popen(
        [*command, f"PORT={port}"], cwd=checkout, env=environment, start_new_session=True
    )
    try:
        deadline = time.monotonic() + PATIENT_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies") as answer:
                    assert b'"stage-one"' in answer.read()
                    return
            except urllib.error.URLError:
                assert process.poll() is None, "the dashboard has ended"
                assert time.monotonic() < deadline, "the dashboard did not come up"
                time.sleep(0.5)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENT_SECONDS)


def test_a_test_runs_every_command():
    assert len(COMMANDS) >= 12
    assert sorted(line for part in PARTS.values() for line in part) == sorted(COMMANDS)
    assert {*PARTS} >= {"make demo", "make test", "on a file", "on a server"}


@pytest.mark.extended
@pytest.mark.parametrize("part", PARTS)
def test_every_command(part, environment, checkout, text, run, request, tmp_path):
    for line in PARTS[part]:
        command = shlex.split(line, comments=True)
        if command[0] == "export":
            name, _, value = command[1].partition("=")
            assert name in environment
            assert value.startswith("postgresql+psycopg://")
            environment[name] = request.getfixturevalue("postgresql_url")
            continue
        if command[:2] == ["make", "dashboard"]:
            look_at_dashboard(command, checkout, environment)
            continue
        words = [*command, *smaller(command, text)]
        if "search.export" in words:
            words[-1] = str(tmp_path / words[-1])
        if command[0] == "python":
            named = {key: environment[key] for key in environment if key.startswith("RNN_SEARCH_")}
            done = run(*words[1:], cwd=checkout, **named)
        else:
            done = subprocess.run(
                words, cwd=checkout, env=environment, capture_output=True, text=True
            )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        if command[:2] == ["make", "demo"]:
            page = [line for line in done.stdout.splitlines() if line.endswith(".html")][-1]
            assert (checkout / page).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    if part == "on a server":
        storage = environment["RNN_SEARCH_STORAGE"]
        on_server = optuna.load_study(study_name="deeper", storage=storage)
        assert {trial.params["layers"] for trial in on_server.trials} == {2, 3}


def test_the_definition_shown_is_one():
    (shown,) = blocks("toml")
    config = StudyConfig.model_validate(tomllib.loads(shown))
    assert len(list(config.space.combinations())) == 432


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_file_that_is_named_is_there(target):
    assert (ROOT / target).exists()
