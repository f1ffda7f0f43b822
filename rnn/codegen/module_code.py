"""Generate a Python file that defines a whole network, and map its tensors to the config's."""

from textwrap import indent
from typing import Literal, get_args

from rnn.codegen.forward_code import generate_forward, require_built_in
from rnn.config import (
    BYTE_VOCAB_SIZE,
    BaselineCell,
    BaselineConfig,
    CellConfig,
    NetworkConfig,
)

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

import cell
from torch import nn


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
        :func:`rnn.codegen.forward_code.generate_forward`, and ``Network``, whose state dict has
        the names of :func:`state_dict_mapping`. That of a user's own cell imports the class from a
        module ``cell``, its source file, instead of defining ``Layer``.
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
        call=f"cell.{config.cell}(input_size={n}, state_size={n}{options})",
        layers=config.layers,
    )


def state_dict_mapping(config: NetworkConfig) -> dict[str, tuple[str, ParamKind]]:
    """Map the state dict of the network of :func:`generate_module` to the config's parameters.

    Returns:
        The name of each tensor to a linear map (:meth:`rnn.config.GatedConfig.param_shapes`) and
        the tensor's kind. Weights are transposed: (outputs, inputs).
    """
    config = require_built_in(config)
    mapping: dict[str, tuple[str, ParamKind]] = {}
    for param in config.param_shapes():
        module, suffix = param, ""
        if isinstance(config, BaselineConfig) and param.startswith("layers."):
            layer, _, name = param.rpartition(".")
            module, suffix = f"{layer}.cell", f"_{TORCH_PARAM_SUFFIXES[name]}"
        for kind in get_args(ParamKind):
            mapping[f"{module}.{kind}{suffix}"] = param, kind
    return mapping
