"""The page in a real browser: from disk, with the network off, everything drawn."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from services import missing
from test_trials import make_study

from reports.page import write_report

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--enable-unsafe-swiftshader"]  # fmt: skip


DRAWN = """[...document.querySelectorAll('figure')].every(figure =>
    figure.querySelector('.trace .point, .trace path, .points path') ||
    [...figure.querySelectorAll('canvas')].some(canvas => canvas.width > 100))"""

FIRST_POINT = """() => {
    const plot = document.querySelector('.js-plotly-plot'), box = plot.getBoundingClientRect();
    const {xaxis, yaxis} = plot._fullLayout, {x, y} = plot._fullData[0];
    return [box.left + xaxis._offset + xaxis.d2p(x[0]), box.top + yaxis._offset + yaxis.d2p(y[0])];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if not executable:
        missing("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def page_file(sqlite_url, tmp_path) -> Path:
    make_study(sqlite_url, threshold=2.05)
    make_study(sqlite_url, "second", threshold=None)
    return write_report(sqlite_url, ["made", "second"], tmp_path / "page.html")


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_opens_offline_and_draws_every_figure(browser, page_file, width):
    context = browser.new_context(offline=True, viewport={"width": width, "height": 900})
    page = context.new_page()
    complaints, requests = [], []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    page.wait_for_function(DRAWN, timeout=30_000)
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.locator("h1").all_inner_texts() == ["made", "second"]
    assert page.locator("figure").count() >= 8
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_hovering_over_a_curve_names_its_architecture(browser, page_file):
    page = browser.new_context(offline=True, viewport={"width": 1200, "height": 900}).new_page()
    page.goto(page_file.as_uri())
    page.wait_for_function(DRAWN)
    page.locator("figure").first.scroll_into_view_if_needed()
    page.mouse.move(*page.evaluate(FIRST_POINT))
    hover = page.locator("figure").first.locator(".hoverlayer .hovertext")
    hover.wait_for()
    # The worst lies lowest and comes first: the point that diverged, whose curve is shown too.
    assert "step 50: 2.8000 nats" in hover.text_content()
    assert "3: 2×8 no gates, new state" in hover.text_content()
