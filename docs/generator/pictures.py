"""Save a report's first screen as pictures: ``python -m docs.generator.pictures FILE.html FOLDER``.

Writes ``report-light.png`` and ``report-dark.png`` as a reader sees them in a window of 1200 × 800.
Needs playwright and a Chromium.
"""

import shutil
from pathlib import Path

import click

WIDTH, HEIGHT = 1200, 800

FLAGS = ["--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"]


@click.command()
@click.argument("report", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def take_pictures(report: Path, folder: Path) -> None:
    """Save the first screen of REPORT in light and dark in FOLDER."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise click.ClickException("playwright is missing: pip install playwright") from None
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        raise click.ClickException("no chromium found in PATH: install it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": WIDTH, "height": HEIGHT},
                color_scheme=scheme,
                device_scale_factor=1.5,
                offline=True,
            )
            page = context.new_page()
            page.goto(report.absolute().as_uri(), timeout=0)
            page.locator(".first .plot.drawn").first.wait_for(timeout=0)
            path = folder / f"report-{scheme}.png"
            page.screenshot(path=path)
            click.echo(path)
        browser.close()


if __name__ == "__main__":
    take_pictures()
