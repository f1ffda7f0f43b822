"""How many networks a worker trains in lockstep, where nobody has said."""

from dataclasses import replace

import torch

from rnn.architecture import BYTES, Architecture
from rnn.device import free_memory
from rnn.member import Member
from rnn.network import member_bytes
from rnn.networks import trains_in_lockstep
from rnn.precision import Precision
from search.judgement import NEEDED

_SMALL = 256 * 48
"""Numbers in a layer's state, of all lanes, up to which a step on a processor is short enough for
what surrounds its products to count."""

_ON_A_PROCESSOR = 32
"""Of small networks: more would gain little, and all would end at once."""

_BYTES_ON_A_PROCESSOR = 256 * 2**20
"""What they may take: no more than twice what one of the large ones does."""

_SHARE_OF_MEMORY = 0.8

_SPARE = 0.01
"""The chance from which a paused network is taken along where that costs next to nothing."""


def useful_population(
    member: Member,
    lanes: int,
    precision: Precision,
    device: torch.device,
    vocabulary_size: int = BYTES,
) -> int:
    """Return how many networks of one shape are best trained together.

    Args:
        member: one of them; it is alone if it is no member of a population.
        lanes: B.
        precision: of the arithmetic.
        device: on which to train; on a GPU it is as many as its memory has room for.
        vocabulary_size: V.
    """
    if not trains_in_lockstep(member):
        return 1
    architecture = member.architecture
    assert isinstance(architecture, Architecture)
    on_a_processor = device.type == "cpu"
    if on_a_processor and lanes * architecture.state_size > _SMALL:
        return 1
    # Its fellows may have everything on.
    largest = replace(
        architecture,
        input_gate=True,
        forget_gate=True,
        output_gate=True,
        state_gate=True,
        residual=True,
        state_source="both",
    )
    room = free_memory(device) * _SHARE_OF_MEMORY
    if on_a_processor:
        room = min(room, _BYTES_ON_A_PROCESSOR)
    size = member_bytes(member._replace(architecture=largest), lanes, precision, vocabulary_size)
    most = max(1, int(room / size))
    return min(most, _ON_A_PROCESSOR) if on_a_processor else most


def useful_chance(device: torch.device) -> float:
    """Return the chance to be wanted from which a paused network is worth taking along.

    On a processor each network costs its own time; on a GPU, whose steps are bound by launches,
    those that are trained beside others cost next to nothing.
    """
    return NEEDED if device.type == "cpu" else _SPARE
