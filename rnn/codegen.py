"""An architecture written out, as code and as equations: its switches are settled, none is left.

:class:`rnn.stacked.layer.BaselineCell` computes all architectures at once and is full of
switches. Here is what one
of them comes to, for a reader who wants to know, or to use, that network alone. A network of a
known cell is written with torch's own.
"""
# TODO-MERGE What a known cell comes to, as code and as equations: :mod:`rnn.codegen` writes it out.

from collections.abc import Sequence
from textwrap import indent
from typing import Literal, get_args

from rnn.config import BYTE_VOCAB_SIZE, BaselineCell, BaselineConfig, GatedConfig

Part = Literal["weight", "bias"]
"""One of a product's two tensors."""

_LAYER = "layers.0."
"""What the products of the first layer start with; the other layers' are the same."""

_MODULE = '''\
"""A recurrent network: {label}.

B is the number of lanes (texts read side by side), n = {n} the state size and V = {v} the size of
the vocabulary. {gradient}
"""

{imports}


class Layer(nn.Module):
    """One layer, one time step at a time."""

    def __init__(self):
        super().__init__()
{modules}

{forward}


class Network(nn.Module):
    """The whole network: reads a symbol, and says which comes next."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear{embedding}
        self.layers = nn.ModuleList(Layer() for _ in range({layers}))
        self.head = nn.Linear{head}

    def initial_state(self, lanes):
        """Return the states at a text's start: for each layer zeros (B, {state})."""
        return [self.head.weight.new_zeros(lanes, {width}) for _ in self.layers]

    def forward(self, symbols, states):
        """Map symbols (B,) and each layer's state (B, {state}) to logits (B, V) and new states."""
        # Of a one-hot symbol, a linear map takes one row of its table.
        table = self.embedding.weight.T  # (V, n)
        x = table[symbols] + self.embedding.bias  # (B, n)
        new_states = []
        for layer, state in zip(self.layers, states, strict=True):
            x, new_state = layer(x, state)  # (B, n){new_state}
            new_states.append(new_state)
        logits = self.head(x)  # (B, V)
        return logits, new_states
'''


def generate_forward(architecture: GatedConfig | BaselineConfig, bptt_steps: int = 1) -> str:
    """Write the forward function of one layer in Python.

    Args:
        architecture: whose layers all compute the same.
        bptt_steps: the steps that a gradient goes back through; of our cell's states, those of
            1 are detached.

    Returns:
        The source of a method ``forward(self, x, state)``, not indented and without a newline at
        its end. Each line that makes a tensor ends in its shape, B lanes and a state size of n.
    """
    if isinstance(architecture, BaselineConfig):
        lines = baseline_forward_lines(architecture)
    else:
        lines = _forward_lines(architecture, bptt_steps == 1)
    return "def forward(self, x, state):\n" + indent("\n".join(lines), "    ")


def _forward_lines(a: GatedConfig, is_detached: bool) -> list[str]:
    lines = ["c = torch.cat((x, state), dim=1)  # (B, 2n)"]
    old = "state"
    if a.input_gate:
        lines += [
            "input_gate = torch.sigmoid(self.input_gate(c))  # (B, 2n)",
            "c = input_gate * c  # (B, 2n)",
        ]
        if a.reads_previous_state:
            old = "gated_state"
            lines += ["_, gated_state = c.chunk(2, dim=1)  # (B, n)"]

    def gate(name: str, state: str) -> list[str]:
        seen, joined = "c", []
        if a.gate_inputs == "candidate":
            seen, joined = "seen", [f"seen = {_cat(['c', state])}  # (B, 3n)"]
        return [*joined, f"{name} = torch.sigmoid(self.{name}({seen}))  # (B, n)"]

    states = _states(a, "candidate", "mixed_state", "new_state")
    lines += [f"{states[0]} = torch.tanh(self.candidate(c))  # (B, n)"]
    if a.state_gate:
        mix = f"state_gate * {states[0]} + (1 - state_gate) * state"
        lines += [*gate("state_gate", states[0]), f"{states[1]} = {mix}  # (B, n)"]
    if a.forget_gate:
        forget = f"{states[-1]} = forget_gate * {states[-2]}  # (B, n)"
        lines += [*gate("forget_gate", states[-2]), forget]

    reads = _reads(a, "new_state", old, "x")
    read = reads[0]
    if len(reads) > 1:
        read = "read"
        lines += [f"read = {_cat(reads)}  # (B, {len(reads)}n)"]
    lines += [f"output = self.read_out({read})  # (B, n)"]
    if a.output_gate:
        lines += [
            f"seen = {_cat(['output', read])}  # (B, {1 + len(reads)}n)",
            "output_gate = torch.sigmoid(self.output_gate(seen))  # (B, n)",
            "output = output_gate * output  # (B, n)",
        ]
    else:
        lines += ["output = output * torch.sigmoid(output)  # (B, n)"]
    return [*lines, "return output, new_state" + ".detach()" * is_detached]


