"""Draw the pictures of the pages.

``python -m docs.generator.pictures`` writes ``docs/effects.svg``: the effects in a study of the
gallery, in words that need no knowledge of the project. With the argument ``reports`` it writes
parts of the reports of the tutorial's studies to ``docs/pictures/``, as a browser shows them; it
reads these studies from the default storage.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rnn_search import import_study, load

if TYPE_CHECKING:
    from playwright.sync_api import Browser

GALLERY = Path(__file__).parents[1] / "gallery"
STUDY = "full-size"
PICTURE = GALLERY.parent / "effects.svg"

SCREENSHOTS = {
    "report": ("my-study", "summary"),
    "effects": ("my-study", "effects"),
    "curves": ("my-study", "curves"),
    "refinement": ("my-longer", "refinement"),
    "replicates": ("my-replicates", "replicates"),
}
"""Study and section of the report that each file in ``docs/pictures/`` shows."""

PAGE_WIDTH = 540
"""Width of the photographed page in pixels: small, so that its text is readable on a phone."""

LABELS: dict[tuple[str, object], str] = {
    ("input_gate", False): "input gate",
    ("forget_gate", False): "forget gate",
    ("output_gate", False): "output gate",
    ("state_gate", False): "state gate (a GRU's update gate)",
    ("residual", False): "residual: output reads the input, too",
    ("state_source", "old"): "output reads both states, not the old one alone",
    ("state_source", "new"): "output reads both states, not the new one alone",
    ("layers", 1): "2 layers instead of 1",
    ("layers", 2): "3 layers instead of 2",
    ("state_size", 32): "256 states instead of 32",
}
"""Names of the contrasts, by parameter and the value before the change."""

WIDTH, ROW, TOP = 900, 30, 130
ZERO, SCALE = 730, 620
"""Horizontal position of zero, and pixels per nat."""

COLOURS = {"better": "#1f77b4", "worse": "#d95f02", "open": "#8c959f"}

STYLE = """
text { font: 15px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.title { font-size: 20px; font-weight: 600 } .small { font-size: 13px; fill: #59636e }
.page { fill: #ffffff; stroke: #d1d9e0 } .line { stroke: #59636e; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .small { fill: #9198a1 }
  .page { fill: #0d1117; stroke: #3d444d } .line { stroke: #9198a1 }
}
"""


def draw(effects: pd.DataFrame, trials: int, best: float) -> str:
    """Draw the effects of the study as an SVG.

    Args:
        effects: table of the effects, in nats.
        trials: number of networks that were trained.
        best: least loss of a network, in nats per byte.
    """
    effects = effects.sort_values("effect", kind="stable")
    height = TOP + ROW * len(effects) + 52
    pairs = f"{effects['pairs'].min()} to {effects['pairs'].max()} pairs"
    title = f"{trials} recurrent networks: which design choices lower the loss?"
    lines = (
        (
            64,
            "Each is one combination of these choices, trained once. A bar is the mean difference",
        ),
        (
            82,
            f"within {pairs} of networks that differ in this choice alone, with its 95% interval.",
        ),
        (height - 16, f"Change in validation loss, nats per byte; the least loss is {best:.2f}."),
    )
    parts = [_text(24, 40, title, "title"), *(_text(24, y, text, "small") for y, text in lines)]
    parts += [
        _text(ZERO - 12, TOP - 14, "← lower loss: better", "small", "end"),
        _text(ZERO + 12, TOP - 14, "worse →", "small"),
        _line(ZERO, TOP - 6, ZERO, height - 46),
    ]
    for place, row in enumerate(effects.itertuples(index=False)):
        parts += _draw_row(TOP + ROW * place, row)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _draw_row(y: int, row: Any) -> list[str]:
    """Draw the bar of an effect with its interval, its name and its number."""
    effect: float = row.effect
    kind = "open" if not row.significant else "better" if effect < 0 else "worse"
    left, right = sorted((ZERO, ZERO + SCALE * effect))
    ends = ZERO + SCALE * row.low, ZERO + SCALE * row.high
    middle = y + ROW / 2 - 4
    number = f"{effect:+.2f}".replace("-", "−") if kind != "open" else "not significant"
    return [
        f'<rect x="{left:.1f}" y="{y + 3}" width="{right - left:.1f}" height="{ROW - 14}" '
        f'fill="{COLOURS[kind]}" fill-opacity="0.75"/>',
        _line(ends[0], middle, ends[1], middle),
        _text(24, middle + 5, LABELS[row.parameter, row.before]),
        _text(max(ends[1], ZERO) + 10, middle + 5, number, "small"),
    ]


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="line" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def draw_gallery() -> str:
    """Draw the effects of the study in the gallery."""
    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{folder}/studies.db"
        import_study(GALLERY / f"{STUDY}.jsonl.gz", storage=storage)
        study = load(STUDY, storage=storage)
        effects = study.effects().to_frame()
        return draw(effects, study.counts.complete, study.results["value"].min())


# The section is its own box, or reaches from its heading to the next one.
FIND_SECTION = """
name => {
  const start = document.getElementById(`s1-${name}`);
  let end = start.nextElementSibling;
  while (end && end.tagName !== "H2") end = end.nextElementSibling;
  const box = start.getBoundingClientRect();
  const bottom = start.tagName === "H2" ? end.getBoundingClientRect().top : box.bottom + 16;
  const top = box.top + 4;
  return { x: 0, y: top, width: window.innerWidth, height: bottom - 4 - top };
}
"""
IS_DRAWN = """
() => [...document.querySelectorAll("figure.chart")].every(f => f.querySelector(".main-svg"))
"""


@contextmanager
def open_browser() -> Iterator["Browser"]:
    """Start Chromium."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-lcd-text"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=flags)
        yield browser
        browser.close()


def photograph_reports(folder: Path) -> Iterator[Path]:
    """Write a picture of each section in ``SCREENSHOTS`` to a folder, and return their paths."""
    from PIL import Image, ImageOps

    folder.mkdir(exist_ok=True)
    with open_browser() as browser, tempfile.TemporaryDirectory() as temporary:
        for name, (study, section) in SCREENSHOTS.items():
            report = load(study).report(Path(temporary) / f"{study}.html")
            # Figures are drawn as they become visible: the window shows the whole page.
            page = browser.new_page(
                viewport={"width": PAGE_WIDTH, "height": 7000},
                color_scheme="light",
                device_scale_factor=2,
            )
            page.goto(report.resolve().as_uri())
            page.add_style_tag(content=".tools { display: none }")
            page.wait_for_function(IS_DRAWN)
            path = folder / f"{name}.png"
            page.screenshot(path=path, clip=page.evaluate(FIND_SECTION, section))
            page.close()
            with Image.open(path) as image:
                framed = ImageOps.expand(image.convert("RGB"), border=2, fill="#d1d9e0")
            framed.quantize(method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
            yield path


if __name__ == "__main__":
    if sys.argv[1:] == ["reports"]:
        for path in photograph_reports(PICTURE.parent / "pictures"):
            print(path)
    else:
        PICTURE.write_text(draw_gallery(), encoding="utf-8")
        print(PICTURE)
