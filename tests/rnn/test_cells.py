"""Sources of users' own cells: what is read, executed and refused."""

import inspect
import os
import pickle
import sys
import textwrap
import traceback
from pathlib import Path

import pytest
import torch

from rnn.cells.loading import cell_class, load_cell, loaded_source
from rnn.cells.options import CellOption, cell_options, check_option_values
from rnn.cells.source import MAX_SOURCE_BYTES, CellSource, read_cell_source
from rnn.config import RESERVED_OPTION_NAMES, CellConfig
from rnn.errors import CellError
from studies.config import TrainingSettings

CELL = """
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

@dataclass
class Sizes:
    n: int

class Cell(nn.Module):
    def __init__(
        self, input_size: int, state_size: int, *,
        tanh: bool = False,
        depth: int = 1,
        radius: float = 1,
        name: str = "a",
        norm: Literal["none", "all"] = "none",
        order: Literal[1, 2] = 2,
    ) -> None:
        super().__init__()
        self.sizes = Sizes(state_size)

    def forward(self, x, state):
        raise RuntimeError("not today")
"""


def source(text: str, name: str = "Cell", spec: str = "cells.py:Cell") -> CellSource:
    return CellSource(spec, name, textwrap.dedent(text))


def refusal(*arguments, call=load_cell) -> str:
    with pytest.raises(CellError) as refused:
        call(*arguments)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_cell_of_a_file_is_read_relative_to_the_folder_and_loaded(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "mine.py").write_bytes(CELL.replace("\n", "\r\n").encode())
    read = read_cell_source("cells/mine.py:Cell", tmp_path)
    assert (read.spec, read.name) == ("cells/mine.py:Cell", "Cell")
    assert read.text.encode() == (tmp_path / "cells" / "mine.py").read_bytes()
    cls = load_cell(read)
    assert cls(2, 3).sizes.n == 3
    config = CellConfig("Cell", read.sha256, (), 1, 3)
    assert cell_class(config) is cls
    assert loaded_source(config) == read
    message = refusal(CellConfig("MinGRU", "ab" * 32, (), 1, 2), call=cell_class)
    assert message.startswith("cell MinGRU of source abababababab is not loaded")


def test_cell_of_an_installed_module_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "cells.py").write_text(CELL)
    monkeypatch.syspath_prepend(tmp_path)
    assert read_cell_source("my_package.cells:Cell", Path("/")).text == CELL
    assert "no module my_package.other" in refusal(
        "my_package.other:Cell", tmp_path, call=read_cell_source
    )
    assert "my_package.cells is not a package" in refusal(
        "my_package.cells.deeper:Cell", tmp_path, call=read_cell_source
    )
    assert "has no source file" in refusal("sys:Cell", tmp_path, call=read_cell_source)


def test_text_is_executed_once_in_a_process(tmp_path):
    counter = tmp_path / "executed"
    text = f"{CELL}\nclass Other(Cell):\n    pass\n\nopen({str(counter)!r}, 'a').write('x')\n"
    assert load_cell(source(text)) is load_cell(source(text, spec="copy.py:Cell"))
    assert load_cell(source(text, "Other")).__name__ == "Other"
    assert counter.read_text() == "x"


def test_objects_of_a_cell_are_pickled_and_tracebacks_show_its_lines():
    cls = load_cell(source(CELL))
    assert pickle.loads(pickle.dumps(cls(2, 3))).sizes == cls(2, 3).sizes
    with pytest.raises(RuntimeError) as raised:
        cls(2, 3)(None, None)
    assert 'raise RuntimeError("not today")' in "".join(traceback.format_exception(raised.value))
    assert inspect.getsource(cls).startswith("class Cell(nn.Module)")


@pytest.mark.parametrize("spec", ["", "Cell", "mine.py", "mine.py:", "a b:Cell", "a/b.txt:Cell"])
def test_malformed_spec_is_refused(spec, tmp_path):
    message = refusal(spec, tmp_path, call=read_cell_source)
    assert "expected path/to/file.py:Class or package.module:Class" in message


