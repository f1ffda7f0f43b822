"""The documents: every command runs, every study file is valid, every name and link exists."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import optuna
import pytest
import yaml
from helpers import ROOT, TEXT, TINY, copy_checkout
from hooks import ALIASES

import rnn_search
from docs.generator import pictures
from docs.generator.reference import PAGES as GENERATED_PAGES
from docs.generator.reference import PARTS, generate_parts
from docs.generator.settings import STUDY_TABLES, describe_field
from rnn_search.commands import rnn_search_command
from search.cells_tasks import load_cells, load_tasks
from studies.attributes import StudyRecord, TrialRecord
from studies.config import StudyConfig
from studies.loader import ConfigFile

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
}

HISTORY = {"CHANGELOG.md"}
"""Pages that may name files of earlier versions."""

OWN_CELL = "docs/how-to/search-your-own-cell.md"
OWN_DATA = "docs/how-to/search-on-your-own-data.md"

PYTHON_PAGES = ("README.md", "docs/how-to/use-python.md", "docs/reference/cells.md")
"""Pages whose Python needs no command before it."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def commands_of(block: str) -> list[list[str]]:
    """Return the words of each command of a block; a backslash continues a line."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def code_in_text(page: str) -> list[str]:
    """Return each line of a block, whatever its language, and each piece of code in a sentence."""
    text = PAGES[page].replace("\\\n", " ")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    text = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4,}(\S.*)$", text, re.MULTILINE)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
    return [*"".join(fenced).splitlines(), *indented, *inline]


# ------------------------------------------------------------------ the commands

PACKAGES = ("reports", "rnn", "rnn_search", "search", "studies")

SEQUENCES = {
    "README": ["README.md"],
    "SQLite": [
        f"docs/how-to/{name}.md"
        for name in (
            *("prune", "compare", "test-hypotheses", "sample-and-export", "analyse"),
            *("share-a-study", "dashboard", "extend", "search-your-own-cell", "manage-studies"),
        )
    ],
    "First steps": [
        "docs/index.md",
        "docs/tutorial.md",
        "docs/how-to/use-your-own-text.md",
        "docs/how-to/tune-the-learning-rate.md",
        "docs/questions.md",
    ],
    "Imports": ["docs/how-to/import-results.md"],
    "Tasks": [OWN_DATA, "docs/reference/tasks.md"],
    "PostgreSQL": ["docs/how-to/many-machines.md"],
}
"""Pages whose commands and Python run one after another, in one storage each."""

BEFORE = {
    "SQLite": [
        ["rnn-search", "run", "stage-one"],
        ["rnn-search", "refine", "stage-two"],
        ["rnn-search", "refine", "replicates"],
    ]
}
"""Commands whose studies the pages of a sequence are about."""

FILES = {
    "my-study.toml": ("docs/index.md", "toml", 0),
    "my-longer.toml": ("docs/tutorial.md", "toml", 1),
    "my-rates.toml": ("docs/how-to/tune-the-learning-rate.md", "toml", 0),
    "results.csv": ("docs/how-to/import-results.md", "csv", 0),
    "my-cells.toml": (OWN_CELL, "toml", 0),
    "my_cells.py": (OWN_CELL, "python", 0),
    "weather.toml": (OWN_DATA, "toml", 0),
    "gestures.toml": (OWN_DATA, "toml", 1),
}
"""Blocks that a reader writes to a file: the page, the language and the number of each."""

FEW = [f"--set=space.{gate}_gate=[false]" for gate in ("input", "forget", "output")]
STAGE_ONE = (*TINY, *FEW, "--set=space.layers=[1]", "--set=space.state_size=[32]")
SMALLER = {
    "stage-one": STAGE_ONE,
    "stage-one-rates": STAGE_ONE,
    "quick": (*TINY, *FEW),
    "stage-two": (*TINY, "--set=refinement.variants=[{}, {state_size=33}]"),
    "replicates": ["--set=refinement.top=2", "--set=refinement.replicates=2"],
    "cells": (*TINY, "--set=space.state_size=[8]"),
    "baselines": (*TINY, "--set=space.layers=[1]", "--set=space.state_size=[8]"),
}
"""Overrides that make the search of a study small; a derived study inherits most of them."""

ON_TASKS = {
    "weather.toml": 48,
    "gestures.toml": 30,
    "examples/tasks/delayed_echo.toml": 20,
    "examples/tasks/pulse_order.toml": 30,
    "examples/tasks/quantiles.toml": 48,
}
"""Studies of tasks other than text, and the steps of their sequences."""


def read_subcommand(command: list[str]) -> list[str]:
    """Return the words of a command as they follow ``rnn-search``; [] for another program."""
    match command:
        case ["rnn-search", *words] | ["python", "-m", "rnn_search", *words]:
            return words
        case ["python", program, *words] if program in ALIASES:
            return [ALIASES[program], *words]
    return []


def make_smaller(command: list[str], text: Path) -> list[str]:
    """Return the arguments that make a command's work small."""
    match read_subcommand(command):
        case ["run", "deeper", *_] | ["run", _, "--trial", *_]:  # stored
            return []
        case ["run" | "refine" as name, *words]:
            study = next((word for word in words[:1] if not word.startswith("-")), "")
            if study in ON_TASKS:
                return [
                    f"--set=training.{name}={ON_TASKS[study]}" for name in ("steps", "log_every")
                ]
            options = [*SMALLER.get(study or ("stage-one" if name == "run" else ""), TINY)]
            for steps in re.findall(r"training\.steps=(\d+)", " ".join(words)):
                options += [f"--set=training.steps={int(steps) // 250}"]
            for replicates in re.findall(r"refinement\.replicates=(\d+)", " ".join(words)):
                options += [f"--set=refinement.replicates={max(2, int(replicates) // 5)}"]
            given = "--corpus" in words or name == "refine"
            return options if given else [*options, "--corpus", str(text)]
    return {
        "make demo": [f"OVERRIDES={shlex.join([*TINY, *FEW])}", "WORKERS=1"],
        "rnn-search dashboard": ["--help"],  # it would serve until it is stopped
        "make test": ["TESTS=tests/rnn/test_optimizer.py", "WORKERS=0"],
    }.get(" ".join(command[:2]), [])


