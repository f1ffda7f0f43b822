"""Tables as HTML, emphasis, and the names of changes and architectures."""

import math

import pytest

from reports.blocks import Column, Table
from reports.formatting import join, shorten_labels, strong, to_html, to_plain, to_sentence

ROWS = [("a|b <i>", 1.25, (1.0, 1.5)), ("c", math.nan, (math.nan, math.nan))]

TABLE = Table(
    "one & two",
    ROWS,
    [
        Column("what", lambda row: row[0]),
        Column("size", lambda row: -row[1], "+.2f", unit="nats",
               ends=lambda row: (-row[2][1], -row[2][0]), note=lambda row: " *"),
        Column("absent", lambda row: 1 / 0, condition=False),
    ],
)  # fmt: skip


def test_table_escapes_names_and_leaves_missing_numbers_empty():
    html = TABLE.__html__()
    first, second = html.partition("<tbody>")[2].strip().splitlines()[:2]
    assert first == (
        '<tr><th scope="row">a|b &lt;i&gt;</th><td class="number" data-sort="-1.25" '
        'data-more="-1.5,-1,*">−1.25 * <small>[−1.50, −1.00]</small></td></tr>'
    )
    assert second.endswith('<td class="number" data-sort="" data-more=",,"></td></tr>')
    assert "<caption>one &amp; two</caption>" in html
    assert "absent" not in html


def test_emphasised_names_are_text_in_each_form():
    marked = f"{strong('<b>*a*</b>')} & more"
    assert to_plain(marked) == "<b>*a*</b> & more"
    assert to_html(marked) == "<strong>&lt;b&gt;*a*&lt;/b&gt;</strong> &amp; more"
    assert to_plain(to_sentence(strong("one"))) == "One."


@pytest.mark.parametrize(
    ("parts", "joined"), [((), ""), ("a", "a"), ("ab", "a and b"), ("abc", "a, b and c")]
)
def test_names_are_joined_as_in_a_sentence(parts, joined):
    assert join(parts) == joined


@pytest.mark.parametrize(
    ("labels", "short"),
    [
        (
            ["2×8 residual, new state", "1×8 new state"],
            ["2×8 residual, new state", "1×8 new state"],
        ),
        (["2×8 GRU, 16 BPTT steps", "1×4 GRU, 16 BPTT steps"], ["2×8 GRU", "1×4 GRU"]),
        (["1×8, a, b", "1×8, a, c", "2×8, a, b"], ["1×8, b", "1×8, c", "2×8, b"]),
        (["1×8, a, b"], ["1×8"]),
        ([], []),
    ],
)
def test_label_leaves_out_what_all_architectures_have_in_common(labels, short):
    assert shorten_labels(labels) == dict(zip(labels, short, strict=True))
