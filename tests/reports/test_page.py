"""The page of a report: its HTML, its first screen, and the whole page in a browser, offline."""

import base64
import csv
import gzip
import json
import re
from html.parser import HTMLParser

import pytest
from factories import make_refinement, make_replicates, make_stated, make_study, make_union
from process_runner import wait_until
from test_pruning_audit import make_pruned

from reports.page.page import write_report

VOID = {"br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
"""Elements without an end tag."""

QUESTION = "Which switches help a small network that has little memory?"

MARKUP = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
"""Name of a study and question that a browser must not execute."""

NAMES = ["stated", "made", "derived", MARKUP]


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


def test_page_is_well_formed_and_self_contained_and_each_chart_has_a_text_alternative(page_file):
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
    assert set(json.loads("".join(page.texts["themes"]))) == {"light", "dark"}

    figures = json.loads(page.decompress("figures"))
    plots = [found for _, found in page.elements if "plot" in (found.get("class") or "").split()]
    assert [int(plot["data-figure"]) for plot in plots] == list(range(len(figures)))
    titles = {plot["aria-label"].partition(". ")[0] for plot in plots}
    assert {"PED-ANOVA", "fANOVA", "Training curves", "From the source to each variant"} <= titles
    for plot in plots:
        _, _, alt_text = plot["aria-label"].partition(". ")
        assert 20 < len(alt_text) < 4000
        traces = figures[int(plot["data-figure"])]["data"]
        assert any(trace.get(name) for trace in traces for name in ("x", "y", "z", "dimensions"))


def test_first_screen_says_what_was_not_measured(build_page):
    unmeasured = "Noise between runsnot measured"
    pruned = build_page(make_pruned, "made", audited=()).words
    assert unmeasured in pruned
    assert "No trial was audited, so no effect can be estimated." in pruned
    assert "what was lost is not measured" in pruned
    replicated = build_page(make_replicates, "replicates").words
    assert unmeasured not in replicated
    assert "Replicates3 runs of each architecture" in replicated
    unfinished = build_page(make_study, "made", finished=5).words
    assert "Unfinished: 5 of 8 trials." in unfinished
    assert "whether any change has an effect on the validation loss is not known" in unfinished
    assert "are undecided (too few pairs to test: 1 of 8)" in unfinished


# ------------------------------------------------------------------ in a browser

FIRST_CURVE = """() => {
    const plot = document.querySelectorAll('.curves .plot')[1], box = plot.getBoundingClientRect();
    const {xaxis, yaxis} = plot._fullLayout, {x, y} = plot._fullData[0];
    return [box.left + xaxis._offset + xaxis.d2p(x[1]), box.top + yaxis._offset + yaxis.d2p(y[1])];
}"""

# Marks of every kind of trace; WebGL canvases are read back pixel by pixel.
MARKS = """async (plot) => {
    if (plot.querySelector('.trace path, .trace .point, .points path, .contour path, .hm image'))
        return true;
    for (const canvas of plot.querySelectorAll('canvas')) {
        const picture = new Image();
        picture.src = canvas.toDataURL();
        await picture.decode();
        const copy = document.createElement('canvas').getContext('2d');
        [copy.canvas.width, copy.canvas.height] = [picture.width, picture.height];
        copy.drawImage(picture, 0, 0);
        const pixels = copy.getImageData(0, 0, picture.width, picture.height).data;
        if (new Set(new Uint32Array(pixels.buffer)).size > 1) return true;
    }
    return false;
}"""


def bottom_of(element):
    box = element.bounding_box()
    return box["y"] + box["height"]


@pytest.mark.extended
@pytest.mark.parametrize(
    ("width", "height", "scheme", "paper", "at_once"),
    [
        (1200, 800, "dark", "rgb(20, 23, 27)", ("h1", ".answer", ".first .plot", ".limits")),
        (390, 844, "light", "rgb(255, 255, 255)", ("h1", ".answer")),
    ],
)
def test_page_begins_with_the_answer_and_draws_every_chart_offline(
    open_page, page_file, width, height, scheme, paper, at_once
):
    with open_page(page_file, width, height, color_scheme=scheme) as page:
        figure = page.locator(".first .plot.drawn").first
        figure.wait_for()
        for selector in at_once:
            assert bottom_of(page.locator(selector).first) <= height, selector
        assert figure.bounding_box()["y"] < 700
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
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        assert page.locator("h1").all_inner_texts() == [QUESTION, "made", "derived", MARKUP]
        assert page.title() == "stated, made, derived, " + MARKUP
        assert page.locator("img").count() == 0
        first = page.get_by_role("table", name=f"{MARKUP} effects").locator("tbody tr").first
        assert first.locator("td").first.inner_text().startswith("+0.100")


@pytest.mark.extended
def test_curve_is_named_isolated_and_colored(open_page, page_file):
    with open_page(page_file) as page:
        curves = page.locator(".curves").nth(1)
        curves.scroll_into_view_if_needed()
        curves.locator(".plot.drawn").wait_for()
        hover = curves.locator(".hoverlayer .hovertext")

        def is_named():
            # Charts above that are being drawn move it.
            page.mouse.move(*page.evaluate(FIRST_CURVE))
            return hover.count()

        wait_until(is_named)
        # The diverged trial comes last; its curve is shown as well.
        assert "step 100: 1.8000 nats" in hover.text_content()
        assert "trial 3: 2×8 no gates, new state" in hover.text_content()

        page.mouse.click(*page.evaluate(FIRST_CURVE))
        alone = curves.locator(".isolated")
        alone.filter(has_text="trial 3: 2×8 no gates, new state").wait_for()
        assert curves.locator("svg.alone polyline").count() == 1
        page.keyboard.press("Escape")
        assert curves.locator("svg.alone").count() == 0
        assert alone.inner_text() == ""

        curves.locator("select").select_option("residual")
        assert curves.locator("span.legend").inner_text().split() == ["off", "on"]
        colors = curves.locator(".plot").evaluate(
            "plot => new Set(plot.data.map(trace => trace.line.color)).size"
        )
        assert colors == 2


@pytest.mark.extended
def test_tables_are_sorted_and_downloaded(open_page, page_file, tmp_path):
    with open_page(page_file) as page:
        table = page.get_by_role("table", name="made leaderboard")
        losses = table.locator("tbody tr td:nth-child(3)")
        shown = losses.all_inner_texts()
        assert shown == sorted(shown)
        header = table.get_by_role("button", name=re.compile("^loss"))
        header.click()
        assert losses.all_inner_texts() == shown
        header.click()
        assert losses.all_inner_texts() == shown[::-1]
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"

        trials = page.locator("details.all-trials").nth(1)
        trials.evaluate("details => details.open = true")
        with page.expect_download() as download:
            trials.locator("button.csv").click()
        assert download.value.suggested_filename == "made-trials.csv"
        download.value.save_as(tmp_path / "trials.csv")
        rows = list(csv.DictReader((tmp_path / "trials.csv").open(encoding="utf-8")))
        assert [row["trial"] for row in rows] == ["0", "1", "2", "4", "5", "6", "7", "3"]
        assert [row["loss"] for row in rows] == ["1.5", "1.6", "1.7", "1.9", "2", "2.1", "2.2", ""]
        assert {row["residual"] for row in rows} == {"on", "off"}


@pytest.mark.extended
def test_every_chart_is_printed_on_white(open_page, page_file):
    with open_page(page_file, color_scheme="dark") as page:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate("document.documentElement.dataset.theme") == "light"
        page.wait_for_function(
            "document.querySelectorAll('.plot:not(.webgl, .drawn)').length === 0 && "
            "document.querySelectorAll('.plot .points').length > 0"
        )
        page.emulate_media(media="print")
        # Buttons and menus are not printed; parts of charts are.
        display = (
            "[...document.querySelectorAll('.plot .points')].map(e => getComputedStyle(e).display)"
        )
        assert "none" not in page.evaluate(display)
        assert not page.locator(".tools").first.is_visible()
        page.emulate_media(media="screen")
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.extended
@pytest.mark.parametrize(
    ("browser_of", "text"),
    [
        ({"java_script_enabled": False}, ".alt-text summary"),
        ({"before": "delete window.DecompressionStream"}, ".alt-text p"),
    ],
    ids=["no JavaScript", "browser before 2023"],
)
def test_page_has_texts_in_place_of_figures_that_cannot_be_drawn(
    open_page, page_file, browser_of, text
):
    with open_page(page_file, **browser_of) as page:
        assert page.get_by_text("Figures are not drawn").is_visible()
        assert page.locator(".answer").first.is_visible()
        assert page.locator(".contents a").first.is_visible()
        texts, plots = page.locator(text).all(), page.locator(".plot").all()
        assert len(texts) == len(plots) > 10
        assert all(each.is_visible() for each in texts)
        assert not any(each.is_visible() for each in plots)
