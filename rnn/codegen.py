"""Generate PyTorch source and LaTeX equations for one network config, without its unused options.

:class:`rnn.models.gated.GatedLayer` branches on its options. The generated code is what one config
amounts to, for readers and for use without this project. Baseline cells use PyTorch's own modules.
"""

from collections.abc import Sequence
from textwrap import indent
from typing import Literal, get_args

from rnn.config import (
    BYTE_VOCAB_SIZE,
    BaselineCell,
    BaselineConfig,
    CellConfig,
    GatedConfig,
    NetworkConfig,
)
from rnn.errors import CellError

ParamKind = Literal["weight", "bias"]

TORCH_CELL_CLASSES: dict[BaselineCell, str] = {
    "elman": "RNNCell",
    "gru": "GRUCell",
    "lstm": "LSTMCell",
}

TORCH_PARAM_SUFFIXES = {"input": "ih", "state": "hh"}
"""Suffix of the parameters of a PyTorch cell for each linear map of a baseline layer."""

_FIRST_LAYER = "layers.0."

_MODULE = '''\
"""A recurrent network: {label}.

B is the number of texts read in parallel, n = {n} the state size, V = {v} the vocabulary size.
{gradient}
"""

{imports}


class Layer(nn.Module):
    """One recurrent layer."""

    def __init__(self):
        super().__init__()
{modules}

{forward}


class Network(nn.Module):
    """A language model: reads one token at a time and predicts the next."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear{embedding}
        self.layers = nn.ModuleList(Layer() for _ in range({layers}))
        self.head = nn.Linear{head}

    def init_state(self, batch_size):
        """Return the states at a text's start: zeros (B, {state}) for each layer."""
        return [self.head.weight.new_zeros(batch_size, {width}) for _ in self.layers]

    def forward(self, tokens, states):
        """Map tokens (B,) and each layer's state (B, {state}) to logits (B, V) and new states."""
        # A linear map of a one-hot token is a row of its weights.
        table = self.embedding.weight.T  # (V, n)
        x = table[tokens] + self.embedding.bias  # (B, n)
        new_states = []
        for layer, state in zip(self.layers, states, strict=True):
            x, new_state = layer(x, state)  # (B, n){new_state}
            new_states.append(new_state)
        logits = self.head(x)  # (B, V)
        return logits, new_states
'''

_CELL_MODULE = '''\
"""A recurrent network: {label}.

B is the number of texts read in parallel, n = {n} the state size, V = {v} the vocabulary size.
{gradient}
"""

from torch import nn

from cell import {cell}


class Network(nn.Module):
    """A language model: reads one token at a time and predicts the next."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear({v}, {n})
        self.layers = nn.ModuleList({call} for _ in range({layers}))
        self.head = nn.Linear({n}, {v})

    def init_state(self, batch_size):
        """Return the states at a text's start: of each layer a tensor (B, …), or a tuple."""
        zeros = self.head.weight.new_zeros(batch_size, {n})
        return [
            layer.initial_state(batch_size) if hasattr(layer, "initial_state") else zeros
            for layer in self.layers
        ]

    def forward(self, tokens, states):
        """Map tokens (B,) and each layer's state to logits (B, V) and new states."""
        # A linear map of a one-hot token is a row of its weights.
        table = self.embedding.weight.T  # (V, n)
        x = table[tokens] + self.embedding.bias  # (B, n)
        new_states = []
        for layer, state in zip(self.layers, states, strict=True):
            x, new_state = layer(x, state)  # (B, n)
            new_states.append(new_state)
        logits = self.head(x)  # (B, V)
        return logits, new_states
'''

