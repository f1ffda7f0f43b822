"""Memory that a network takes in training, of any cell."""

from rnn.config import BYTE_VOCAB_SIZE, CellConfig, GatedConfig, Precision, TrialConfig
from rnn.models.shapes import count_parameters, count_states, parameter_shapes


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
