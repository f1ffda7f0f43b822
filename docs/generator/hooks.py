"""Hooks of MkDocs: ``mkdocs.yml`` names this file."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from docs.generator import source_pages, tables

SOURCE_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md")
"""Files outside of ``docs/`` that the navigation names."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in ``docs/``."""
    documents = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    for path, markdown in source_pages.find_pages([*documents, *SOURCE_PAGES]).items():
        _add(files, config, source_pages.site_path(path), markdown)
    for path in SOURCE_PAGES:
        if files.get_file_from_path(source_pages.site_path(path)) is None:
            _add(files, config, source_pages.site_path(path), source_pages.make_page(path))
    return files


def _add(files: Files, config: MkDocsConfig, path: str, content: str) -> None:
    file = File.generated(config, path, content=content, inclusion=InclusionLevel.NOT_IN_NAV)
    files.append(file)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Adapt what GitHub shows and MkDocs does not: links to files outside, and code in tables."""
    origin = source_pages.project_path(page.file.src_uri)
    return tables.escape_pipes(source_pages.rewrite_links(markdown, origin))
