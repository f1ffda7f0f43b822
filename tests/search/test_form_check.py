"""The sequence form of a cell is compared with its step: errors that were published are found."""

import textwrap

import pytest
from invocation import refused

from rnn.errors import CellError
from search.cell_check import check_networks, list_networks
from search.cells_tasks import load_record
from search.form_check import compare_forms, require_agreement, tabulate

LINEAR = """
import torch
from torch import nn


def scan(a, b, h):
    states = []
    for decay, new in zip(a, b):
        h = decay * h + new
        states.append(h)
    return torch.stack(states)


class Cell(nn.Module):
    def __init__(self, input_size, state_size):
        super().__init__()
        self.gate = nn.Linear(input_size, state_size)
        self.candidate = nn.Linear(input_size, state_size)
        self.read_out = nn.Linear(state_size, input_size)

    def forward(self, x, state):
        z = self.gate(x).sigmoid()
        state = (1 - z) * state + z * self.candidate(x)
        return self.read_out(state), state

    def forward_sequence(self, x, state):
        z = self.gate(x).sigmoid()
        a, b = 1 - z, z * self.candidate(x)
{body}
"""

WITH_SHIFT = """
import torch
from torch import nn


class Cell(nn.Module):
    def __init__(self, input_size, state_size):
        super().__init__()
        self.size = input_size
        self.weight = nn.Parameter(torch.randn(input_size))
        self.read_out = nn.Linear(input_size, input_size)

    def initial_state(self, batch_size):
        return self.weight.new_zeros(batch_size, self.size)

    def forward(self, x, last):
        return self.read_out(x + self.weight * last), x

    def forward_sequence(self, x, last):
        before = torch.cat(({before}, x[:-1]))
        return self.read_out(x + self.weight * before), x[-1]
"""

WITH_MATRIX = """
import torch
from torch import nn


class Cell(nn.Module):
    def __init__(self, input_size, state_size):
        super().__init__()
        self.size = state_size
        self.keys = nn.Linear(input_size, 3 * state_size)

    def initial_state(self, batch_size):
        return self.keys.weight.new_zeros(batch_size, self.size, self.size)

    def forward(self, x, state):
        q, k, v = self.keys(x).chunk(3, -1)
        state = 0.9 * state + k[:, :, None] * v[:, None, :]
        return torch.einsum("bk,bkv->bv", q, state), state

    def forward_sequence(self, x, state):
        state = state{transposed}
        ys = []
        for step in x:
            y, state = self.forward(step, state)
            ys.append(y)
        return torch.stack(ys), state
"""


def linear(body: str) -> str:
    return LINEAR.format(body=textwrap.indent(textwrap.dedent(body).strip(), 8 * " "))


RIGHT = {
    "scan": linear("hs = scan(a, b, state); return self.read_out(hs), hs[-1]"),
    "shift": WITH_SHIFT.format(before="last[None]"),
    "matrix": WITH_MATRIX.format(transposed=""),
}

