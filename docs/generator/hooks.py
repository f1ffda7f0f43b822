"""Hooks of MkDocs: ``mkdocs.yml`` names this file."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.nav import Link, Navigation, Section
from mkdocs.structure.pages import Page
from plotly.offline import get_plotlyjs

from docs.generator import gallery, notebook, source_pages, tables

SOURCE_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md")
"""Files outside of ``docs/`` that the navigation names."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is not a page in ``docs/``: other files, the gallery's reports, the notebook."""
    documents = [f"{source_pages.DOCS}/{file.src_uri}" for file in files.documentation_pages()]
    pages = source_pages.find_pages([*documents, *SOURCE_PAGES])
    pages |= {path: source_pages.make_page(path) for path in SOURCE_PAGES}
    for path, markdown in pages.items():
        _add(files, config, source_pages.site_path(path), markdown)
    for page in gallery.build_gallery():
        content = page.path.read_text(encoding="utf-8")
        _add(files, config, f"{gallery.FOLDER}/{page.path.name}", content)
    executed = notebook.make_page(notebook.execute())
    _add(files, config, source_pages.site_path(notebook.PATH), executed)
    _add(files, config, notebook.SCRIPT, get_plotlyjs())
    return files


def _add(files: Files, config: MkDocsConfig, path: str, content: str) -> None:
    file = File.generated(config, path, content=content, inclusion=InclusionLevel.NOT_IN_NAV)
    files.append(file)


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Add the gallery's reports to its section."""
    for section in nav.items:
        if isinstance(section, Section) and section.title == "Gallery":
            for page in gallery.build_gallery():
                url = f"{gallery.FOLDER}/{page.path.with_suffix('.html').name}"
                link = Link(page.title, url)
                link.parent = section
                section.children.append(link)
    return nav


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Adapt what GitHub shows and MkDocs does not: links to files outside, and code in tables."""
    if page.file.src_uri == f"{gallery.FOLDER}/index.md":
        markdown = markdown.replace(gallery.MARK, gallery.list_pages(gallery.build_gallery()))
    origin = source_pages.project_path(page.file.src_uri)
    return tables.escape_pipes(source_pages.rewrite_links(markdown, origin))
