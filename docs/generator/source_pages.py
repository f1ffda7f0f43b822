"""Pages of the site for files outside of ``docs/``, so that every link that works on GitHub works.

A Markdown file becomes a page, any other text file a page that shows it, a folder a list of links.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]

DOCS = "docs"

FOLDER = "source"
"""Folder of the site that holds the pages."""

LANGUAGES = {".cff": "yaml", ".toml": "toml", ".py": "python"}
"""Language of a shown file, by the end of its name."""

NOTEBOOK = ".ipynb"
"""End of the name of a notebook in ``docs/``, which the site shows as a page."""

_LINK = re.compile(r"(?<=\]\()([^)#\s:]+)")
_TITLE = re.compile(r"^# (.+)", re.MULTILINE)


def site_path(path: str) -> str:
    """Return the path, in the site's sources, of a file or folder of the project."""
    name = PurePosixPath(path)
    if name.is_relative_to(DOCS) and name.suffix not in LANGUAGES:
        shown = name.with_suffix(".md") if name.suffix == NOTEBOOK else name
        return str(shown.relative_to(DOCS))
    if (ROOT / path).is_dir():
        return f"{FOLDER}/{path}/index.md"
    return f"{FOLDER}/{path}" if name.suffix == ".md" else f"{FOLDER}/{path}.md"


def project_path(path: str) -> str:
    """Return the path, in the project, of what a page in the site's sources shows."""
    name = PurePosixPath(path)
    return str(name.relative_to(FOLDER) if name.is_relative_to(FOLDER) else DOCS / name)


def _resolve(target: str, origin: str) -> str | None:
    """Return the path in the project that a link leads to; None if there is no such file."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    return None if path.startswith("..") or not (ROOT / path).exists() else path


def rewrite_links(markdown: str, origin: str) -> str:
    """Replace the links of a page by links between the site's sources.

    Args:
        markdown: text of the page.
        origin: path of the page in the project.
    """
    start = posixpath.dirname(site_path(origin))

    def replace(match: re.Match[str]) -> str:
        path = _resolve(match[1], origin)
        return match[1] if path is None else posixpath.relpath(site_path(path), start)

    return _LINK.sub(replace, markdown)


def linked_paths(markdown: str, origin: str) -> Iterator[str]:
    """Yield the files and folders without a page in ``docs/`` that a page links to."""
    for match in _LINK.finditer(markdown):
        path = _resolve(match[1], origin)
        if path is not None and site_path(path).startswith(f"{FOLDER}/"):
            yield path


def make_page(path: str) -> str:
    """Return the Markdown of the page for a file or folder, whose links are as in the project."""
    full = ROOT / path
    if full.suffix == ".md":
        return full.read_text(encoding="utf-8")
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"
    if full.is_dir():
        names = sorted(path.name for path in full.iterdir() if path.suffix in LANGUAGES)
        return head + "".join(f"- [{name}]({name})\n" for name in names)
    text = full.read_text(encoding="utf-8")
    language = LANGUAGES.get(full.suffix, "text")
    return f"{head}````{language}\n{text}````\n"


def find_pages(documents: list[str]) -> dict[str, str]:
    """Return the Markdown of each page that the documents link to, and those link to, by path.

    Args:
        documents: paths of the documents in the project.
    """
    pages: dict[str, str] = {}
    waiting = [
        path
        for document in documents
        for path in linked_paths((ROOT / document).read_text(encoding="utf-8"), document)
    ]
    while waiting:
        path = waiting.pop()
        if path not in pages:
            pages[path] = make_page(path)
            origin = f"{path}/index.md" if (ROOT / path).is_dir() else path
            waiting.extend(linked_paths(pages[path], origin))
    return pages
