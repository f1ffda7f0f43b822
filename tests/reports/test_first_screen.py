"""What a reader sees first of a report: the question, its answer, a figure, what limits it."""

import re
from dataclasses import replace

import pytest
from factories import make_replicates, make_stated, make_study, read_studies
from test_page import opened
from test_pruning_audit import make_pruned

from reports.page.first_screen import build_first_screen
from reports.page.page import write_page


def answer_of(page):
    return [sentence.striptags() for sentence in build_first_screen(page.section).answer]


def limits_of(page):
    return {each.name: each for each in build_first_screen(page.section).limits}


def test_answer_names_the_largest_effects_with_direction_and_size(build_page):
    page = build_page(make_stated, "stated")
    largest, others = answer_of(page)
    # No effect is claimed under a condition where it is not significant.
    size = r"state size 8 → 16 \(no significant effect without residual, −0.898 nats"
    assert re.search(f"falls most with {size}", largest)
    assert "new state (−0.399 nats [−0.402, −0.395])" in largest
    assert re.search(r"falls or rises, .* with residual \(\+0.299", largest)
    assert others.startswith("Old state, forget gate and input gate are undecided")
    assert page.html.count(">Hypotheses</h2>") == 1


def test_answer_claims_nothing_where_no_effect_can_be_decided(build_page):
    nothing, bounds = answer_of(build_page(make_study, "made", finished=5))
    assert "5 of 8 trials" in nothing
    assert "whether any change has an effect on the validation loss is not known" in nothing
    assert "too few pairs to test: 1 of 8" in bounds


def test_limits_say_what_was_not_measured(build_page):
    pruned = build_page(make_pruned, "made", audited=())
    reason, _ = answer_of(pruned)
    assert "audited" in reason
    assert "not measured" in limits_of(pruned)["Pruned"].detail
    assert limits_of(pruned)["Noise between runs"].value == "not measured"
    replicated = limits_of(build_page(make_replicates, "replicates"))
    assert replicated["Noise between runs"].value != "not measured"
    assert "run" in replicated["Replicates"].value


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    url = f"sqlite:///{folder}/studies.db"
    make_stated(url)
    make_study(url, "second")
    make_replicates(url)
    names = ("stated", "second", "replicates")
    first, *others = read_studies(url, *names)
    asked = {"question": "Which switches help a small network that has little memory?"}
    first = replace(first, config=first.config.model_copy(update=asked))
    return write_page([first, *others], folder / "page.html").path


@pytest.mark.extended
@pytest.mark.parametrize(
    ("width", "height", "selectors"),
    [(1200, 800, ("h1", ".answer", ".first .plot", ".limits")), (390, 844, ("h1", ".answer"))],
)
def test_first_screen_holds_the_answer_and_begins_the_figure(
    browser, page_file, width, height, selectors
):
    with opened(browser, page_file, width) as page:
        page.set_viewport_size({"width": width, "height": height})
        page.locator(".first .plot.drawn").first.wait_for()
        assert page.locator("h1").first.inner_text().startswith("Which switches help")
        for selector in selectors:
            box = page.locator(selector).first.bounding_box()
            assert box["y"] + box["height"] <= height, selector
        figure = page.locator(".first .plot").first.bounding_box()
        assert figure["y"] < 700
        assert figure["width"] <= 760, "no wider than it needs"
        title = page.locator(".first .plot .xtitle").first.bounding_box()
        assert 0 <= title["x"] <= title["x"] + title["width"] <= width


@pytest.mark.extended
def test_page_without_javascript_has_texts_in_place_of_figures(browser, page_file):
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert not page.locator(".plot").first.is_visible()
    assert page.locator(".answer").first.is_visible()
    assert page.get_by_text("Text alternative").first.is_visible()
    assert page.locator(".contents a").first.is_visible()
    context.close()
