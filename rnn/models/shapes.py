"""Shapes and numbers of weights and states of every network config, and the memory they take."""

import math

from rnn.config import (
    BYTE_VOCAB_SIZE,
    BaselineConfig,
    CellConfig,
    GatedConfig,
    NetworkConfig,
    Precision,
    TrialConfig,
)
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


def estimate_memory(
    config: TrialConfig,
    streams: int,
    precision: Precision,
    vocab_size: int = BYTE_VOCAB_SIZE,
) -> int:
    """Return an upper estimate of the memory that a network takes in training, in bytes.

    Args:
        config: config of the network; memory grows with its ``bptt_steps``.
        streams: B.
        precision: precision of the arithmetic.
        vocab_size: V.
    """
    size = 8 if precision == "fp64" else 4
    parameters = count_parameters(config.architecture, vocab_size)
    # Weights, their average, gradients and two moments; bfloat16 weights and gradients; autograd's
    # gradients.
    uses_autograd = not isinstance(config.architecture, GatedConfig) or config.bptt_steps > 1
    # RMSprop's root of the mean square, and the sum of gradient and decay.
    is_rmsprop = config.optimizer.name == "rmsprop"
    copies = 5 + uses_autograd + is_rmsprop * (1 + (config.optimizer.weight_decay > 0))
    weights = parameters * (copies * size + 2 * 2 * (precision == "bf16"))
    # Activations and temporaries: a few numbers for each input and output.
    per_input, per_output, others = 4, 6, 0
    if isinstance(config.architecture, CellConfig):
        # Which others its equations make is not known: some of the size of its input and state.
        n, layers = config.architecture.state_size, config.architecture.layers
        per_input, per_output = 1, 2
        others = 8 * (count_states(config.architecture) + layers * n) * config.bptt_steps + 8 * n
    shapes = parameter_shapes(config.architecture, vocab_size)
    numbers = others + sum(
        (per_input * inputs + per_output * outputs)
        * (config.bptt_steps if name.startswith("layers.") else 1)
        for name, (inputs, *outputs_of_map) in shapes.items()
        for outputs in outputs_of_map  # a bias has none
    )
    return weights + streams * numbers * size