_BASELINE_EQUATIONS: dict[BaselineCell, list[str]] = {
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


def generate_module(
    config: NetworkConfig, vocab_size: int = BYTE_VOCAB_SIZE, bptt_steps: int = 1
) -> str:
    """Generate a Python file that defines the whole network and imports only PyTorch.

    Args:
        config: network to generate.
        vocab_size: V.
        bptt_steps: steps that a gradient passed through in training.

    Returns:
        The source, with the classes ``Layer``, whose ``forward`` is that of
        :func:`generate_forward`, and ``Network``, whose state dict has the names of
        :func:`state_dict_mapping`. That of a user's own cell imports the class from a module
        ``cell``, its source file, instead of defining ``Layer``.
    """
    if isinstance(config, CellConfig):
        return _generate_cell_module(config, vocab_size, bptt_steps)
    param_shapes, n = config.param_shapes(vocab_size), config.state_size
    is_baseline = isinstance(config, BaselineConfig)
    is_lstm = isinstance(config, BaselineConfig) and config.cell == "lstm"
    if isinstance(config, BaselineConfig):
        modules = [f"self.cell = nn.{TORCH_CELL_CLASSES[config.cell]}({n}, {n})"]
    else:
        modules = [
            f"self.{name.removeprefix(_FIRST_LAYER)} = nn.Linear{shape}"
            for name, shape in param_shapes.items()
            if name.startswith(_FIRST_LAYER)
        ]
    if bptt_steps > 1:
        gradient = f"It was trained with gradients through {bptt_steps} time steps."
    elif is_baseline:
        gradient = "It was trained without gradients across time steps."
    else:
        gradient = "No gradient crosses a time step."
    forward = generate_forward(config, bptt_steps)
    imports = ["import torch"] * ("torch." in forward) + ["from torch import nn"]
    return _MODULE.format(
        label=config.label,
        n=n,
        v=vocab_size,
        gradient=gradient,
        imports="\n".join(imports),
        modules=indent("\n".join(modules), " " * 8),
        forward=indent(forward, " " * 4),
        embedding=param_shapes["embedding"],
        layers=config.layers,
        head=param_shapes["head"],
        width=2 * n if is_lstm else n,
        state="2n" if is_lstm else "n",
        new_state=", (B, 2n)" if is_lstm else " each",
    )


def _generate_cell_module(config: CellConfig, vocab_size: int, bptt_steps: int) -> str:
    n = config.state_size
    options = "".join(f", {name}={value!r}" for name, value in config.options)
    return _CELL_MODULE.format(
        label=f"{config.layers}×{n} {config.cell}",  # a text option could end the docstring
        n=n,
        v=vocab_size,
        gradient=(
            f"It was trained with gradients through {bptt_steps} time steps."
            if bptt_steps > 1
            else "It was trained without gradients across time steps."
        ),
        cell=config.cell,
        call=f"{config.cell}(input_size={n}, state_size={n}{options})",
        layers=config.layers,
    )


def state_dict_mapping(config: NetworkConfig) -> dict[str, tuple[str, ParamKind]]:
    """Map the state dict of the network of :func:`generate_module` to the config's parameters.

    Returns:
        The name of each tensor to a linear map (:meth:`rnn.config.GatedConfig.param_shapes`) and
        the tensor's kind. Weights are transposed: (outputs, inputs).
    """
    config = _require_built_in(config)
    mapping: dict[str, tuple[str, ParamKind]] = {}
    for param in config.param_shapes():
        module, suffix = param, ""
        if isinstance(config, BaselineConfig) and param.startswith("layers."):
            layer, _, name = param.rpartition(".")
            module, suffix = f"{layer}.cell", f"_{TORCH_PARAM_SUFFIXES[name]}"
        for kind in get_args(ParamKind):
            mapping[f"{module}.{kind}{suffix}"] = param, kind
    return mapping


def generate_forward(config: NetworkConfig, bptt_steps: int = 1) -> str:
    """Generate the forward method of one layer in Python.

    Args:
        config: network of the layer.
        bptt_steps: steps that a gradient passed through in training; the new state of a gated layer
            is detached if it is 1.

    Returns:
        The source of a method ``forward(self, x, state)``, not indented, without a final newline.
        Each line that makes a tensor ends with its shape.
    """
    config = _require_built_in(config)
    if isinstance(config, BaselineConfig):
        lines = _baseline_forward_lines(config)
    else:
        lines = _gated_forward_lines(config, is_detached=bptt_steps == 1)
    return "def forward(self, x, state):\n" + indent("\n".join(lines), "    ")


def generate_latex(config: NetworkConfig, bptt_steps: int = 1) -> list[str]:
    r"""Generate the equations of one layer in LaTeX.

    The letters are those of :class:`rnn.models.gated.GatedLayer` and :mod:`rnn.models.baselines`.
    Where gates follow, ``\tilde u`` is the candidate and ``\hat u`` the output of the state gate.

    Args:
        config: network of the layer.
        bptt_steps: steps that a gradient passed through in training.

    Returns:
        The equations in the order of computation, without delimiters: from the input x and the
        previous state h to the output y and, in the last equation, the next h.
    """
    config = _require_built_in(config)
    if isinstance(config, BaselineConfig):
        return [*_BASELINE_EQUATIONS[config.cell], r"h \leftarrow y"]
    lines = [rf"c = {_latex_concat(['x', 'h'])}"]
    c, previous = "c", "h"
    if config.input_gate:
        c = "c'"
        lines += [r"c' = \sigma(c W_i + b_i) \odot c"]
        if config.reads_previous_state:
            previous = "h'"
            lines += [r"[x' \,;\, h'] = c'"]

    def gate(letter: str, u: str) -> str:
        g = _latex_concat([c, u]) if config.gate_inputs == "candidate" else c
        return rf"{letter} = \sigma({g} W_{letter} + b_{letter})"

    states = _state_names(config, r"\tilde u", r"\hat u", "u")
    lines += [rf"{states[0]} = \tanh({c} W_u + b_u)"]
    if config.state_gate:
        mix = rf"{states[1]} = z \odot {states[0]} + (1 - z) \odot h"
        lines += [gate("z", states[0]), mix]
    if config.forget_gate:
        lines += [gate("f", states[-2]), rf"{states[-1]} = f \odot {states[-2]}"]

    parts = _readout_parts(config, "u", previous, "x")
    r = parts[0]
    if len(parts) > 1:
        r = "r"
        lines += [f"r = {_latex_concat(parts)}"]
    lines += [f"o = {r} W_o + b_o"]
    if config.output_gate:
        lines += [rf"y = \sigma({_latex_concat(['o', r])} W_y + b_y) \odot o"]
    else:
        lines += [r"y = o \odot \sigma(o)"]
    next_state = r"\operatorname{detach}(u)" if bptt_steps == 1 else "u"
    return [*lines, rf"h \leftarrow {next_state}"]


def _require_built_in(config: NetworkConfig) -> GatedConfig | BaselineConfig:
    """Return a config, if its equations are known."""
    if isinstance(config, CellConfig):
        raise CellError(
            f"cell {config.cell} has no generated code: its source file defines it, expected a "
            "built-in cell"
        )
    return config


def _gated_forward_lines(config: GatedConfig, is_detached: bool) -> list[str]:
    lines = ["c = torch.cat((x, state), dim=1)  # (B, 2n)"]
    previous = "state"
    if config.input_gate:
        lines += [
            "input_gate = torch.sigmoid(self.input_gate(c))  # (B, 2n)",
            "c = input_gate * c  # (B, 2n)",
        ]
        if config.reads_previous_state:
            previous = "gated_state"
            lines += ["_, gated_state = c.chunk(2, dim=1)  # (B, n)"]

    def gate(name: str, u: str) -> list[str]:
        inputs, joined = "c", []
        if config.gate_inputs == "candidate":
            inputs, joined = "gate_inputs", [f"gate_inputs = {_concat(['c', u])}  # (B, 3n)"]
        return [*joined, f"{name} = torch.sigmoid(self.{name}({inputs}))  # (B, n)"]

    states = _state_names(config, "candidate", "mixed_state", "new_state")
    lines += [f"{states[0]} = torch.tanh(self.candidate(c))  # (B, n)"]
    if config.state_gate:
        mix = f"state_gate * {states[0]} + (1 - state_gate) * state"
        lines += [*gate("state_gate", states[0]), f"{states[1]} = {mix}  # (B, n)"]
    if config.forget_gate:
        scaled = f"{states[-1]} = forget_gate * {states[-2]}  # (B, n)"
        lines += [*gate("forget_gate", states[-2]), scaled]

    parts = _readout_parts(config, "new_state", previous, "x")
    r = parts[0]
    if len(parts) > 1:
        r = "read_out_inputs"
        lines += [f"read_out_inputs = {_concat(parts)}  # (B, {len(parts)}n)"]
    lines += [f"output = self.read_out({r})  # (B, n)"]
    if config.output_gate:
        lines += [
            f"gate_inputs = {_concat(['output', r])}  # (B, {1 + len(parts)}n)",
            "output_gate = torch.sigmoid(self.output_gate(gate_inputs))  # (B, n)",
            "output = output_gate * output  # (B, n)",
        ]
    else:
        lines += ["output = output * torch.sigmoid(output)  # (B, n)"]
    return [*lines, "return output, new_state" + ".detach()" * is_detached]


def _baseline_forward_lines(config: BaselineConfig) -> list[str]:
    if config.cell != "lstm":
        return ["state = self.cell(x, state)  # (B, n)", "return state, state"]
    return [
        "output, memory = state.chunk(2, dim=1)  # (B, n)",
        "output, memory = self.cell(x, (output, memory))  # (B, n)",
        "state = torch.cat((output, memory), dim=1)  # (B, 2n)",
        "return output, state",
    ]


def _state_names(config: GatedConfig, candidate: str, mixed: str, new: str) -> list[str]:
    """Return the names of the new state before and after each gate; the last is ``new``."""
    return [*(candidate, mixed)[: config.state_gate + config.forget_gate], new]


def _readout_parts(config: GatedConfig, new: str, previous: str, x: str) -> list[str]:
    """Return which of these names the read-out concatenates, in order."""
    choices = (
        (new, config.reads_new_state),
        (previous, config.reads_previous_state),
        (x, config.residual),
    )
    return [name for name, is_read in choices if is_read]


def _concat(names: Sequence[str]) -> str:
    return f"torch.cat(({', '.join(names)}), dim=1)"


def _latex_concat(names: Sequence[str]) -> str:
    return "[" + r" \,;\, ".join(names) + "]"
