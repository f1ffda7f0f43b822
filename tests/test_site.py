"""The documentation site: built from the checkout, and read in a browser without a network."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from factories import make_baselines, make_refinement, make_stated, make_study
from helpers import ROOT, copy_checkout

from docs.generator.gallery import DATA, ENDING, MARK, SharedPages
from docs.generator.source_pages import find_pages
from docs.generator.tables import escape_pipes, make_table
from studies.exchange import export_study

NAV = re.findall(
    r"^ +- (?:[^:\n]+: )?(\S+\.md)$",
    (ROOT / "mkdocs.yml").read_text(encoding="utf-8"),
    re.MULTILINE,
)
"""Sources of the pages that the navigation names."""

PAGES = [f"{path.removesuffix('.md')}.html" for path in NAV]

SHARED_PAGES = """
[[report]]
file = "made-and-derived"
title = "Both"
studies = ["made", "derived"]

[[report]]
file = "cells-by-training"
title = "Cells, by another loss"
studies = ["cells"]
objective = "training"

[[report]]
file = "absent"
title = "A page of which a study is missing"
studies = ["made", "nothing"]

"""

REPORTS = ["made", "derived", "stated", "cells", "made-and-derived", "cells-by-training"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site of a copy of the checkout, built as by ``make docs``, with four studies."""
    folder = tmp_path_factory.mktemp("site")
    project = folder / "project"
    copy_checkout(project)
    gallery = project / "docs" / "gallery"
    for data in gallery.glob("*.jsonl.gz"):
        data.unlink()
    index = gallery / "index.md"
    _, *headings = re.findall(r"^#+ .+$", index.read_text(encoding="utf-8"), re.MULTILINE)
    # Pages link to its sections, and these to the data.
    index.write_text("\n\n".join(["# Gallery", MARK, *headings, ""]))
    storage = f"sqlite:///{folder / 'studies.db'}"
    make_study(storage, diverged=None)
    make_refinement(storage)
    make_stated(storage)
    make_baselines(storage)
    for name in ("made", "derived", "stated", "cells"):
        export_study(storage, name, gallery / f"{name}.jsonl.gz")
    (gallery / "pages.toml").write_text(SHARED_PAGES)
    notebook = project / "docs" / "notebook.ipynb"
    short = notebook.read_text(encoding="utf-8").replace('\\"steps\\": 600', '\\"steps\\": 60')
    notebook.write_text(short, encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder / "site"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    environment.pop("PYTHONPATH", None)  # the copy's packages, not those of the checkout
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.mark.extended
def test_gallery_has_a_report_of_each_study_and_of_several(site):
    pages = {path.stem: path.read_text("utf-8") for path in (site / "gallery").glob("*.html")}
    assert {*pages} == {*REPORTS, "index"}
    linked = {*re.findall(r'href="?([^" >]+)', pages["index"])}
    assert {f"{name}.html" for name in REPORTS} <= linked
    assert "The residual lowers the loss." in pages["stated"]
    assert "smoothed training loss" in pages["cells-by-training"]
    assert "smoothed training loss" not in pages["cells"]
    assert (site / "gallery" / "made.jsonl.gz").is_file()
    for path in site.rglob("*.html"):
        assert str(site.parent) not in path.read_text("utf-8"), "it names a folder"


@pytest.mark.extended
def test_site_opens_and_is_searched_from_files_without_a_network(site, open_page):
    """On a phone: every page fits its width, and asks for nothing but files."""
    with open_page(site / "index.html", width=390) as page:
        for name in (*PAGES, *(f"gallery/{each}.html" for each in REPORTS)):
            page.goto((site / name).as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    with open_page(site / "index.html") as page:
        page.click(".md-search__input")
        page.keyboard.type("heartbeat")
        page.locator(".md-search-result__link[href*='/reliability.html']:visible").first.click()
        page.wait_for_url("**/reliability.html*")


@pytest.mark.extended
def test_notebook_is_executed_and_its_figures_are_drawn(site, open_page):
    cells = json.loads((ROOT / "docs/notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    with open_page(site / "notebook.html") as page:
        page.wait_for_selector(".js-plotly-plot .main-svg")
        assert page.locator(".js-plotly-plot").count() == 3
        assert "36 of 36 finished" in page.inner_text("article")


def test_gallery_describes_each_of_its_studies():
    page = (DATA / "index.md").read_text(encoding="utf-8")
    assert MARK in page
    for path in DATA.glob(f"*{ENDING}"):
        name = path.name.removesuffix(ENDING)
        section = page.partition(f"\n## `{name}`\n")[2].partition("\n## ")[0]
        assert f"]({path.name})" in section
    pages = SharedPages.model_validate(tomllib.loads((DATA / "pages.toml").read_text()))
    assert [page.file for page in pages.report]


def test_files_that_a_page_links_to_are_shown_in_the_site():
    assert {"LICENSE", "CITATION.cff"} <= set(find_pages(["docs/questions.md"]))


def test_pipe_in_the_code_of_a_table_has_no_backslash_in_the_site():
    table = make_table(("option", "default"), [("`--launch a|b`", "`a`")])
    assert escape_pipes(table).endswith("| <code>--launch a&#124;b</code> | `a` |\n")
    assert escape_pipes("`a\\|b`\n") == "`a\\|b`\n"
