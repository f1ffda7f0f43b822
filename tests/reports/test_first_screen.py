"""What a reader sees first of a report: the question, its answer, a figure, what limits it."""

from dataclasses import replace

import pytest
from factories import (
    make_replicates,
    make_stated,
    make_study,
)
from test_page import opened
from test_pruning_audit import make_pruned

from reports.data.study_reader import read_results
from reports.page.first_screen import build_first_screen
from reports.page.page import write_page
from reports.page.sections import build_sections
from studies.storage.open import read_storage


def first_screen_of(url, name):
    (section,) = build_sections([read_results(read_storage(url), name)])
    return build_first_screen(section)


def answer_of(url, name):
    return [sentence.striptags() for sentence in first_screen_of(url, name).answer]


@pytest.mark.usefixtures("without_optuna_figures")
def test_answer_names_the_largest_effects_with_direction_and_size(sqlite_url):
    make_stated(sqlite_url)
    largest, others = answer_of(sqlite_url, "stated")
    assert largest.startswith("The validation loss falls most with state size 8 → 16 (")
    assert "new state (−0.399 nats [−0.404, −0.393])" in largest
    assert "falls or rises, depending on the other parameters, with residual (+0.299" in largest
    assert others.startswith("Old state, forget gate and input gate are undecided after correction")


@pytest.mark.usefixtures("without_optuna_figures")
def test_answer_claims_no_effect_under_a_condition_where_it_is_not_significant(sqlite_url):
    make_stated(sqlite_url)
    (largest, _) = answer_of(sqlite_url, "stated")
    size = "state size 8 → 16 (no significant effect without residual, −0.898 nats with it)"
    assert largest.startswith(f"The validation loss falls most with {size}")


@pytest.mark.usefixtures("without_optuna_figures")
def test_answer_claims_nothing_where_no_effect_is_significant(sqlite_url):
    make_study(sqlite_url, finished=5)
    nothing, bounds = answer_of(sqlite_url, "made")
    assert nothing.startswith("So far, with 5 of 8 trials finished, no change has a significant")
    assert "fewer than 8 pairs" in bounds


@pytest.mark.usefixtures("without_optuna_figures")
def test_answer_of_a_pruned_study_says_why_effects_are_missing(sqlite_url):
    make_pruned(sqlite_url, audited=())
    reason, _ = answer_of(sqlite_url, "made")
    assert reason.startswith("No trial was audited")
    limits = {each.name: each for each in first_screen_of(sqlite_url, "made").limits}
    assert "what was lost is not measured" in limits["Pruned"].detail
    assert limits["Noise between runs"].value == "not measured"


@pytest.mark.usefixtures("without_optuna_figures")
def test_limits_of_replicates_give_their_noise(sqlite_url):
    make_replicates(sqlite_url)
    limits = {each.name: each for each in first_screen_of(sqlite_url, "replicates").limits}
    assert limits["Noise between runs"].detail.startswith("standard deviation over ")
    assert "run" in limits["Replicates"].value


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    url = f"sqlite:///{folder}/studies.db"
    make_stated(url)
    make_study(url, "second")
    make_replicates(url)
    names = ("stated", "second", "replicates")
    first, *others = (read_results(read_storage(url), name) for name in names)
    asked = {"question": "Which switches help a small network that has little memory?"}
    first = replace(first, config=first.trained.model_copy(update=asked))
    return write_page([first, *others], folder / "page.html").path


def resize(page, width, height):
    page.set_viewport_size({"width": width, "height": height})
    page.locator(".first .plot.drawn").first.wait_for()


def bottom_of(page, selector):
    return page.locator(selector).first.evaluate("e => e.getBoundingClientRect().bottom")


@pytest.mark.extended
def test_first_screen_holds_question_answer_figure_and_limits(browser, page_file):
    width, height = 1200, 800
    with opened(browser, page_file, width) as page:
        resize(page, width, height)
        assert page.locator("h1").first.inner_text().startswith("Which switches help")
        for selector in ("h1", ".answer", ".first .plot", ".limits"):
            assert 0 < bottom_of(page, selector) <= height, selector
        # Figures are no wider than they need.
        assert page.locator(".first .plot").first.bounding_box()["width"] <= 760


@pytest.mark.extended
def test_first_screen_of_a_phone_holds_the_answer_and_begins_the_figure(browser, page_file):
    with opened(browser, page_file, 390) as page:
        resize(page, 390, 844)
        assert bottom_of(page, ".answer") < 844
        assert page.locator(".first .plot").first.bounding_box()["y"] < 700
        title = page.locator(".first .plot .xtitle").first.bounding_box()
        assert title["x"] >= 0
        assert title["x"] + title["width"] <= 390
        # Nothing of any study is wider than the screen.
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


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
