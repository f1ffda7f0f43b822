"""The page of a report: its HTML, its first screen, and the whole page in a browser, offline."""

import base64
import csv
import gzip
import json
import re
from html.parser import HTMLParser

import pytest
from factories import (
    make_pruned,
    make_refinement,
    make_replicates,
    make_stated,
    make_study,
    make_union,
)
from process_runner import wait_until

from reports.page.page import write_report

VOID = {"br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
"""Elements without an end tag."""

QUESTION = "Which switches help a small network that has little memory?"

MARKUP = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
"""Name of a study and question that a browser must not execute."""

NAMES = ["stated", "made", "derived", MARKUP]

MAX_HEIGHT = 20 * 800
"""Height in pixels of the page of these studies on a wide screen: of twenty screens."""


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
def page_file(tmp_path_factory):
    """File of a page about a grid, a small study, its refinement, and a union."""
    folder = tmp_path_factory.mktemp("page")
    url = f"sqlite:///{folder}/studies.db"
    make_stated(url, question=QUESTION)
    make_study(url, report_threshold=2.05, worker=f"</script>{MARKUP}")
    make_refinement(url)
    make_union(url, MARKUP, missing=[7], question=MARKUP)
    return write_report(url, NAMES, folder / "page.html").path


def test_page_is_well_formed_and_self_contained_and_each_figure_is_named(page_file):
    page = Page(page_file.read_text(encoding="utf-8"))
    headings = [page.texts[f"s{i}"] for i in range(1, len(NAMES) + 1)]
    assert headings == [[QUESTION], ["made"], ["derived"], [MARKUP]]
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
    assert "plotly.js" in page.decompress("plotly")[:200]

    figures = json.loads(page.decompress("figures"))
    plots = [found for _, found in page.elements if "plot" in (found.get("class") or "").split()]
    assert [int(plot["data-figure"]) for plot in plots] == list(range(len(figures)))
    titles = {plot["aria-label"].partition(".")[0] for plot in plots}
    assert {"PED-ANOVA", "fANOVA", "Training curves", "From the source to each variant"} <= titles
    for plot in plots:
        figure = figures[int(plot["data-figure"])]
        assert figure["layout"]["template"]["layout"]["font"]["family"].startswith("system-ui")
        traces = figure["data"]
        assert not any("gl" in trace["type"] for trace in traces), "no WebGL, of which few may live"
        assert any(trace.get(name) for trace in traces for name in ("x", "y", "z", "dimensions"))


ORDER = [
    *("effects", "conditional", "hypotheses", "importances", "refinement"),
    *("replicates", "curves", "leaderboard", "cost", "memory", "source", "pruning", "setup"),
]
"""Names of the sections of a study's page."""

WITHOUT_DATA = {
    (make_stated, "stated"): "refinement replicates cost memory pruning",
    (
        make_replicates,
        "replicates",
    ): "conditional hypotheses refinement memory pruning",
    (make_pruned, "made"): "conditional hypotheses refinement replicates cost memory",
}
"""Names of the sections that a study has nothing to show in; Optuna's figures are not drawn."""


@pytest.mark.parametrize(("study", "absent"), WITHOUT_DATA.items())
def test_sections_have_a_fixed_order_and_are_absent_without_data(build_page, study, absent):
    sections = build_page(*study).sections
    left_out = {"importances", *absent.split()}
    assert list(sections) == [name for name in ORDER if name not in left_out]


def test_first_screen_says_what_was_not_measured(build_page):
    pruned = build_page(make_pruned, audited=()).words
    assert "Noise between runs not measured Replicates" in pruned, "no effect has an interval"
    assert "no trial was audited, so no effect can be estimated" in pruned
    assert "what was lost is not measured" in pruned
    replicated = build_page(make_replicates, "replicates").words
    assert "Noise between runs not" not in replicated
    assert "Replicates 3 runs of each architecture" in replicated
    unfinished = build_page(make_study, "made", finished=5).words
    assert "so far: 5 of 8 trials are finished" in unfinished
    assert "whether any change has an effect is not known" in unfinished
    assert "not measured intervals use the differences between pairs instead" in unfinished
    assert "Replicates none a ranking of single runs is partly luck" in unfinished


# ------------------------------------------------------------------ in a browser

MARKS = """(plot) => plot.querySelector(
    '.trace path, .trace .point, .points path, .hm image') !== null"""

# What lies outside its place: the page, or of a text in a figure the figure; both may scroll.
CUT_OFF = """() => {
    const outside = (inner, outer) => inner.left < outer.left - 1 || inner.right > outer.right + 1;
    const page = { left: 0, right: document.documentElement.clientWidth }, found = [];
    for (const element of document.querySelectorAll('main *:not(caption), footer *')) {
        const box = element.getBoundingClientRect(), plot = element.closest('.plot.drawn');
        if (!box.width || !box.height) continue;
        const figure = plot?.getBoundingClientRect();
        const isText = plot && element.matches('text:not(.hoverlayer *)');
        if (element.parentElement.closest('.scroll') ? isText && (outside(box, figure)
            || box.top < figure.top - 30 || box.bottom > figure.bottom + 1) : outside(box, page))
            found.push([element.tagName, element.textContent, plot?.ariaLabel]);
    }
    return found;
}"""


def bottom_of(element):
    box = element.bounding_box()
    return box["y"] + box["height"]


@pytest.mark.extended
@pytest.mark.parametrize(
    ("width", "height", "at_once"),
    [(1200, 800, ("h1", ".answer", ".first .plot", ".limits")), (390, 844, ("h1", ".answer"))],
)
def test_page_begins_with_the_answer_and_draws_every_chart_offline(
    open_page, page_file, width, height, at_once
):
    with open_page(page_file, width, height) as page:
        figure = page.locator(".first .plot.drawn").first
        figure.wait_for()
        for selector in at_once:
            assert bottom_of(page.locator(selector).first) <= height, selector
        assert figure.bounding_box()["y"] < height - 50, "it begins on the first screen"
        assert figure.bounding_box()["width"] <= 760, "no wider than it needs"
        title = figure.locator(".xtitle").bounding_box()
        assert 0 <= title["x"] <= title["x"] + title["width"] <= width
        plots = page.locator(".plot")
        for i in range(plots.count()):
            plot = plots.nth(i)
            plot.scroll_into_view_if_needed()
            page.wait_for_function(
                "plot => plot.classList.contains('drawn')", arg=plot.element_handle()
            )
            wait_until(lambda plot=plot: plot.evaluate(MARKS))
        assert page.locator("h1").all_inner_texts() == [QUESTION, "made", "derived", MARKUP]
        assert page.title() == "stated, made, derived, " + MARKUP
        assert page.locator("img").count() == 0
        first = page.get_by_role("table", name=f"{MARKUP} effects").locator("tbody tr").first
        assert first.locator("td").first.inner_text().startswith("−0.225 * [")
        if width == 1200:
            assert page.evaluate("document.documentElement.scrollHeight") < MAX_HEIGHT
        page.evaluate(
            "for (const part of document.querySelectorAll('main details')) part.open = true"
        )
        assert page.evaluate(CUT_OFF) == []


@pytest.mark.extended
@pytest.mark.parametrize(("width", "is_menu"), [(1200, False), (390, True)])
def test_contents_lead_to_each_section(open_page, page_file, width, is_menu):
    with open_page(page_file, width) as page:
        contents = page.locator(".contents")
        link = contents.locator("a", has_text="Leaderboard").nth(1)
        assert link.is_visible() != is_menu
        if is_menu:
            contents.locator("summary").click()
        link.click()
        heading = page.locator(link.get_attribute("href"))
        wait_until(lambda: 0 <= heading.bounding_box()["y"] < 200)
        assert link.is_visible() != is_menu, "the menu closes"


@pytest.mark.extended
def test_tables_are_sorted_and_downloaded(open_page, page_file, tmp_path):
    with open_page(page_file) as page:
        table = page.get_by_role("table", name="made leaderboard")
        losses = table.locator("tbody tr td:nth-child(3)")
        shown = losses.all_inner_texts()
        assert shown == sorted(shown)
        header = table.get_by_role("button", name=re.compile("^validation loss"))
        header.click()
        assert losses.all_inner_texts() == shown
        header.click()
        assert losses.all_inner_texts() == shown[::-1]
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"

        def read_csv(table, name):
            button = table.locator("xpath=../following-sibling::div[@class='tools']/button")
            with page.expect_download() as download:
                button.first.click()
            assert download.value.suggested_filename == name
            download.value.save_as(tmp_path / name)
            return list(csv.DictReader((tmp_path / name).open(encoding="utf-8")))

        page.locator("details", has_text="All trials").nth(1).locator("summary").click()
        rows = read_csv(page.get_by_role("table", name="made trials"), "made-trials.csv")
        assert [row["trial"] for row in rows] == ["0", "1", "2", "4", "5", "6", "7", "3"]
        losses = [row["loss nats per byte"] for row in rows]
        assert losses == ["1.5", "1.6", "1.7", "1.9", "2", "2.1", "2.2", ""]
        assert {row["residual"] for row in rows} == {"on", "off"}
        rows = read_csv(page.get_by_role("table", name="stated effects"), "stated-effects.csv")
        marked = {row["change"] for row in rows if row["note"] == "*"}
        assert marked == {"new state", "state size 8 → 16"}
        read_csv(page.get_by_role("table", name="stated hypotheses"), "stated-hypotheses.csv")


@pytest.mark.extended
@pytest.mark.parametrize(
    "browser_of",
    [{"java_script_enabled": False}, {"before": "delete window.DecompressionStream"}],
    ids=["no JavaScript", "browser before 2023"],
)
def test_page_without_figures_has_its_text_and_tables(open_page, page_file, browser_of):
    with open_page(page_file, **browser_of) as page:
        assert page.get_by_text("Figures are not drawn").is_visible()
        for selector in (".answer", ".contents a", "table.sortable tbody tr", ".chart .title"):
            assert page.locator(selector).first.is_visible(), selector
        plots = page.locator(".plot").all()
        assert len(plots) > 10
        assert not any(plot.is_visible() for plot in plots)