def generate_module(
    architecture: GatedConfig | BaselineConfig,
    vocab_size: int = BYTE_VOCAB_SIZE,
    bptt_steps: int = 1,
) -> str:
    """Write a Python file that is the whole network and needs nothing but PyTorch.

    Args:
        architecture: the network to write.
        vocab_size: V, the number of symbols.
        bptt_steps: the steps that a gradient went back through when it was trained.

    Returns:
        The file's text, with the classes ``Layer``, whose forward function is that of
        :func:`generate_forward`, and ``TrainableNetwork``, whose state has the names of
        :func:`state_dict_mapping`.
    """
    param_shapes, n = architecture.param_shapes(vocab_size), architecture.state_size
    if isinstance(architecture, BaselineConfig):
        modules = [f"self.cell = nn.{TORCH_CELL_CLASSES[architecture.cell]}({n}, {n})"]
        is_lstm = architecture.cell == "lstm"
    else:
        modules = [
            f"self.{name.removeprefix(_LAYER)} = nn.Linear{shape}"
            for name, shape in param_shapes.items()
            if name.startswith(_LAYER)
        ]
        is_lstm = False
    gradient = "No gradient crosses a time step."
    if bptt_steps > 1:
        gradient = f"It was trained with gradients through {bptt_steps} time steps."
    elif isinstance(architecture, BaselineConfig):
        gradient = "It was trained with gradients that cross no time step."
    forward = generate_forward(architecture, bptt_steps)
    imports = ["import torch"] * ("torch." in forward) + ["from torch import nn"]
    return _MODULE.format(
        label=architecture.label,
        n=n,
        v=vocab_size,
        gradient=gradient,
        imports="\n".join(imports),
        modules=indent("\n".join(modules), " " * 8),
        forward=indent(forward, " " * 4),
        embedding=param_shapes["embedding"],
        layers=architecture.layers,
        head=param_shapes["head"],
        width=2 * n if is_lstm else n,
        state="2n" if is_lstm else "n",
        new_state=", (B, 2n)" if is_lstm else " each",
    )


def state_dict_mapping(architecture: GatedConfig | BaselineConfig) -> dict[str, tuple[str, Part]]:
    """Tell what each tensor in the state of :func:`generate_module`'s network is.

    Returns:
        Its name to a product (:meth:`rnn.config.GatedConfig.param_shapes`), and which of that
        product's it is: the bias, as it is, or the weight, transposed.
    """
    names: dict[str, tuple[str, Part]] = {}
    for product in architecture.param_shapes():
        module, end = product, ""
        if isinstance(architecture, BaselineConfig) and product.startswith("layers."):
            layer, _, own = product.rpartition(".")
            module, end = f"{layer}.cell", f"_{TORCH_PARAM_SUFFIXES[own]}"
        for part in get_args(Part):
            names[f"{module}.{part}{end}"] = product, part
    return names


