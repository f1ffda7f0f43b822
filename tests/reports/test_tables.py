"""Tables: the same columns as HTML, Markdown, text and data frames."""

import math

import pytest

from reports.tables import Column, Table

ROWS = [("a|b <i>", 1.25, (1.0, 1.5)), ("c", math.nan, (math.nan, math.nan))]


@pytest.fixture
def table():
    return Table(
        "one & two",
        ROWS,
        [
            Column("what", lambda row: row[0], name="what"),
            Column("size", lambda row: -row[1], "+.2f", unit="nats", name="size",
                   ends=lambda row: (-row[2][1], -row[2][0]), note=lambda row: " *"),
            Column("", lambda row: row[1] > 1, name="is_large"),
            Column("absent", lambda row: 1 / 0, condition=False),
        ],
    )  # fmt: skip


def test_html_escapes_names_and_leaves_missing_numbers_empty(table):
    first, second = table.__html__().partition("<tbody>")[2].strip().splitlines()[:2]
    assert first == (
        '<tr><th scope="row">a|b &lt;i&gt;</th><td class="number" data-sort="-1.25" '
        'data-more="-1.5,-1,*">−1.25 * <small>[−1.50, −1.00]</small></td></tr>'
    )
    assert second.endswith('<td class="number" data-sort="" data-more=",,"></td></tr>')
    assert "<caption>one &amp; two</caption>" in table.__html__()


def test_markdown_has_one_line_for_each_row(table):
    assert table.to_markdown().splitlines() == [
        "| what | size (nats) |",
        "| :--- | ---: |",
        "| a\\|b \\<i\\> | −1.25 \\* \\[−1.50, −1.00\\] |",
        "| c |  |",
    ]


def test_data_frame_has_full_numbers_and_text_formatted_ones(table):
    frame = table.to_frame()
    assert list(frame) == ["what", "size", "low", "high", "is_large"]
    assert frame.loc[0, ["size", "low", "high"]].tolist() == [-1.25, -1.5, -1.0]
    lines = [line.split() for line in table.to_text("is_large").splitlines()]
    assert lines == [["what", "size", "low", "high"], ["a|b", "<i>", "-1.25", "-1.50", "-1.00"],
                     ["c"]]  # fmt: skip
