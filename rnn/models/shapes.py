"""Shapes and numbers of weights and states of every network config."""

import math

from rnn.config import BYTE_VOCAB_SIZE, BaselineConfig, CellConfig, NetworkConfig
from rnn.models.cell_module import module_shapes


def parameter_shapes(
    architecture: NetworkConfig, vocab_size: int = BYTE_VOCAB_SIZE
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight and bias by name, such as ``layers.0.candidate.bias``.

    Weights of linear maps have the shape (inputs, outputs), biases (outputs,). Those of a user's
    own cell have the names and shapes of the module's state dict: (outputs, inputs).

    Raises:
        CellError: if a user's own cell cannot be built.
    """
    if isinstance(architecture, CellConfig):
        return module_shapes(architecture, vocab_size).parameters
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (inputs, outputs) in architecture.param_shapes(vocab_size).items():
        shapes |= {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}
    return shapes


def constant_shapes(
    architecture: NetworkConfig, vocab_size: int = BYTE_VOCAB_SIZE
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that is saved with the weights but not trained.

    Raises:
        CellError: if a user's own cell cannot be built.
    """
    if isinstance(architecture, CellConfig):
        return module_shapes(architecture, vocab_size).constants
    return {}


def count_parameters(architecture: NetworkConfig, vocab_size: int = BYTE_VOCAB_SIZE) -> int:
    """Count all weights and biases, embedding and head included."""
    return sum(map(math.prod, parameter_shapes(architecture, vocab_size).values()))


def count_states(architecture: NetworkConfig) -> int:
    """Count the numbers in the states of all layers, of one stream.

    Raises:
        CellError: if a user's own cell cannot be built.
    """
    if isinstance(architecture, CellConfig):
        return module_shapes(architecture).states
    is_lstm = isinstance(architecture, BaselineConfig) and architecture.cell == "lstm"
    return architecture.layers * architecture.state_size * (2 if is_lstm else 1)
