"""Markdown that GitHub and the site show alike: tables, and text of docstrings."""

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"``(.+?)``")
_ROLE = re.compile(r":\w+:`~?\.?([\w.]+)`")
_PIPE_IN_CODE = re.compile(r"`([^`\n]*\\\|[^`\n]*)`")


def make_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table without the columns that are empty in every row."""
    listed = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    kept = [number for number in range(len(header)) if any(row[number] for row in listed)]
    lines = [list(header), ["---"] * len(header), *listed]
    return "".join(f"| {' | '.join(line[number] for number in kept)} |\n" for line in lines)


def to_markdown(text: str) -> str:
    """Return text of a docstring in one line, with its code and names as Markdown."""
    text = _ROLE.sub(lambda match: f"`{match[1].rpartition('.')[2]}`", " ".join(text.split()))
    return _CODE.sub(r"`\1`", text)


def escape_pipes(markdown: str) -> str:
    """Write code with an escaped pipe, in tables, as HTML: the site would show the backslash."""

    def replace(match: re.Match[str]) -> str:
        code = match[1].replace("&", "&amp;").replace("<", "&lt;").replace(r"\|", "&#124;")
        return f"<code>{code}</code>"

    lines = markdown.splitlines(keepends=True)
    return "".join(
        _PIPE_IN_CODE.sub(replace, line) if line.startswith("|") else line for line in lines
    )
