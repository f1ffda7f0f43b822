"""The report in a real browser: opened from disk, offline, with every chart drawn."""

import csv
import re
from contextlib import contextmanager

import pytest
from factories import make_study, make_union
from process_runner import wait_until

from reports.page.page import write_report

pytestmark = pytest.mark.extended

FIRST_CURVE = """() => {
    const plot = document.querySelector('.curves .plot'), box = plot.getBoundingClientRect();
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


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    url = f"sqlite:///{folder}/studies.db"
    make_study(url, report_threshold=2.05)
    make_study(url, "second", report_threshold=None)
    return write_report(url, ["made", "second"], folder / "page.html").path


@contextmanager
def opened(browser, path, width=1200, before="", **options):
    """Open a file offline, after a script; fail on console errors and network requests."""
    context = browser.new_context(
        offline=True, viewport={"width": width, "height": 900}, accept_downloads=True, **options
    )
    page = context.new_page()
    page.add_init_script(before)
    errors, requests = [], []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


def scroll_to_every_chart(page):
    """Scroll to each chart and check that it is drawn."""
    plots = page.locator(".plot")
    for i in range(plots.count()):
        plot = plots.nth(i)
        plot.scroll_into_view_if_needed()
        page.wait_for_function(
            "plot => plot.classList.contains('drawn')", arg=plot.element_handle()
        )
        wait_until(lambda plot=plot: plot.evaluate(MARKS))
    return plots.count()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "dark"), (390, "light")])
def test_page_opens_offline_and_draws_every_chart(browser, page_file, width, scheme):
    with opened(browser, page_file, width, color_scheme=scheme) as page:
        assert scroll_to_every_chart(page) >= 17
        assert page.locator("h1").all_inner_texts() == ["made", "second"]
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(20, 23, 27)" if scheme == "dark" else "rgb(255, 255, 255)")


def test_union_with_a_nuisance_parameter_and_a_cell_of_a_users_own(browser, sqlite_url, tmp_path):
    make_union(sqlite_url, missing=[7])
    path = write_report(sqlite_url, ["union"], tmp_path / "page.html").path
    with opened(browser, path, width=390) as page:
        assert scroll_to_every_chart(page) >= 10
        first = page.get_by_role("table", name="union effects").locator("tbody tr").first
        assert first.locator("td").first.inner_text().startswith("+0.100")


def test_curve_is_named_isolated_and_colored(browser, page_file):
    with opened(browser, page_file) as page:
        curves = page.locator(".curves").first
        curves.scroll_into_view_if_needed()
        page.wait_for_selector(".curves .plot.drawn")
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
        assert curves.locator(".legend").inner_text().split() == ["off", "on"]
        colors = page.evaluate(
            "[...new Set(document.querySelector('.curves .plot').data.map(t => t.line.color))]"
        )
        assert len(colors) == 2


def test_tables_are_sorted_and_downloaded(browser, page_file, tmp_path):
    with opened(browser, page_file) as page:
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

        page.locator("details.all-trials").first.evaluate("details => details.open = true")
        with page.expect_download() as download:
            page.locator("details.all-trials button.csv").first.click()
        assert download.value.suggested_filename == "made-trials.csv"
        download.value.save_as(tmp_path / "trials.csv")
        rows = list(csv.DictReader((tmp_path / "trials.csv").open(encoding="utf-8")))
        assert [row["trial"] for row in rows] == ["0", "1", "2", "4", "5", "6", "7", "3"]
        assert [row["loss"] for row in rows] == ["1.5", "1.6", "1.7", "1.9", "2", "2.1", "2.2", ""]
        assert {row["residual"] for row in rows} == {"on", "off"}


def test_every_chart_is_printed_on_white(browser, page_file, tmp_path):
    with opened(browser, page_file, color_scheme="dark") as page:
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


def test_browser_that_cannot_decompress_says_so_and_shows_the_text_alternatives(browser, page_file):
    with opened(browser, page_file, before="delete window.DecompressionStream") as page:
        assert page.get_by_text("Figures are not drawn").is_visible()
        texts = page.locator(".alt-text p")
        assert all(text.is_visible() for text in texts.all())
        assert texts.count() == page.locator(".plot").count()
        assert not page.locator(".plot").first.is_visible()


def test_markup_in_names_is_not_executed(browser, sqlite_url, tmp_path):
    name = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    make_study(sqlite_url, name, worker=f"</script>{name}", question=name)
    path = write_report(sqlite_url, [name], tmp_path / "page.html").path
    with opened(browser, path) as page:
        scroll_to_every_chart(page)
        assert page.locator("h1").inner_text() == name
        assert page.title() == name
        assert page.locator("img").count() == 0
