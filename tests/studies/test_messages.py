"""Durations and printable text."""

from studies.messages import format_duration, shorten, to_line, to_printable


def test_duration_is_given_in_a_suitable_unit():
    seconds = (0.04, 45.3, 119, 150, 7000, 9000, 302400)
    texts = ["0.0 s", "45 s", "119 s", "2.5 min", "117 min", "2.5 h", "3.5 days"]
    assert list(map(format_duration, seconds)) == texts


def test_unprintable_characters_are_replaced():
    assert to_printable("„ä\t1\n".encode()) == to_printable("„ä\t1\n") == "„ä\t1\n"
    assert to_printable(b"a\xffb\xc3") == "a\ufffdb\ufffd"
    assert to_printable(b"\x1b[31m\x00\r\x7f\xc2\x9b") == "\ufffd[31m" + "\ufffd" * 4
    assert to_printable("\ud800") == "\ufffd"


def test_line_has_no_line_breaks_and_is_cut_if_long():
    assert to_line("„ä …\n 2×3") == "„ä …  2×3"
    assert (shorten("a" * 80), shorten("a" * 81)) == ("a" * 80, "a" * 79 + "…")
