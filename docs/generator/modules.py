"""The map of all modules, from the first sentence of each docstring."""

import ast
import re
from pathlib import Path

from docs.generator.source_pages import ROOT
from docs.generator.tables import make_table, to_markdown

PACKAGES = ("rnn", "studies", "search", "reports", "rnn_search")
"""Folders of the packages in the map, the lowest layer first."""

OMITTED = frozenset({"__main__.py", "errors.py"})
"""Modules of which the name says enough."""


def list_modules() -> str:
    """Return a table of all modules; a package stands before its modules, in bold."""
    rows = []
    for package in PACKAGES:
        paths = sorted(filter(_is_module, (ROOT / package).rglob("*.py")), key=_sort_key)
        rows += [_describe(path) for path in paths if path.name not in OMITTED]
    return make_table(("module", "what it is"), rows)


def _is_module(path: Path) -> bool:
    """Return whether a file is in packages: searches keep copies of cells in other folders."""
    return all(folder.isidentifier() for folder in path.relative_to(ROOT).parent.parts)


def _sort_key(path: Path) -> tuple[tuple[str, ...], bool, str]:
    """Sort by folder, each folder's ``__init__.py`` first."""
    return path.parent.parts, path.name != "__init__.py", path.name


def _describe(path: Path) -> tuple[str, str]:
    """Return the cells of a module or a package."""
    name = path.relative_to(ROOT)
    sentence = _read_first_sentence(path)
    if path.name == "__init__.py":
        return f"**`{name.parent.as_posix()}/`**", f"**{sentence}**"
    return f"`{name.as_posix()}`", sentence


def _read_first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring as Markdown, without its full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = to_markdown(docstring.partition("\n\n")[0])
    return re.split(r"(?<=[^.…])\.(?= [A-Z]|$)", paragraph)[0]
