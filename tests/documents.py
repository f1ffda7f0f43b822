"""The pages of the documentation and the code in them."""

import re
import shlex

from helpers import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
}

HISTORY = {"CHANGELOG.md", "docs/log.md"}
"""Pages that may name files of earlier versions."""

OWN_CELL = "docs/how-to/search-your-own-cell.md"

PYTHON_PAGES = ("README.md", "docs/how-to/use-python.md", "docs/reference/cells.md")
"""Pages whose Python needs no command before it."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def blocks_in_order(page: str) -> list[tuple[str, str]]:
    """Return language and content of each block of commands or Python."""
    return re.findall(r"^```(sh|python)\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    return [command for block in blocks(page, "sh") for command in commands_of(block)]


def commands_of(block: str) -> list[list[str]]:
    """Return the words of each command of a block; a backslash continues a line."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def code_in_text(page: str) -> list[str]:
    """Return each line of a block, whatever its language, and each piece of code in a sentence."""
    text = PAGES[page].replace("\\\n", " ")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    text = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4,}(\S.*)$", text, re.MULTILINE)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
    return [*"".join(fenced).splitlines(), *indented, *inline]
