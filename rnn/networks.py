"""Which of the two kinds of network members are: many in lockstep, or one unrolled."""

from collections.abc import Mapping, Sequence

import torch

from rnn.architecture import BYTES, Architecture
from rnn.member import Member
from rnn.network import Population
from rnn.parameters import Weights
from rnn.precision import Precision
from rnn.unrolled import Unrolled

Network = Population | Unrolled
"""What is trained, measured and asked for text: many networks in lockstep, or one unrolled."""


def trains_in_lockstep(member: Member) -> bool:
    """Tell whether a population can have a member: our own cell, no gradient across a time step."""
    return isinstance(member.architecture, Architecture) and member.gradient_window == 1


def network_of(
    members: Sequence[Member],
    seed: int,
    precision: Precision = "fp32",
    vocabulary_size: int = BYTES,
    device: torch.device | None = None,
    weights: Mapping[Member, Weights] | None = None,
) -> Network:
    """Return members as what can train them: a population where that is possible.

    Args:
        members: any number that train in lockstep, of one shape, or one that does not.
        seed: of their initial weights.
        precision: of the arithmetic.
        vocabulary_size: V.
        device: where to compute.
        weights: of members, in place of the initial ones.

    Raises:
        ValueError: if they cannot be trained together.
    """
    kind = Population if all(map(trains_in_lockstep, members)) else Unrolled
    return kind(members, seed, precision, vocabulary_size, device, weights)