@pytest.fixture
def checkout(tmp_path, text) -> Path:
    """Copy of the tracked and untracked files, with the virtual environment of the tests."""
    folder = tmp_path / "checkout"
    copy_checkout(folder)
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    for name, (page, language, number) in FILES.items():
        (folder / name).write_text(blocks(page, language)[number], encoding="utf-8")
    shutil.copy(text, folder / "my-text.txt")
    return folder


@pytest.fixture
def environment(checkout, tmp_path, monkeypatch):
    """Environment variables as after ``. .venv/bin/activate``, with an empty storage."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "MAKE"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # The tests that `make test` runs must not clean the temporary folders of this one.
    inherited["PYTEST_DEBUG_TEMPROOT"] = str(tmp_path)
    url = f"sqlite:///{checkout}/studies/studies.db"
    ours = {"RNN_SEARCH_STORAGE": url, "RNN_SEARCH_ARTIFACTS": str(tmp_path / "artifacts")}
    for name, value in ours.items():  # of documented Python
        monkeypatch.setenv(name, value)
    return {**inherited, "PATH": path, **ours}


def test_commands_and_python_of_every_page_are_run():
    in_sequences = {page for pages in SEQUENCES.values() for page in pages}
    assert {page for page in PAGES if blocks(page, "sh")} <= in_sequences
    with_python = {page for page in PAGES if blocks(page, "python")}
    assert with_python <= in_sequences | set(PYTHON_PAGES)
    assert commands_of("".join(blocks("README.md", "sh")))[:2] == [
        ["make", "demo"],
        ["make", "test"],
    ]


@pytest.mark.extended
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_every_command_runs(sequence, environment, checkout, text, run, request, tmp_path):
    def run_command(command: list[str]) -> None:
        if command[0] == "export":
            name, _, value = command[1].partition("=")
            assert name in environment
            if value.startswith("postgresql+psycopg://"):
                environment[name] = request.getfixturevalue("postgresql_url")
            return
        if command[0] == ".":
            assert (checkout / command[1]).is_file()
            return
        words = [*command, *make_smaller(command, text)]
        if read_subcommand(command)[:1] == ["export"]:
            words[-1] = str(tmp_path / words[-1])
        if subcommand := read_subcommand(words):
            variables = {k: v for k, v in environment.items() if k.startswith("RNN_SEARCH_")}
            done = run(*subcommand, cwd=checkout, report=False, **variables)
        else:
            options = {"capture_output": True, "text": True}
            done = subprocess.run(words, cwd=checkout, env=environment, **options)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command == ["make", "demo"]:
            report = [line for line in done.stdout.splitlines() if line.endswith(".html")][-1]
            page_text = (checkout / report).read_text(encoding="utf-8")
            assert page_text.startswith("<!DOCTYPE html>")

    for command in BEFORE.get(sequence, []):
        run_command(command)
    for page in SEQUENCES[sequence]:
        namespace: dict[str, object] = {}
        for language, code in re.findall(r"^```(sh|python)\n(.*?)^```", PAGES[page], re.M | re.S):
            if language == "sh":
                for command in commands_of(code):
                    run_command(command)
            elif page not in PYTHON_PAGES:
                with contextlib.chdir(checkout):
                    exec(code, namespace)
    if sequence == "SQLite":
        storage = environment["RNN_SEARCH_STORAGE"]
        extended = optuna.load_study(study_name="deeper", storage=storage)
        assert {trial.params["layers"] for trial in extended.trials} == {2, 3}
        longer = optuna.load_study(study_name="longer", storage=storage)
        assert {trial.last_step for trial in longer.trials} == {8}


# ------------------------------------------------------------------ the blocks

OWN_TASK = """
import numpy as np

