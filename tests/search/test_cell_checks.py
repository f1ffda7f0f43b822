"""Certification of users' own cells: each check refuses a cell that breaks it and nothing else."""

import signal
import textwrap
from pathlib import Path

import pytest
from helpers import ROOT
from process_runner import wait_until
from user_cells import EXAMPLES

import search.cell_processes
from rnn.errors import CellError
from search.cell_checks import CHECKS
from search.cell_processes import find_faults
from search.cells import load_record
from search.certification import check_networks, list_networks
from studies.cell_record import CellRecord, OptionRecord

CELL = """
import torch
from torch import nn


class Cell(nn.Module):
    def __init__(self, input_size: int, state_size: int, *, on: bool = True):
        super().__init__()
        self.on = on
        self.input = nn.Linear(input_size + state_size, state_size)
        self.read_out = nn.Linear(state_size, input_size)
{constructor}

    def forward(self, x, state):
{first}
        new = self.input(torch.cat((x, state), 1)).tanh()
        y = self.read_out(new)
{last}
        return y, new
"""


def cell(constructor: str = "", first: str = "", last: str = "") -> str:
    parts = {"constructor": constructor, "first": first, "last": last}
    return CELL.format(
        **{name: textwrap.indent(textwrap.dedent(code), 8 * " ") for name, code in parts.items()}
    )


def networks_of(text: str, folder: Path, values=None, name: str = "Cell"):
    (folder / "mine.py").write_text(text)
    record = load_record(f"mine.py:{name}", folder)
    return list_networks(name, record, values or {}, state_size=8)


def refuse(text: str, folder: Path) -> tuple[list[str], str]:
    """Return the checks that a cell passes, and why it is refused."""
    passed: list[str] = []
    with pytest.raises(CellError) as refused:
        check_networks(networks_of(text, folder), passed.append)
    message = str(refused.value)
    assert message.startswith("cell Cell")
    assert "\n" not in message
    return passed, message


COUNT = "import itertools; self.calls = itertools.count()"

