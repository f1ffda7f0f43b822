"""The documents: every study file is valid, every name, option and link exists.

Their commands and their Python run in ``test_documented_commands.py``.
"""

import contextlib
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from documents import PAGES, blocks, read_blocks, read_subcommand, split_commands
from helpers import ROOT, TEXT, write_chorales

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

HISTORY = {"CHANGELOG.md"}
"""Pages that may name files of earlier versions."""

PACKAGES = ("reports", "rnn", "rnn_search", "search", "studies")


def code_in_text(page: str) -> list[str]:
    """Return each line of a block, whatever its language, and each piece of code in a sentence."""
    text = PAGES[page].replace("\\\n", " ")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    text = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4,}(\S.*)$", text, re.MULTILINE)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
    return [*"".join(fenced).splitlines(), *indented, *inline]


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

OWN_DATA = "docs/how-to/search-on-your-own-data.md"
"""Page whose Python makes the data that its study files name."""

SMALL_SPACE = {"layers": [1, 2], "state_size": [32, 256], "cell": ["gated"]}
"""What a documented part of a study file is completed with."""


def resolve_settings(text: str, folder: Path) -> StudyConfig:
    """Validate a study file, or a part of one that is completed to a study."""
    settings = tomllib.loads(text)
    if "loop" in settings:
        return ConfigFile(name="a", origin="a", settings=settings, folder=folder).resolve()
    space = settings.get("space", {})
    if "refinement" not in settings and isinstance(space, dict):
        settings["space"] = SMALL_SPACE | space
    file = ConfigFile(name="a", origin="a", settings=settings, folder=folder)
    file, _ = load_tasks(load_cells(file), None)
    return file.resolve()


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory) -> Path:
    """Folder with the cells, the task and the data that documented study files name."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "examples" / "cells", folder / "examples" / "cells")
    for block in (block for page in PAGES for block in read_blocks(page)):
        if block.name.endswith(".py"):
            (folder / block.name).write_text(block.text, encoding="utf-8")
    (folder / "my_task.py").write_text(OWN_TASK, encoding="utf-8")
    (folder / "my-text.txt").write_bytes(TEXT)
    with contextlib.chdir(folder):
        for code in blocks(OWN_DATA, "python"):
            exec(code, {})
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")])
def test_documented_settings_are_valid(page, readers_folder):
    """A comment behind ``[space]`` that ends in a number states how many trials there are."""
    for text in blocks(page, "toml"):
        config = resolve_settings(text, readers_folder)
        for stated in re.findall(r"^\[space\] *#.* = ([\d,]+)$", text, re.MULTILINE):
            assert config.grid.count() == int(stated.replace(",", ""))


EXAMPLE_STUDIES = sorted((ROOT / "examples").rglob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLE_STUDIES, ids=lambda path: path.stem)
def test_example_study_is_valid(path, tmp_path):
    folder = path.parent
    if "chorales.py" in path.read_text(encoding="utf-8"):  # users bring its data
        folder = shutil.copytree(folder, tmp_path / "examples")
        write_chorales(folder / "tasks" / "JSB_Chorales.mat")
    config = resolve_settings(path.read_text(encoding="utf-8"), folder)
    counts = {
        "recall-and-order": 360,
        "linear-recurrences": 12,
        "state-tracking": 176,
        "learning-rate-windows": 288,
        "lstm-variants": 768,
        "chorales": 18,
    }
    assert config.grid.count() == counts.get(path.stem, 4)


FENCES = {"", "bash", "py", "python", "sh", "text", "toml", "yaml"}
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


def test_readme_begins_with_the_demo_and_the_tests():
    assert split_commands("".join(blocks("README.md", "sh")))[:2] == ["make demo", "make test"]


def test_pages_show_the_same_first_study():
    pages = ("README.md", "docs/index.md", "docs/tutorial.md")
    assert len({blocks(page, "toml")[0] for page in pages}) == 1


def test_citation_agrees_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["title"] == project["name"]
    assert citation["version"] == rnn_search.__version__
    assert citation["license"] == project["license"]
    assert f"version = {{{rnn_search.__version__}}}" in PAGES["docs/how-to/share-a-study.md"]
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
        filled = {"cells", "task_record", "task_records", "lengths", "loop_parameters", "results"}
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