class Adding:
    input_size = output_size = 1

    def __init__(self, *, length: int = 50, noise: float = 0.0):
        self.length = length

    def sample(self, split, rng, count):
        values = rng.uniform(size=(count, self.length))
        return {"inputs": values, "targets": values.sum(1)}
"""

SMALL_SPACE = {"layers": [1, 2], "state_size": [32, 256], "cell": ["gated"]}
"""What a documented part of a study file is completed with."""


def resolve_settings(text: str, folder: Path) -> StudyConfig:
    """Validate a study file, or a part of one that is completed to a study."""
    settings = tomllib.loads(text)
    space = settings.get("space", {})
    if "refinement" not in settings and isinstance(space, dict):
        settings["space"] = SMALL_SPACE | space
    file = ConfigFile(name="a", origin="a", settings=settings, folder=folder)
    file, _ = load_tasks(load_cells(file), None)
    return file.resolve()


@pytest.fixture
def cells_folder(tmp_path) -> Path:
    """Folder with the cells, the task and the data that documented study files name."""
    shutil.copytree(ROOT / "examples" / "cells", tmp_path / "examples" / "cells")
    (cell,) = blocks(OWN_CELL, "python")
    (tmp_path / "my_cells.py").write_text(cell, encoding="utf-8")
    (tmp_path / "my_task.py").write_text(OWN_TASK, encoding="utf-8")
    (tmp_path / "my-text.txt").write_bytes(TEXT)
    with contextlib.chdir(tmp_path):
        for block in blocks(OWN_DATA, "python"):
            exec(block, {})
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")])
def test_documented_settings_are_valid(page, cells_folder):
    for text in blocks(page, "toml"):
        resolve_settings(text, cells_folder)


@pytest.mark.parametrize(
    ("page", "number", "trials"),
    [
        ("README.md", 0, 24),
        ("docs/reference/study-file.md", 0, 432),
        ("docs/reference/study-file.md", 2, 4 * 3 * 4),
        ("docs/reference/study-file.md", 3, 1 + 2),
        ("docs/reference/study-file.md", 4, 2 + 4),
        ("docs/reference/study-file.md", 5, 2 * 96 + 2 * 2),
        (OWN_CELL, 0, 12),
        (OWN_DATA, 0, 24),
        (OWN_DATA, 1, 16),
        (OWN_DATA, 2, 16),
    ],
)
def test_documented_studies_have_the_trials_that_the_page_says(page, number, trials, cells_folder):
    config = resolve_settings(blocks(page, "toml")[number], cells_folder)
    assert config.grid.count() == trials


STUDIES_OF_TASKS = sorted((ROOT / "examples" / "tasks").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES_OF_TASKS, ids=lambda path: path.stem)
def test_study_of_an_example_task_is_valid(path):
    config = resolve_settings(path.read_text(encoding="utf-8"), path.parent)
    assert config.grid.count() == 4


@pytest.mark.extended
def test_documented_python_runs(sqlite_url, text, monkeypatch, tmp_path, capsys):
    """On a storage with the study that the page names."""
    (tmp_path / "my-study.toml").write_text(blocks("README.md", "toml")[0], encoding="utf-8")
    shutil.copytree(ROOT / "examples" / "cells", tmp_path / "examples" / "cells")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RNN_SEARCH_STORAGE", sqlite_url)
    small = {"training.steps": 4, "training.batch_size": 4, "training.sequence_length": 8}
    small |= {"training.log_every": 2, "evaluation.windows": 2, "evaluation.window_length": 8}
    run = rnn_search.run

    few = {f"space.{gate}_gate": [False] for gate in ("input", "forget", "output")}

    def run_small(study, overrides=(), workers=1, **options):
        changed = dict(overrides) | small | (few if study == "quick" else {})
        return run(study, overrides=changed, corpus=text, **options)

    monkeypatch.setattr(rnn_search, "run", run_small, raising=False)
    for page in PYTHON_PAGES:
        namespace: dict[str, object] = {}
        for block in blocks(page, "python"):
            exec(block, namespace)
    assert (tmp_path / "quick.html").is_file()


FENCES = {"", "bash", "csv", "python", "sh", "text", "toml", "yaml"}
"""Languages of blocks; tests run those of ``sh`` and ``python`` and validate those of ``toml``."""


@pytest.mark.parametrize("page", PAGES)
def test_every_block_starts_its_line_and_names_a_known_language(page):
    fences = re.findall(r"^( *)```(.*)$", PAGES[page], re.MULTILINE)
    assert {language for _, language in fences} <= FENCES
    assert {indentation for indentation, _ in fences} <= {""}, "tests do not see indented blocks"


def find_command(words: list[str]) -> tuple[click.Command | None, list[str]] | None:
    """Return the command of this project that a command line runs, and its arguments."""
    match read_subcommand(words[words[0] == "srun" :]):
        case [name, *arguments] if not name.startswith("-"):
            context = click.Context(rnn_search_command)
            return rnn_search_command.get_command(context, name), arguments
    return None


@pytest.mark.parametrize("page", [page for page in PAGES if page not in HISTORY])
def test_every_command_in_the_text_exists_and_has_its_options(page):
    for line in code_in_text(page):
        try:
            found = find_command(shlex.split(line, comments=True) or [""])
        except ValueError:  # not a command line
            continue
        if found:
            command, arguments = found
            assert command, line
            known = {option for parameter in command.params for option in parameter.opts}
            given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
            assert given - {"--help"} <= known, line
            assert "python" not in arguments, f"two commands in a line: {line}"


def test_pages_show_the_same_first_study():
    pages = ("README.md", "docs/index.md", "docs/tutorial.md")
    assert len({blocks(page, "toml")[0] for page in pages}) == 1


def test_citation_agrees_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["title"] == project["name"]
    assert citation["version"] == rnn_search.__version__
    assert citation["license"] == project["license"]
    copyright_line = (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()[2]
    assert [author["name"] for author in citation["authors"]] == [copyright_line.split(" ", 3)[3]]


# ------------------------------------------------------------------ the pages


GENERATED = [path.relative_to(ROOT).as_posix() for path in GENERATED_PAGES]


@pytest.mark.parametrize("page", GENERATED)
def test_generated_parts_follow_from_the_code(page):
    assert generate_parts(PAGES[page]) == PAGES[page], "make reference writes them"


def test_every_generated_part_stands_on_a_page():
    pages = "".join(PAGES[page] for page in GENERATED)
    assert set(re.findall(r"<!-- generated: (.+) -->", pages)) == set(PARTS)


def test_every_setting_and_attribute_has_a_description():
    for model in (*STUDY_TABLES.values(), TrialRecord, StudyRecord):
        lacking = {name for name in model.model_fields if not describe_field(model, name)}
        filled = {"cells", "task_record", "task_records", "results"}
        assert lacking - {*STUDY_TABLES, *filled} == set(), model


def test_reference_has_every_public_name_and_environment_variable():
    named = re.findall(r"^::: rnn_search\.(\w+)$", PAGES["docs/reference/python.md"], re.MULTILINE)
    assert sorted(named) == sorted(rnn_search.__all__)
    sources = (path.read_text("utf-8") for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    named = {name for text in sources for name in re.findall(r'"(RNN_SEARCH_\w+)"', text)}
    table = PAGES["docs/reference/command-line.md"].partition("## Environment variables")[2]
    assert {name for name in named if f"\n| `{name}` |" not in table} == set()


def test_picture_of_the_readme_has_the_effects_of_the_gallery():
    assert pictures.PICTURE.read_text(encoding="utf-8") == pictures.draw_gallery()


@pytest.mark.parametrize("page", [page for page in PAGES if page not in HISTORY])
def test_every_named_file_exists(page):
    folders = "|".join((*PACKAGES, "benchmarks", "docs", "examples", "tests"))
    named = set(re.findall(rf"`((?:{folders})/[\w./-]+)`", PAGES[page]))
    written = {"reports/out/", "studies/studies.db"}
    written |= {"studies/checkpoints", "studies/jobs/", "studies/weights"}
    assert {name for name in named - written if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_has_a_target(page):
    for target, _, anchor in re.findall(r"\]\(([^)#:]*)(#([\w-]+))?\)", PAGES[page]):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{target}#{anchor}"
