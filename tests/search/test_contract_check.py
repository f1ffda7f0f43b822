"""Checks of users' cells and tasks: each refuses what breaks it and nothing else."""

import math
import textwrap
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from invocation import refused
from user_cells import EXAMPLES

from rnn.errors import CellError, TaskError
from rnn.tasks.sequence_task import SequenceTask
from search.cell_check import CHECKS, check_export, check_networks, list_networks
from search.cells_tasks import load_record, load_task_of
from search.task_check import check_task, describe_memory, measure_floors
from studies.records import Floors

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


def networks_of(text: str, folder: Path):
    (folder / "mine.py").write_text(text)
    return list_networks("Cell", load_record("mine.py:Cell", folder), state_size=8)


COUNT = "import itertools; self.calls = itertools.count()"

OTHER_NUMBERS = "returns other numbers for the same tokens: expected no random numbers, as in drop"

BROKEN = {
    "exception": (
        cell(first="if not self.on: raise IndexError('too far')"),
        "raises IndexError (too far) in line 15 (with on = false), in the check that output, st",
    ),
    "exit": (cell(first="raise SystemExit"), "raises SystemExit in line 15"),
    "nan": (
        cell(last="y = y / (state.sum() * 0 if self.on else 1)"),
        "the loss of step 1 is NaN or infinite in fp32: expected finite numbers",
    ),
    "bfloat16": (cell(last="y = torch.lerp(y, x, 0.5)"), "operands of one dtype"),
    "double": (cell(last="y = y.double()"), "float64: expected torch.float32"),
    "graph": (
        cell("self.past = 0", last="y = y + self.past; self.past = y.mean()"),
        "fp32 and bf16: expected nothing that is kept between two calls",
    ),
    "numpy": (
        cell("import numpy; self.input.weight.data += float(numpy.random.rand())"),
        "its constructor draws random numbers that are not PyTorch's",
    ),
    "dropout": (cell(last="y = nn.Dropout(0.1)(y)"), OTHER_NUMBERS),
    # What is kept, but never read, does no harm outside the attributes of a layer.
    "memory in a variable": (
        cell("global PAST; PAST = 0", last="global PAST; y = y + PAST; PAST = new.mean().item()"),
        OTHER_NUMBERS,
    ),
    "streams": (cell(last="y = y - y.mean(0)"), "as in batch normalisation"),
    "mode": (cell(last="y = y * (1 if self.training else 2)"), "after eval()"),
    "in place": (
        cell(last="new = state.mul_(0.5).add_(new.detach() * self.input.bias)"),
        "forward changes the state that it reads in place",
    ),
    "buffer": (
        cell("self.register_buffer('calls', torch.zeros(()))", "self.calls += 1"),
        "forward changes layers.0.calls: expected the constructor to create",
    ),
    "late parameter": (
        cell(
            first="if not hasattr(self, 'bias'): self.bias = nn.Parameter(torch.zeros(8))",
            last="y = y + self.bias",
        ),
        "forward changes layers.0.bias: expected the constructor to create",
    ),
    "counter": (
        cell(COUNT, last="y = y * (1 if next(self.calls) < 12 else 2)"),
        "a training that is resumed from a checkpoint differs from one that is not",
    ),
}


@pytest.mark.parametrize(("text", "reason"), BROKEN.values(), ids=BROKEN)
def test_cell_that_breaks_the_contract_is_refused(tmp_path, text, reason):
    with refused(CellError, reason):
        check_networks(networks_of(text, tmp_path))


DIFFERENT = {
    "unregistered": (
        cell("self.noise = torch.randn(input_size)", last="y = y + self.noise"),
        "random numbers in nn.Parameter or register_buffer only",
    ),
    "project": (
        "import rnn.config\n" + cell(),
        "fails in a new process (ModuleNotFoundError: No module na",
    ),
    "another name": (
        "from rnn_search import linear_scan, load\n" + cell(),
        "fails in a new process (ImportError: cannot import name 'load'",
    ),
    "set": (
        cell(last="for name in set('0123456789abcdef'): y = (y + int(name, 16)) / 3"),
        "its export computes other numbers in a new process: expected nothing that depends on",
    ),
    "exit": (
        cell("__name__ == 'cell' and exit(3)"),
        "fails in a new process (exit code 3): expected",
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=[pytest.mark.extended] * (x in ("project", "set", "exit")))
        for x in DIFFERENT
    ],
)
def test_cell_that_differs_in_a_new_process_is_refused(tmp_path, name):
    text, reason = DIFFERENT[name]
    networks = networks_of(text, tmp_path)
    for check in CHECKS.values():
        check(networks[0])
    with refused(CellError, reason):
        check_export(networks[0])


def test_what_the_contract_allows_and_the_examples_pass(tmp_path):
    """The second has no parameters."""
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
    check_networks(networks_of(text, tmp_path))
    nothing = "lambda self, input_size, state_size: nn.Module.__init__(self)"
    forward = "lambda self, x, state: (state, x + state / 2)"
    text = f"from torch import nn\nclass Cell(nn.Module): __init__ = {nothing}; forward = {forward}"
    networks = networks_of(text, tmp_path)
    for name, path in EXAMPLES.items():
        networks += list_networks(name, load_record(f"{path}:{name}", ROOT))
    for check in CHECKS.values():
        for network in networks:
            check(network)


