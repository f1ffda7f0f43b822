"""Gallery of the site: the reports of the studies in ``docs/gallery``, written from their data."""

import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from docs.generator.source_pages import ROOT
from reports.page.page import write_report
from studies.config import Objective
from studies.exchange import import_studies
from studies.records import StrictModel

FOLDER = "gallery"
"""Folder of the data in ``docs/``, and of the reports in the site."""

DATA = ROOT / "docs" / FOLDER

ENDING = ".jsonl.gz"
"""End of the name of a file of data."""

MARK = "<!-- reports -->"
"""Place of the list of reports on the gallery's page."""


class _SharedPage(StrictModel):
    """Page about several studies of the gallery.

    Attributes:
        file: name of the page, without its end.
        title: what the page is.
        studies: names of the studies. A page of which one is missing is left out.
        objective: loss that the studies are judged by; None for the objective of each.
    """

    file: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    title: str
    studies: list[str]
    objective: Objective | None = None


class SharedPages(StrictModel):
    """Content of ``docs/gallery/pages.toml``: pages about several studies."""

    report: list[_SharedPage] = Field(default_factory=list)


@dataclass(frozen=True)
class GalleryPage:
    """Written page.

    Attributes:
        path: path of the file.
        title: what the page is, for the navigation.
    """

    path: Path
    title: str


@cache
def _make_folder() -> tempfile.TemporaryDirectory[str]:
    """Create the folder of the pages, which is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="rnn-search-gallery-")


def build_gallery() -> tuple[GalleryPage, ...]:
    """Write the pages of all studies in ``docs/gallery``, unless this process has written them.

    Raises:
        UserError: if a study cannot be imported or reported.
    """
    files = sorted(DATA.glob(f"*{ENDING}"))
    return _write_pages(tuple((path, path.stat().st_mtime_ns) for path in files))


@cache
def _write_pages(files: tuple[tuple[Path, int], ...]) -> tuple[GalleryPage, ...]:
    if not files:
        return ()
    folder = Path(tempfile.mkdtemp(dir=_make_folder().name))
    storage = f"sqlite:///{folder / 'gallery.db'}"
    paths = [path for path, _ in files]
    names = [result.name for result in import_studies(storage, paths)]
    pages = [
        _write_study(storage, folder, path.name.removesuffix(ENDING), [name], name)
        for path, name in zip(paths, names, strict=True)
    ]
    shared = SharedPages.model_validate(tomllib.loads((DATA / "pages.toml").read_text()))
    for page in _available(shared.report, names):
        studies = page.studies
        if page.objective:
            studies = [_import_under(storage, name, page.objective) for name in studies]
        pages.append(_write_study(storage, folder, page.file, studies, page.title))
    return tuple(pages)


def _available(pages: Iterable[_SharedPage], names: Sequence[str]) -> list[_SharedPage]:
    return [page for page in pages if set(page.studies) <= set(names)]


def _import_under(storage: str, name: str, objective: Objective) -> str:
    """Import a study of the gallery again under another objective; return its name."""
    path = DATA / f"{name}{ENDING}"
    (result,) = import_studies(storage, [path], f"{name}-{objective}", objective)
    return result.name


def _write_study(
    storage: str, folder: Path, file: str, studies: Sequence[str], title: str
) -> GalleryPage:
    report = write_report(storage, studies, folder / f"{file}.html")
    return GalleryPage(report.path, title)


def list_pages(pages: Sequence[GalleryPage]) -> str:
    """Return a list of links to the pages."""
    if not pages:
        return "This site was built without the data of the studies.\n"
    lines = [f"- [{page.title}]({page.path.name})\n" for page in pages]
    return f"Reports to open:\n\n{''.join(lines)}"
