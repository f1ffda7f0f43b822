"""Which of the two kinds of network members are: many in lockstep, or one unrolled."""

from collections.abc import Mapping, Sequence

import torch

from rnn.config import BYTE_VOCAB_SIZE, GatedConfig, Precision, TrialConfig
from rnn.models.bptt_network import Unrolled
from rnn.stacked.flat_parameters import NamedTensors
from rnn.stacked.network import NetworkStack

TrainableNetwork = NetworkStack | Unrolled
"""What is trained, measured and asked for text: many networks in lockstep, or one unrolled."""


def is_stackable(config: TrialConfig) -> bool:
    """Tell whether a population can have a member: our own cell, no gradient across a time step."""
    return isinstance(config.architecture, GatedConfig) and config.bptt_steps == 1


def build_network(
    configs: Sequence[TrialConfig],
    seed: int,
    precision: Precision = "fp32",
    vocab_size: int = BYTE_VOCAB_SIZE,
    device: torch.device | None = None,
    weights: Mapping[TrialConfig, NamedTensors] | None = None,
) -> TrainableNetwork:
    """Return members as what can train them: a population where that is possible.

    Args:
        configs: any number that train in lockstep, of one shape, or one that does not.
        seed: of their initial weights.
        precision: of the arithmetic.
        vocab_size: V.
        device: where to compute.
        weights: of members, in place of the initial ones.

    Raises:
        ValueError: if they cannot be trained together.
    """
    kind = NetworkStack if all(map(is_stackable, configs)) else Unrolled
    return kind(configs, seed, precision, vocab_size, device, weights)
