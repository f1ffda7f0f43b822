"""The code in the documents: settings are valid, Python runs, commands have their options."""

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from documents import HISTORY, OWN_CELL, PAGES, PYTHON_PAGES, blocks, code_in_text
from helpers import ROOT

import reports.hypotheses
import rnn_search
import search.backup
from rnn_search.console import rnn_search_command
from search.cells import load_cells
from studies.config import StudyConfig
from studies.config_file import ConfigFile

SMALL_SPACE = {"layers": [1, 2], "state_size": [32, 256], "cell": ["gated"]}
"""What a documented part of a study file is completed with."""


def resolve_settings(text: str, folder: Path) -> StudyConfig:
    """Validate a study file, or a part of one that is completed to a study."""
    settings = tomllib.loads(text)
    space = settings.get("space", {})
    if "refinement" not in settings and isinstance(space, dict):
        settings["space"] = SMALL_SPACE | space
    file = ConfigFile(name="a", origin="a", settings=settings, folder=folder)
    return load_cells(file).resolve()


@pytest.fixture
def cells_folder(tmp_path) -> Path:
    """Folder with the cells that documented study files name."""
    shutil.copytree(ROOT / "examples" / "cells", tmp_path / "examples" / "cells")
    (cell,) = blocks(OWN_CELL, "python")
    (tmp_path / "my_cells.py").write_text(cell, encoding="utf-8")
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
        ("docs/reference/study-file.md", 1, 1 + 2),
        ("docs/reference/study-file.md", 2, 2 + 4),
        ("docs/reference/study-file.md", 3, 2 * 96 + 2 * 2),
        (OWN_CELL, 0, 12),
    ],
)
def test_documented_studies_have_the_trials_that_the_page_says(page, number, trials, cells_folder):
    config = resolve_settings(blocks(page, "toml")[number], cells_folder)
    assert config.grid.count() == trials


@pytest.mark.extended
def test_documented_python_runs(sqlite_url, text, monkeypatch, tmp_path, capsys):
    """On a storage with the study that the page names."""
    shutil.copytree(ROOT / "examples" / "cells", tmp_path / "examples" / "cells")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RNN_SEARCH_STORAGE", sqlite_url)
    small = {"training.steps": 4, "training.batch_size": 4, "training.sequence_length": 8}
    small |= {"training.log_every": 2, "evaluation.windows": 2, "evaluation.window_length": 8}
    run = rnn_search.run

    def run_small(study, overrides=(), workers=1, **options):
        return run(study, overrides=dict(overrides) | small, corpus=text, **options)

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


MODULES = {
    "run_search.py": "run",
    "refine.py": "refine",
    "reports": "report",
    "reports.dashboard": "dashboard",
    "search.check": "check",
    "search.sample": "sample",
    "search.export": "export",
}
"""The subcommand of ``rnn-search`` that is the same as a file or module."""

OTHERS = {
    "reports.hypotheses": reports.hypotheses.hypotheses_command,
    "search.backup": search.backup.backup,
}


def find_command(words: list[str]) -> tuple[click.Command | None, list[str]] | None:
    """Return the command of this project that a command line runs, and its arguments."""
    words = words[words[0] == "srun" :]
    match words:
        case ["rnn-search", name, *arguments] | ["python", "-m", "rnn_search", name, *arguments]:
            pass
        case ["python", "-m", module, *arguments] if module in OTHERS:
            return OTHERS[module], arguments
        case ["python", "-m", module, *arguments] if module in MODULES:
            name = MODULES[module]
        case ["python", module, *arguments] if module in MODULES:
            name = MODULES[module]
        case _:
            return None
    context = click.Context(rnn_search_command)
    return (
        None if name.startswith("-") else (rnn_search_command.get_command(context, name), arguments)
    )


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
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["title"] == project["name"]
    assert citation["version"] == rnn_search.__version__
    assert citation["license"] == project["license"]
    assert set(citation["keywords"]) == set(project["keywords"])
    copyright_line = (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()[2]
    assert [author["name"] for author in citation["authors"]] == [copyright_line.split(" ", 3)[3]]
