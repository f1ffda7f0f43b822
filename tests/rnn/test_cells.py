"""Sources of users' own cells: what is read, executed and refused."""

import inspect
import pickle
import sys
import textwrap
import traceback
from pathlib import Path

import pytest
import torch

from rnn.errors import CellError
from rnn.own_code import CellSource, load_class, loaded_source, read_source

CELL = """
from __future__ import annotations

from dataclasses import dataclass

from torch import nn

@dataclass
class Sizes:
    n: int

class Cell(nn.Module):
    def __init__(self, input_size: int, state_size: int) -> None:
        super().__init__()
        self.sizes = Sizes(state_size)

    def forward(self, x, state):
        raise RuntimeError("not today")
"""


def source(text: str, name: str = "Cell", spec: str = "cells.py:Cell") -> CellSource:
    return CellSource(spec, name, textwrap.dedent(text))


def refusal(*arguments, call=load_class) -> str:
    with pytest.raises(CellError) as refused:
        call(*arguments)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_cell_of_a_file_is_read_relative_to_the_folder_and_loaded(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "mine.py").write_bytes(CELL.replace("\n", "\r\n").encode())
    read = read_source("cells/mine.py:Cell", tmp_path, CellSource)
    assert (read.spec, read.name) == ("cells/mine.py:Cell", "Cell")
    assert read.text.encode() == (tmp_path / "cells" / "mine.py").read_bytes()
    cls = load_class(read)
    assert cls(2, 3).sizes.n == 3
    assert load_class(loaded_source("Cell", read.sha256)) is cls
    assert loaded_source("Cell", read.sha256) == read
    message = refusal("MinGRU", "ab" * 32, call=loaded_source)
    assert message.startswith("cell MinGRU of source abababababab is not loaded")


def test_cell_of_an_installed_module_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    for file in (package / "cells.py", tmp_path / "deeper.py"):
        file.write_text(CELL)
    monkeypatch.syspath_prepend(tmp_path)
    assert read_source("my_package.cells:Cell", Path("/"), CellSource).text == CELL
    assert "no module my_package.other" in refusal(
        "my_package.other:Cell", tmp_path, CellSource, call=read_source
    )
    assert "no module my_package.cells.deeper" in refusal(
        "my_package.cells.deeper:Cell", tmp_path, CellSource, call=read_source
    )
    assert "has no source file" in refusal("sys:Cell", tmp_path, CellSource, call=read_source)


def test_text_is_executed_once_in_a_process(tmp_path):
    counter = tmp_path / "executed"
    text = f"{CELL}\nclass Other(Cell):\n    pass\n\nopen({str(counter)!r}, 'a').write('x')\n"
    assert load_class(source(text)) is load_class(source(text, spec="copy.py:Cell"))
    assert load_class(source(text, "Other")).__name__ == "Other"
    assert counter.read_text() == "x"


def test_objects_of_a_cell_are_pickled_and_tracebacks_show_its_lines():
    cls = load_class(source(CELL))
    assert pickle.loads(pickle.dumps(cls(2, 3))).sizes == cls(2, 3).sizes
    with pytest.raises(RuntimeError) as raised:
        cls(2, 3)(None, None)
    assert 'raise RuntimeError("not today")' in "".join(traceback.format_exception(raised.value))
    assert inspect.getsource(cls).startswith("class Cell(nn.Module)")


@pytest.mark.parametrize("spec", ["", "Cell", "mine.py", "mine.py:", "a b:Cell", "a/b.txt:Cell"])
def test_malformed_spec_is_refused(spec, tmp_path):
    message = refusal(spec, tmp_path, CellSource, call=read_source)
    assert "expected path/to/file.py:Class or package.module:Class" in message


def test_file_that_cannot_be_the_source_of_a_cell_is_refused(tmp_path):
    (tmp_path / "latin.py").write_bytes(b"# \xe4")
    for name, expected in {
        "missing": f"expected a file {tmp_path}/missing.py; check the path",
        "latin": "can't decode byte 0xe4 in position 2: unexpected end of data): expected a f",
        "a" * 300: "File name too long",
    }.items():
        assert expected in refusal(f"{name}.py:Cell", tmp_path, CellSource, call=read_source)


def test_file_that_defines_no_such_cell_is_refused():
    assert "no class Missing of torch.nn.Module: expected Cell" in refusal(source(CELL, "Missing"))
    for text in ("x = 1", "class Cell:\n    pass"):
        assert "no class Cell of torch.nn.Module: expected class Cell(nn" in refusal(source(text))


def test_exception_of_a_file_is_named_with_its_line():
    for text, expected in {
        "x = 1\nclass Cell(:": "raises SyntaxError (invalid syntax (<cells.py ",
        "x = 1\n\ny = 1 / 0": "raises ZeroDivisionError (division by zero) in line 3",
        "import sys\nsys.exit(2)": "raises SystemExit (2) in line 2",
        "import no_such_package": "raises ModuleNotFoundError (No module named 'no_such_package')",
        "import torch\ntorch.set_default_dtype(torch.half)": "raises RuntimeError (torch.set_def",
        "raise ValueError('two\\nlines')": "raises ValueError (two lines) in line 1",
    }.items():
        before = set(sys.modules)
        assert expected in refusal(source(text))
        assert not {name for name in set(sys.modules) - before if name.startswith("cell_")}
        assert torch.get_default_dtype() == torch.float32