WRONG = {
    # lucidrains/minGRU-pytorch 9: the state that is carried passes through another function.
    "activated state": (
        linear("hs = scan(a, b, state.relu() + 0.5); return self.read_out(hs), hs[-1]"),
        ["(1 to 500 steps): the output from step 1 on by 0.", "in fp64: expected at most 1e-09"],
    ),
    # fla-org/flash-linear-attention 285 and 494: a convolution does not read the part before.
    "forgotten input": (
        WITH_SHIFT.format(before="torch.zeros_like(last)[None]"),
        "the output from step 1 on",
    ),
    # fla-org/flash-linear-attention 351: a first state is read in another layout.
    "transposed state": (WITH_MATRIX.format(transposed=".mT"), "the output from step 1 on"),
    # state-spaces/mamba: the fast path does not return its state.
    "returned state": (
        linear("hs = scan(a, b, state); return self.read_out(hs), state"),
        "(1 to 500 steps): the state by",
    ),
    "padding": (
        linear(
            """
            pad = a.new_zeros(-len(a) % 8, *a.shape[1:])
            hs = scan(torch.cat((a, pad + 0.5)), torch.cat((b, pad)), state)
            return self.read_out(hs[: len(x)]), hs[-1]
            """
        ),
        "(1 to 500 steps): the state by",
    ),
    "later inputs": (
        linear(
            """
            hs = scan(a, b, state)
            return self.read_out(hs) + 1e-3 * (x - x.mean(0)) * (len(x) > 20), hs[-1]
            """
        ),
        "(1 to 500 steps): the output from step 1 on",
    ),
    "detached state": (
        linear("hs = scan(a, b, state.detach()); return self.read_out(hs), hs[-1]"),
        "(gradients): the gradient of state by 1",
    ),
    "gradient of a second chunk": (
        linear(
            """
            hs = scan(a[:64], b[:64], state)
            if len(a) > 64:
                hs = torch.cat((hs, scan(a[64:], b[64:], hs[-1].detach())))
            return self.read_out(hs), hs[-1]
            """
        ),
        "(gradients): the gradient of the input from step",
    ),
    "one stream": (
        linear("hs = scan(a, b, state); return self.read_out(hs) + (x.shape[1] == 1), hs[-1]"),
        "(1 to 70 streams, from the initial state): the output from step 1 on",
    ),
    "evaluation": (
        linear("hs = scan(a, b, state); return self.read_out(hs) + (not self.training), hs[-1]"),
        "(in evaluation mode): the output from step 1 on",
    ),
    "outputs with gradients": (
        linear(
            "hs = scan(a, b, state); return self.read_out(hs) + torch.is_grad_enabled(), hs[-1]"
        ),
        "(gradients): the output from step 1 on",
    ),
    # Gates that are open at first, and close on larger inputs.
    "division by products of open gates": (
        linear(
            """
            products = a.cumprod(0)
            hs = products * (state + (b / products).cumsum(0))
            return self.read_out(hs), hs[-1]
            """
        ).replace("z = self.gate(x)", "z = (self.gate(x) - 5)"),
        "(inputs ten times as large): the output from step",
    ),
    # Exact in float64, and only as long as the products of the decays do not vanish.
    "division by products": (
        linear(
            """
            products = a.cumprod(0)
            hs = products * (state + (b / products).cumsum(0))
            return self.read_out(hs), hs[-1]
            """
        ),
        "(1 to 500 steps): the output from step",
    ),
}

BROKEN = {
    "exception": (
        linear("assert len(x) < 8; hs = scan(a, b, state); return self.read_out(hs), hs[-1]"),
        "raises AssertionError in line 29, in the check that the sequence form computes what",
    ),
    "shape": (
        linear("hs = scan(a, b, state); return self.read_out(hs[-1]), hs[-1]"),
        "forward_sequence returned a tensor of shape (1, 16) as the output: expected a tensor of",
    ),
}


def network_of(text, folder):
    (folder / "mine.py").write_text(text)
    (network,) = list_networks("Cell", load_record("mine.py:Cell", folder))
    return network


@pytest.mark.parametrize("name", RIGHT)
def test_forms_that_agree_pass(tmp_path, name):
    comparisons = compare_forms(network_of(RIGHT[name], tmp_path), is_thorough=name == "scan")
    assert all(comparison.agrees for comparison in comparisons)
    table = tabulate(comparisons)
    assert table[0].split() == ["difference", "/", "allowed", "fp64", "fp32", "bf16"]
    assert any(line.startswith("4,096 steps") for line in table) == (name == "scan")
    assert not any("differs" in line for line in table)


@pytest.mark.parametrize(("text", "reason"), WRONG.values(), ids=WRONG)
def test_form_that_differs_from_the_step_is_refused(tmp_path, text, reason):
    network = network_of(text, tmp_path)
    comparisons = compare_forms(network)
    assert any("differs: the" in line for line in tabulate(comparisons))
    with refused(CellError, reason):
        require_agreement(network, comparisons)


@pytest.mark.parametrize(("text", "reason"), BROKEN.values(), ids=BROKEN)
def test_form_that_breaks_the_contract_is_refused(tmp_path, text, reason):
    with refused(CellError, reason):
        check_networks([network_of(text, tmp_path)])


def test_cell_without_a_sequence_form_has_nothing_to_compare(tmp_path):
    text = linear("pass").replace("forward_sequence", "something_else")
    assert compare_forms(network_of(text, tmp_path)) == []