# ------------------------------------------------------------------ tasks

SUMS = """
import numpy as np
import torch

calls = []


class Sums:
    input_size = 1
    output_size = 1

    def sample(self, split, rng, count, length=None):
        values = rng.random((count, 6, 1))
        {body}
        return {{"inputs": values, "targets": targets}}

    {method}
"""

RUNNING = "targets = values.cumsum(1)"
RESETS = "return dict(inputs=values, targets=values, resets=values[:, :, 0] < 0.5)"


def load(folder: Path, body: str = RUNNING, method: str = ""):
    (folder / "mine.py").write_text(SUMS.format(body=body, method=method))
    return load_task_of("mine.py:Sums", {}, folder)


@pytest.mark.parametrize(
    ("body", "method", "line"),
    [
        ("values = np.random.random(values.shape); " + RUNNING, "", "draws other sequences when"),
        (f"calls.append(1); values = values + len(calls); {RUNNING}", "", "draws other sequences"),
        (f"values = np.arange(6.0).repeat(count).reshape(6, count, 1).swapaxes(0, 1); {RUNNING}",
         "", "the splits train and validation share a sequence"),
        (f"values = np.random.default_rng(len(split)).random(values.shape) + (split == 'test'); "
         f"values = values if split == 'train' else np.ones_like(values); {RUNNING}",
         "", "the splits validation and test share a sequence"),
        (RUNNING, "def loss(self, outputs, targets): return (outputs - targets).square().mean()",
         "loss of task Sums returns ()"),
        (RUNNING, "def loss(self, outputs, targets): raise KeyError('fault')",
         "loss of task Sums raises KeyError ('fault') in line"),
        (RUNNING, "def loss(self, outputs, targets): return (outputs - targets.mean())[:, 0]",
         "depends on the other targets"),
        (RUNNING, "def loss(self, outputs, targets): return (outputs * 0 - targets).log()[:, 0]",
         "is not finite or not differentiable"),
        (f"values = values + hash('a') % 1000; {RUNNING}", "", "in a new process"),
        (RESETS, "", "in a batch of 64, states start anew 1 steps after others: expected more"),
    ],
    ids=["global", "kept", "train", "held-out", "mean", "raises", "others", "log", "hash",
         "resets"],
)  # fmt: skip
def test_task_that_would_mislead_is_refused(tmp_path, body, method, line):
    with refused(TaskError, line):
        check_task(load(tmp_path, body, method), 16)


def test_fault_of_the_program_is_not_blamed_on_the_task(tmp_path, monkeypatch):
    monkeypatch.setattr("search.task_check._require_same_in_new_process", lambda *_: None)
    monkeypatch.setattr("search.task_check.measure_floors", lambda *_: {}["fault"])
    with pytest.raises(KeyError):
        check_task(load(tmp_path), 16)


def test_floors_tell_whether_memory_is_needed(tmp_path, monkeypatch):
    """The sum so far needs memory, the input itself does not and is its last value."""
    monkeypatch.setattr("search.task_check._MAX_UPDATES", 60)
    monkeypatch.setattr("search.task_check._require_same_in_new_process", lambda *_: None)
    passed = []
    floors, memory = check_task(load(tmp_path), 64, passed.append)
    assert memory.startswith("the task needs memory")
    assert len(passed) == 5
    assert floors.recurrent["loss"] < floors.memoryless["loss"] / 2
    assert floors.constant["loss"] > floors.memoryless["loss"]
    assert floors.constant.keys() == {"loss", "mae"}
    floors, memory = check_task(load(tmp_path, "targets = values"), 64)
    assert "gained nothing from its memory" in memory
    untrained = Floors(constant={"loss": 1}, memoryless={"loss": 1.2}, recurrent={"loss": 1.1})
    assert "gained nothing" in describe_memory(untrained, torch.full((8,), 0.1))
    assert floors.last_value == {"loss": 0, "mae": 0}


class Echo:
    """Say the token that was read: 0 in half of the steps, 1 and 2 in a quarter each."""

    vocabulary = 3
    classes = 3

    def sample(self, split, rng, count):
        tokens = rng.choice([0, 0, 1, 2], (count, 5))
        return {"inputs": tokens, "targets": tokens}


def test_classes_are_predicted_by_their_shares_and_by_the_last_token(monkeypatch):
    monkeypatch.setattr("search.task_check._MAX_UPDATES", 1)
    floors, _ = measure_floors(SequenceTask(Echo(), "Echo"), 500)
    assert floors.constant == {
        "loss": pytest.approx(1.5 * math.log(2), abs=0.02),
        "accuracy": pytest.approx(0.5, abs=0.03),
    }
    assert floors.last_value == {"loss": pytest.approx(0.001, rel=0.01), "accuracy": 1}
