"""Cells of users for tests: the examples, and small ones that use what the contract allows."""

import textwrap
from pathlib import Path

from rnn.config import NetworkConfig, ParamValue
from rnn.own_code import CellSource, load_class, read_source

ROOT = Path(__file__).parents[1]

EXAMPLES = {
    "MinGRU": "examples/cells/min_gru.py",
    "MinLSTM": "examples/cells/min_lstm.py",
    "LayerNormGRU": "examples/cells/layer_norm_gru.py",
    "DiagonalLRU": "examples/cells/diagonal_lru.py",
    "GatedDeltaNet": "examples/cells/gated_delta_net.py",
}

_HEADER = "import torch\nfrom torch import nn\n\n"

CELLS = {
    "TorchGRU": """
        class TorchGRU(nn.Module):
            def __init__(self, input_size, state_size):
                super().__init__()
                self.cell = nn.GRUCell(input_size, state_size)

            def forward(self, x, state):
                state = self.cell(x, state)
                return state, state
        """,
    # A part of its state becomes another part of the next one, unchanged.
    "Delay": """
        class Delay(nn.Module):
            def __init__(self, input_size, state_size):
                super().__init__()
                self.linear = nn.Linear(input_size + state_size, state_size)

            def initial_state(self, batch_size):
                zeros = self.linear.weight.new_zeros(batch_size, len(self.linear.weight))
                return zeros, zeros, zeros

            def forward(self, x, state):
                newest, middle, oldest = state
                new = self.linear(torch.cat((x, oldest), 1)).tanh()
                return new - middle, (new, newest, middle)
        """,
    # It keeps its weights in a list as well.
    "OneStepGRU": """
        class OneStepGRU(nn.Module):
            def __init__(self, input_size, state_size):
                super().__init__()
                self.gru = nn.GRU(input_size, state_size)

            def forward(self, x, state):
                outputs, states = self.gru(x[None], state[None])
                return outputs[0], states[0]
        """,
    # A learned initial state, an integer in the state, a constant buffer and a frozen parameter.
    "Everything": """
        class Everything(nn.Module):
            def __init__(self, input_size, state_size, *, scale: float = 0.5):
                super().__init__()
                self.start = nn.Parameter(torch.randn(state_size))
                self.linear = nn.Linear(input_size + state_size, input_size + state_size)
                self.frozen = nn.Parameter(torch.randn(state_size), requires_grad=False)
                self.register_buffer("mixing", torch.randn(state_size, state_size))
                self.register_buffer("order", torch.randperm(state_size))
                self.register_buffer("scale", torch.tensor(scale), persistent=False)

            def initial_state(self, batch_size):
                count = torch.zeros(batch_size, dtype=torch.long)
                return self.start.tanh().expand(batch_size, -1), count

            def forward(self, x, state):
                h, count = state
                y = self.linear(torch.cat((x, h @ self.mixing), 1))
                y, h = y[:, : x.shape[1]], y[:, x.shape[1] :]
                h = (h * self.frozen)[:, self.order].sigmoid() * self.scale
                return y / (1 + count[:, None]), (h, count + 1)
        """,
    # A sequence form, whose state is learned and has two tensors.
    "Shifted": """
        class Shifted(nn.Module):
            def __init__(self, input_size, state_size):
                super().__init__()
                self.start = nn.Parameter(torch.randn(state_size))
                self.decay = nn.Parameter(torch.rand(state_size))
                self.linear = nn.Linear(2 * input_size, state_size)
                self.read_out = nn.Linear(state_size, input_size)

            def initial_state(self, batch_size):
                start = self.start.expand(batch_size, -1)
                return start, start.new_zeros(batch_size, self.read_out.out_features)

            def forward(self, x, state):
                h, last = state
                h = self.decay * h + self.linear(torch.cat((x, last), 1))
                return self.read_out(h), (h, x)

            def forward_sequence(self, x, state):
                h, last = state
                new = self.linear(torch.cat((x, torch.cat((last[None], x[:-1]))), 2))
                powers = self.decay ** torch.arange(len(x) + 1, device=x.device)[:, None]
                hs = []
                for t in range(len(x)):
                    past = powers[: t + 1].flip(0)[:, None] * new[: t + 1]
                    hs.append(powers[t + 1] * h + past.sum(0))
                hs = torch.stack(hs)
                return self.read_out(hs), (hs[-1], x[-1])
        """,
}


def source_of(cell: str, text: str | None = None) -> CellSource:
    if text is None and cell in EXAMPLES:
        return read_source(f"{EXAMPLES[cell]}:{cell}", ROOT, CellSource)
    content = _HEADER + textwrap.dedent(CELLS[cell] if text is None else text)
    return CellSource(f"{cell.lower()}.py:{cell}", cell, content)


def cell_config(
    cell: str, layers: int = 2, state_size: int = 5, text: str | None = None, **options: ParamValue
) -> NetworkConfig:
    """Load a cell, and return the config of a network of it."""
    source = source_of(cell, text)
    load_class(source)
    return NetworkConfig(cell, layers, state_size, tuple(options.items()), source.sha256)