def generate_latex(architecture: GatedConfig | BaselineConfig, bptt_steps: int = 1) -> list[str]:
    r"""Write one layer in LaTeX, with the letters of :class:`rnn.stacked.layer.BaselineCell`.

    A prime marks what the input gate let through. Where a gate follows it, ``\tilde u`` is the
    candidate, and ``\hat u`` what the state gate makes of it; u is the new state.

    Args:
        architecture: whose layers all compute the same.
        bptt_steps: see :func:`generate_forward`.

    Returns:
        The equations in the order in which they are computed, without delimiters: from the
        input x and the previous state h to the output y and, in the last, the next h.
    """
    if isinstance(architecture, BaselineConfig):
        return baseline_equations(architecture)
    a = architecture
    lines = [rf"c = {_join(['x', 'h'])}"]
    c, old = "c", "h"
    if a.input_gate:
        c = "c'"
        lines += [r"c' = \sigma(c W_i + b_i) \odot c"]
        if a.reads_previous_state:
            old = "h'"
            lines += [r"[x' \,;\, h'] = c'"]

    def gate(letter: str, state: str) -> str:
        seen = _join([c, state]) if a.gate_inputs == "candidate" else c
        return rf"{letter} = \sigma({seen} W_{letter} + b_{letter})"

    states = _states(a, r"\tilde u", r"\hat u", "u")
    lines += [rf"{states[0]} = \tanh({c} W_u + b_u)"]
    if a.state_gate:
        mix = rf"{states[1]} = z \odot {states[0]} + (1 - z) \odot h"
        lines += [gate("z", states[0]), mix]
    if a.forget_gate:
        lines += [gate("f", states[-2]), rf"{states[-1]} = f \odot {states[-2]}"]

    reads = _reads(a, "u", old, "x")
    read = reads[0]
    if len(reads) > 1:
        read = "r"
        lines += [f"r = {_join(reads)}"]
    lines += [f"o = {read} W_o + b_o"]
    if a.output_gate:
        lines += [rf"y = \sigma({_join(['o', read])} W_y + b_y) \odot o"]
    else:
        lines += [r"y = o \odot \sigma(o)"]
    return [
        *lines,
        r"h \leftarrow \operatorname{detach}(u)" if bptt_steps == 1 else r"h \leftarrow u",
    ]


def _states(a: GatedConfig, candidate: str, mixed: str, new: str) -> list[str]:
    """List what the new state is called on its way from gate to gate, the last always ``new``."""
    return [*(candidate, mixed)[: a.state_gate + a.forget_gate], new]


def _reads(a: GatedConfig, new: str, old: str, x: str) -> list[str]:
    """List what the read-out sees, of these names, in the order in which it joins them."""
    choices = ((new, a.reads_new_state), (old, a.reads_previous_state), (x, a.residual))
    return [name for name, read in choices if read]


def _cat(names: Sequence[str]) -> str:
    return f"torch.cat(({', '.join(names)}), dim=1)"


def _join(names: Sequence[str]) -> str:
    return "[" + r" \,;\, ".join(names) + "]"


TORCH_CELL_CLASSES: dict[BaselineCell, str] = {
    "elman": "RNNCell",
    "gru": "GRUCell",
    "lstm": "LSTMCell",
}
"""The names of torch's modules."""

TORCH_PARAM_SUFFIXES = {"input": "ih", "state": "hh"}
"""A layer's products to how the names of their tensors in such a module end."""

_EQUATIONS: dict[BaselineCell, list[str]] = {
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


def baseline_forward_lines(known: BaselineConfig) -> list[str]:
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


def baseline_equations(known: BaselineConfig) -> list[str]:
    """Write one layer in LaTeX; see :func:`rnn.codegen.generate_latex`.

    W and b are of the input's maps, V and d of the state's, and m is an LSTM's memory.
    """
    return [*_EQUATIONS[known.cell], r"h \leftarrow y"]
