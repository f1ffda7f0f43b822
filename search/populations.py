"""How many networks a worker trains in lockstep, where nobody has said."""

import torch

from rnn.architecture import Architecture
from rnn.device import free_memory
from rnn.network import member_bytes
from rnn.precision import Precision

_ON_A_PROCESSOR = 8
"""Of small networks: more of them no longer fit into a core's cache, and gain nothing."""

_SMALL = 64
"""The largest state for which a step is too short for what surrounds its products."""

_SHARE_OF_MEMORY = 0.8


def useful_population(
    architecture: Architecture, lanes: int, precision: Precision, device: torch.device
) -> int:
    """Return how many networks of one shape are best trained together.

    Args:
        architecture: of one of them.
        lanes: B.
        precision: of the arithmetic.
        device: on which to train; on a GPU it is as many as its memory has room for.
    """
    room = free_memory(device) * _SHARE_OF_MEMORY / member_bytes(architecture, lanes, precision)
    most = max(1, int(room))
    if device.type != "cpu":
        return most
    return min(most, _ON_A_PROCESSOR if architecture.state_size <= _SMALL else 1)
