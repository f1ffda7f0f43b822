"""What a known cell comes to, as code and as equations: :mod:`rnn.source` writes it out."""

from rnn.known_cell import Cell, KnownCell

MODULES: dict[Cell, str] = {"elman": "RNNCell", "gru": "GRUCell", "lstm": "LSTMCell"}
"""The names of torch's modules."""

SUFFIXES = {"input": "ih", "state": "hh"}
"""A layer's products to how the names of their tensors in such a module end."""

_EQUATIONS: dict[Cell, list[str]] = {
    "elman": [r"y = \tanh(x W_u + b_u + h V_u + d_u)"],
    "gru": [
        r"r = \sigma(x W_r + b_r + h V_r + d_r)",
        r"z = \sigma(x W_z + b_z + h V_z + d_z)",
        r"u = \tanh(x W_u + b_u + r \odot (h V_u + d_u))",
        r"y = (1 - z) \odot u + z \odot h",
    ],
    "lstm": [
        r"i = \sigma(x W_i + b_i + h V_i + d_i)",
        r"f = \sigma(x W_f + b_f + h V_f + d_f)",
        r"u = \tanh(x W_u + b_u + h V_u + d_u)",
        r"o = \sigma(x W_o + b_o + h V_o + d_o)",
        r"m \leftarrow f \odot m + i \odot u",
        r"y = o \odot \tanh(m)",
    ],
}


def forward_lines(known: KnownCell) -> list[str]:
    """Write the body of a layer's forward function of ``x`` and ``state``, a line each.

    An LSTM's state is its output and its memory, side by side.
    """
    if known.cell != "lstm":
        return ["state = self.cell(x, state)  # (B, n)", "return state, state"]
    return [
        "output, memory = state.chunk(2, dim=1)  # (B, n)",
        "output, memory = self.cell(x, (output, memory))  # (B, n)",
        "state = torch.cat((output, memory), dim=1)  # (B, 2n)",
        "return output, state",
    ]


def known_equations(known: KnownCell) -> list[str]:
    """Write one layer in LaTeX; see :func:`rnn.source.equations`.

    W and b are of the input's maps, V and d of the state's, and m is an LSTM's memory.
    """
    return [*_EQUATIONS[known.cell], r"h \leftarrow y"]
