"""Tables: the same columns as HTML, Markdown, text and data frames."""

import math

from reports.blocks import Column, Table

ROWS = [("a|b <i>", 1.25, (1.0, 1.5)), ("c", math.nan, (math.nan, math.nan))]

TABLE = Table(
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


def test_page_and_note_escape_names_and_leave_missing_numbers_empty():
    html = TABLE.__html__()
    first, second = html.partition("<tbody>")[2].strip().splitlines()[:2]
    assert first == (
        '<tr><th scope="row">a|b &lt;i&gt;</th><td class="number" data-sort="-1.25" '
        'data-more="-1.5,-1,*">−1.25 * <small>[−1.50, −1.00]</small></td></tr>'
    )
    assert second.endswith('<td class="number" data-sort="" data-more=",,"></td></tr>')
    assert "<caption>one &amp; two</caption>" in html


def test_data_frame_has_full_numbers_and_text_formatted_ones():
    frame = TABLE.to_frame()
    assert list(frame) == ["what", "size", "low", "high", "is_large"]
    assert frame.loc[0, ["size", "low", "high"]].tolist() == [-1.25, -1.5, -1.0]
    lines = [line.split() for line in TABLE.to_text("is_large").splitlines()]
    assert lines == [["what", "size", "low", "high"], ["a|b", "<i>", "-1.25", "-1.50", "-1.00"],
                     ["c"]]  # fmt: skip
