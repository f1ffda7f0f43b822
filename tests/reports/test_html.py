"""The report as HTML: well-formed and self-contained."""

import base64
import gzip
import json
from html.parser import HTMLParser

import pytest
from factories import make_refinement, make_union, read_studies

from reports.page.page import render_page
from reports.page.section import build_sections

VOID = {"br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
"""Elements without an end tag."""


class Page(HTMLParser):
    """Parser of a page that fails if elements are not properly nested.

    Attributes:
        elements: name and attributes of each element.
        texts: texts directly in an element, by its id or else its name.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag, f"line {self.getpos()[0]}"

    def handle_data(self, data):
        if self._open:
            tag, attributes = self._open[-1]
            self.texts.setdefault(attributes.get("id") or tag, []).append(data)

    def every(self, name: str) -> list[str]:
        """Return all values of an attribute."""
        return [found for _, attributes in self.elements if (found := attributes.get(name))]

    def decompress(self, identifier: str) -> str:
        """Return the text of a compressed script element."""
        return gzip.decompress(base64.b64decode("".join(self.texts[identifier]))).decode()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('page')}/studies.db"
    make_refinement(url)
    return Page("".join(render_page(build_sections(read_studies(url, "made", "derived")))))


def test_page_is_well_formed_and_self_contained(page):
    assert [page.texts[f"s{i}"] for i in (1, 2)] == [["made"], ["derived"]]
    identifiers = page.every("id")
    assert len(set(identifiers)) == len(identifiers)
    links = page.every("href")
    assert len(links) > 10
    assert [link for link in links if link.removeprefix("#") not in identifiers] == []
    assert page.every("src") == []
    assert "link" not in {tag for tag, _ in page.elements}
    (style,) = page.texts["style"]
    assert "url(" not in style
    assert "@import" not in style


def test_page_of_a_union_is_well_formed(build_page):
    assert Page(build_page(make_union, "union").html).texts["s1"] == ["union"]


def test_every_chart_has_data_and_a_text_alternative(page):
    figures = json.loads(page.decompress("figures"))
    plots = [found for _, found in page.elements if "plot" in (found.get("class") or "").split()]
    assert len(plots) >= 17
    assert [int(plot["data-figure"]) for plot in plots] == list(range(len(figures)))
    titles = {plot["aria-label"].partition(". ")[0] for plot in plots}
    assert {"PED-ANOVA", "fANOVA", "Training curves", "From the source to each variant"} <= (titles)
    for plot in plots:
        _, _, alt_text = plot["aria-label"].partition(". ")
        assert 20 < len(alt_text) < 4000
        traces = figures[int(plot["data-figure"])]["data"]
        assert any(trace.get(name) for trace in traces for name in ("x", "y", "z", "dimensions"))
    assert set(json.loads("".join(page.texts["themes"]))) == {"light", "dark"}
    assert "plotly.js" in page.decompress("plotly")[:200]