BROKEN = {
    "exception": (
        cell(first="if not self.on: raise IndexError('too far')"),
        "check_shapes",
        "raises IndexError (too far) in line 15 (with on = false), in the check that output and",
    ),
    "exit": (cell(first="raise SystemExit(0)"), "check_shapes", "raises SystemExit (0) in line 15"),
    "nan": (
        cell(last="y = y / (state.sum() * 0 if self.on else 1)"),
        "check_finite",
        "the loss of step 1 is NaN or infinite in fp32: expected finite numbers",
    ),
    "bfloat16": (cell(last="y = torch.lerp(y, x, 0.5)"), "check_finite", "operands of one dtype"),
    "double": (cell(last="y = y.double()"), "check_shapes", "float64: expected torch.float32"),
    "graph": (
        cell("self.past = 0", last="y = y + self.past; self.past = y.mean()"),
        "check_finite",
        "fp32 and bf16: expected nothing that is kept between two calls",
    ),
    "numpy": (
        cell("import numpy; self.input.weight.data += float(numpy.random.rand())"),
        "check_deterministic",
        "its constructor draws random numbers that are not PyTorch's",
    ),
    "dropout": (cell(last="y = nn.Dropout(0.1)(y)"), "check_deterministic", "as dropout does"),
    "in place": (
        cell(last="new = state.mul_(0.5).add_(new.detach() * self.input.bias)"),
        "check_deterministic",
        "forward changes the state that it reads in place",
    ),
    "buffer": (
        cell("self.register_buffer('calls', torch.zeros(()))", "self.calls += 1"),
        "check_deterministic",
        "forward changes layers.0.calls: expected all that changes from step to step",
    ),
    "lazy": (
        cell(
            first="if not hasattr(self, 'bias'): self.bias = nn.Parameter(torch.zeros(len(x.T)))",
            last="y = y + self.bias",
        ),
        "check_deterministic",
        "forward creates layers.0.bias: expected the constructor to create all parameters",
    ),
    "random state": (
        cell() + "\n    def initial_state(self, batch_size):\n"
        "        return torch.randn(batch_size, self.input.out_features)\n",
        "check_deterministic",
        "initial_state returns other numbers at each call: expected a state that follows",
    ),
    "memory": (cell(COUNT, last="y += next(self.calls)"), "check_deterministic", "the same input"),
    **{
        f"memory in {name}": (
            cell("self.past = {'h': [0]}", last=f"{code} = new"),
            "check_deterministic",
            f"forward changes {name}: expected all that changes from step to step to be in the st",
        )
        for name, code in {
            "layers.0.past": "self.past['h'][0]",
            "Cell.past": "Cell.past",
            "the global variable PAST": "global PAST; PAST",
        }.items()
    },
    "mode": (
        cell(last="y = y * (1 if self.training else 2)"),
        "check_deterministic",
        "forward returns other numbers after eval(): expected the same as in training",
    ),
    "streams": (cell(last="y = y - y.mean(0)"), "check_streams", "as in batch normalisation"),
    "unused": (
        cell("self.extra = nn.Linear(1, 1)"),
        "check_gradients",
        "not reach its parameter ext",
    ),
    "crossing": (
        cell(
            "import queue; self.past = queue.SimpleQueue(); self.past.put(None); "
            "self.bias = nn.Parameter(torch.zeros(input_size))",
            last="""
            y, past = y + self.bias, self.past.get()
            self.past.put(self.bias + 0)
            if past is not None:
                y = y + (past - past.detach())
            """,
        ),
        "check_steps",
        "the gradient of a step depends on the steps before it, with bptt_steps = 1",
    ),
    "unregistered": (
        cell("self.noise = torch.randn(input_size)", last="y = y + self.noise"),
        "check_state_dict",
        "it computes with random numbers that its state dict lacks",
    ),
    "counter": (
        cell(COUNT, last="y = y * (1 if next(self.calls) < 12 else 2)"),
        "check_resumption",
        "a training that is resumed from a checkpoint differs from one that is not",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_each_check_refuses_a_cell_that_breaks_it_alone(tmp_path, broken):
    text, check, reason = BROKEN[broken]
    passed, message = refuse(text, tmp_path)
    assert reason in message
    names = [each.run.__name__ for each in CHECKS]
    assert passed == [each.passed for each in CHECKS[: names.index(check)]]


ELSEWHERE = {
    "hash": (
        cell("self.input.weight.data *= 1 + hash('a') % 1000 / 1e4"),
        "has other initial weights in another process, with another hash seed",
    ),
    "set": (
        cell(last="for name in {'1', '2', '3', '4', '5', '6'}: y = (y + int(name)) / 3"),
        "has other outputs in another process, with another hash seed",
    ),
    "project": (
        "import rnn.config\n" + cell(),
        "its export does not run without this program: ModuleNotFoundError (",
    ),
    "place": (
        cell(last="y = y * (2 if __name__ == 'cell' else 1)"),
        "its export computes other numbers",
    ),
    "exit": (
        cell("if __name__ == 'cell': raise SystemExit"),
        "its export does not run without this program: SystemExit ()",
    ),
}


def test_cells_that_differ_in_a_new_process_are_refused(tmp_path):
    """All of them in the same two processes."""
    networks = [networks_of(text, tmp_path)[0] for text, _ in ELSEWHERE.values()]
    for check in CHECKS:
        for network in networks:
            check.run(network)
    faults = list(map(str, find_faults(networks)))
    assert len(faults) == len(networks)
    for fault, (_, reason) in zip(faults, ELSEWHERE.values(), strict=True):
        assert fault.startswith("cell Cell")
        assert reason in fault
    with pytest.raises(CellError, match="has other initial weights"):
        check_networks(networks[:1])


@pytest.mark.extended
def test_cell_that_cannot_be_loaded_in_a_new_process_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    text = "import os\nassert 'PYTHONHASHSEED' not in os.environ\n" + cell()
    passed, message = refuse(text, tmp_path)
    assert "a new process cannot build it (rnn.errors.CellError: cell 'mine.py:Cell' c" in message
    assert passed == [check.passed for check in CHECKS]


def test_cell_that_never_returns_in_a_new_process_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(search.cell_processes, "TIMEOUT", 0.01)
    _, message = refuse(cell(), tmp_path)
    assert "a new process did not build it in 0 s" in message


@pytest.mark.extended
def test_processes_of_a_check_end_with_it(runner, tmp_path):
    """Even if the cell hangs, and the check is killed."""
    hanging = f"""
import os, pathlib, sys, time
if sys.argv[0].endswith("cell_check_program.py"):
    pathlib.Path({str(tmp_path)!r}, f"{{os.getpid()}}.pid").touch()
    time.sleep(1000)
"""
    (tmp_path / "mine.py").write_text(hanging + cell())
    command = runner.start("-m", "search.check", "mine.py:Cell", cwd=tmp_path)
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2 or command.code is not None)
    assert command.code is None, command.output
    command.send(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    wait_until(lambda: not any(is_running(int(path.stem)) for path in tmp_path.glob("*.pid")))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_what_the_contract_allows_and_the_examples_pass(tmp_path):
    """All of them in the same two processes."""
    text = cell(
        """
        self.start = nn.Parameter(torch.zeros(state_size))
        self.zero = nn.Parameter(torch.zeros(input_size))
        self.register_buffer("constant", torch.randn(input_size))
        """,
        last="y = y + self.constant * self.zero.tanh() + self.start[:1] * state[:, :1]",
    )
    text += "\n    def initial_state(self, batch_size):\n"
    text += "        return self.start.expand(batch_size, -1)\n"
    networks = networks_of(text, tmp_path)
    for name, path in EXAMPLES.items():
        networks += list_networks(name, load_record(f"{path}:{name}", ROOT), {})
    check_networks(networks)


def test_each_value_of_each_option_is_checked_once():
    record = CellRecord(
        spec="mine.py:Cell",
        sha256="0" * 64,
        options={
            "norm": OptionRecord(type="bool", default=True),
            "kind": OptionRecord(type="str", choices=["a", "b", "c"], default="b"),
            "depth": OptionRecord(type="int", default=1),
            "rate": OptionRecord(type="float", default=1.0),
        },
    )
    values = {"depth": [1, 2], "rate": [1, 3], "kind": ["a"]}
    networks = list_networks("Cell", record, values, 8, {"depth": 4})
    assert [dict(network.options) for network in networks] == [
        {"depth": 4},
        {"norm": False, "depth": 4},
        {"kind": "a", "depth": 4},
        {"kind": "c", "depth": 4},
        {"depth": 1},
        {"depth": 2},
        {"depth": 4, "rate": 3.0},
    ]
    assert {network.layers for network in networks} == {2}
