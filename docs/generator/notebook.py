"""The notebook of the site: executed when the site is built, and shown with its outputs."""

import os
import re
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import nbformat
import plotly.io
from nbclient import NotebookClient
from traitlets.config import Config

from docs.generator.source_pages import DOCS, ROOT

PATH = f"{DOCS}/notebook.ipynb"

SCRIPT = "assets/plotly.min.js"
"""Place in the site of the library that draws the figures."""

SECONDS = 600
"""Longest time of a cell, on a busy machine."""

FIGURE, HTML = "application/vnd.plotly.v1+json", "text/html"

_HEAD = f"""\
<script src="{SCRIPT}"></script>
<style>
  .output pre code {{ max-height: 15rem; overflow: auto; white-space: pre-wrap }}
  .plotly-graph-div {{ background: white }}
</style>"""

_ORIGIN = f"""\
This page is a notebook, <a href="{Path(PATH).name}" download>{PATH}</a>, executed when the site
was built."""

_PANDAS_STYLE = re.compile(r'<style scoped>.*?</style>| border="1" class="dataframe"', re.DOTALL)


def execute() -> Any:
    """Return the notebook with its outputs; all files of its kernel are temporary.

    Raises:
        CellExecutionError: if a cell fails.
    """
    text = (ROOT / PATH).read_text(encoding="utf-8")
    notebook: Any = nbformat.reads(text, as_version=4)  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="rnn-search-") as folder:
        variables = {
            "IPYTHONDIR": folder,
            "PLOTLY_RENDERER": "plotly_mimetype",
            "PYTHONPATH": str(ROOT),
            "RNN_SEARCH_ARTIFACTS": f"{folder}/artifacts",
            "RNN_SEARCH_STORAGE": f"sqlite:///{folder}/studies.db",
        }
        # Sockets in the folder, which is private: no port is opened.
        kernel = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
        client = NotebookClient(
            notebook,
            config=Config(KernelManager=kernel),
            resources={"metadata": {"path": folder}},
            timeout=SECONDS,
        )
        return client.execute(env=os.environ | variables)


def make_page(notebook: Any) -> str:
    """Return the Markdown of an executed notebook: its cells, each with its outputs."""
    parts: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for is_printed, outputs in groupby(filter(_is_shown, cell.outputs), _is_printed):
            if is_printed:
                parts.append(_write_text("".join(output.text for output in outputs)))
            else:
                parts += map(_write_result, outputs)
    title, introduction, text = "\n\n".join(parts).split("\n\n", 2)
    return "\n\n".join((_HEAD, title, introduction, _ORIGIN, text))


def _is_shown(output: Any) -> bool:
    """Return whether an output is neither a progress bar nor a warning of the kernel."""
    is_result = output.output_type == "execute_result" or FIGURE in output.get("data", ())
    return is_result or _is_printed(output)


def _is_printed(output: Any) -> bool:
    return bool(output.get("name") == "stdout")


def _write_result(output: Any) -> str:
    data = output.data
    if FIGURE in data:
        figure = {part: data[FIGURE][part] for part in ("data", "layout")}
        config = {"displayModeBar": False, "responsive": True}
        return str(plotly.io.to_html(figure, config, include_plotlyjs=False, full_html=False))
    if HTML in data:
        return _PANDAS_STYLE.sub("", data[HTML])
    return _write_text(data["text/plain"])


def _write_text(text: str) -> str:
    return f"````{{ .text .output }}\n{text.rstrip()}\n````"