def test_file_that_cannot_be_the_source_of_a_cell_is_refused(tmp_path):
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "large.py").write_bytes(b"#" * (MAX_SOURCE_BYTES + 1))
    (tmp_path / "latin.py").write_bytes(b"# \xe4")
    (tmp_path / "syntax.py").write_text("x = 1\nclass Cell(:\n")
    (tmp_path / "deep.py").write_text("(" * 9000 + ")" * 9000)
    for name, expected in {
        "missing": f"expected a file {tmp_path}/missing.py; check the path",
        "folder": "is not a regular file",
        "pipe": "is not a regular file",
        "large": "is too large, expected at most 1,048,576 bytes",
        "latin": "is not UTF-8",
        "syntax": "is not valid Python (invalid syntax, line 2)",
        "deep": "is not valid Python (",
    }.items():
        assert expected in refusal(f"{name}.py:Cell", tmp_path, call=read_cell_source)
    assert "cannot be read" in refusal("nu\0ll.py:Cell", tmp_path, call=read_cell_source)


def test_file_that_defines_no_such_cell_is_refused():
    assert "no class Missing, expected Cell" in refusal(source(CELL, "Missing"))
    assert "it has no nn.Module" in refusal(source("x = 1"))
    assert "Cell is not a class of torch.nn.Module" in refusal(source("class Cell:\n    pass"))
    text = "from torch import nn\nclass Cell(nn.Module):\n    pass"
    assert "cell Cell has no argument input_size" in refusal(source(text))


def test_exception_of_a_file_is_named_with_its_line():
    for text, expected in {
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


def test_options_are_read_from_annotations_and_defaults():
    assert cell_options(load_cell(source(CELL))) == {
        "tanh": CellOption("bool", None, False),
        "depth": CellOption("int", None, 1),
        "radius": CellOption("float", None, 1.0),
        "name": CellOption("str", None, "a"),
        "norm": CellOption("str", ("none", "all"), "none"),
        "order": CellOption("int", (1, 2), 2),
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("self", "no argument input_size: expected __init__(self, input_size, "),
        ("self, *input_size, state_size", "no argument input_size"),
        ("self, norm, /, input_size, state_size", "an argument norm"),
        ("layers: int = 1", "an option layers, which"),
        ("norm=True", "option norm of cell Cell has no annotation"),
        ("norm: bool", "option norm of cell Cell has no default"),
        ("norm: list[int] = ()", "is annotated list[int]: expected bool, int, float, str or L"),
        ("norm: 'Unknown' = 1", "name 'Unknown' is not defined"),
        ("norm: int = 10**5000", "is <int>: expected int of 64 bits"),
        ("norm: int = True", "default of option norm of cell Cell is True: expected int"),
        ("norm: Literal['a', 'b'] = 'c'", "is 'c': expected one of 'a', 'b'"),
    ],
)
def test_constructor_that_breaks_the_contract_is_refused(arguments, expected):
    if not arguments.startswith("self"):
        arguments = f"self, input_size, state_size, {arguments}"
    text = f"class Cell(nn.Module):\n    def __init__({arguments}):\n        super().__init__()\n"
    imports = "from typing import Literal\nfrom torch import nn\n"
    assert expected in refusal(source(imports + text))


def test_names_of_training_settings_and_switches_are_reserved():
    assert set(TrainingSettings.model_fields) <= RESERVED_OPTION_NAMES
    assert {"cell", "replicate", "input_gate", "state_size"} <= RESERVED_OPTION_NAMES


def test_values_of_options_are_checked_and_integers_become_floats():
    options = cell_options(load_cell(source(CELL)))
    checked = check_option_values("Cell", options, {"radius": 2, "norm": "all", "depth": 3})
    assert checked == {"radius": 2.0, "norm": "all", "depth": 3}
    assert type(checked["radius"]) is float
    for values, expected in (
        ({"depth": True}, "option depth of cell Cell is True: expected int"),
        ({"tanh": 1}, "option tanh of cell Cell is 1: expected bool"),
        ({"radius": float("inf")}, "option radius of cell Cell is inf: expected float"),
        ({"order": 3}, "option order of cell Cell is 3: expected one of 1, 2"),
        (
            {"gate": 1},
            "cell Cell has no option gate: expected tanh (bool), depth (int of 64 bits), radius",
        ),
    ):
        assert refusal("Cell", options, values, call=check_option_values).startswith(expected)
    assert refusal("Cell", {}, {"gate": 1}, call=check_option_values).endswith("has none")
